"""SLAO: rows and merging by hand, and which weights a task begins and ends with."""

import math

import pytest
import torch
from pieces import ask, configured, equal, task_view, tiny_model, train, weights_of

from cl_toolkit import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.slao import SLAO, orthonormal

CONTINUE = Adapter(r=2, lora_alpha=4)
TASKS = [[ask("ab", "c"), ask("zx", "y")], [ask("xyz", "w"), ask("b", "a")], [ask("q", "r"), ask("rs", "t")]]


def strategy(**settings):
    made = SLAO(configured(SLAO, **settings))
    made.name = "slao"
    return made


def learned(*strategies, tasks=TASKS):
    """The weights after each task, by each strategy from the same start."""
    paths = []
    for made in strategies:
        model, path = adapters.begin_task(tiny_model(), CONTINUE, 0, 0), []
        for index, examples in enumerate(tasks):
            model = train(model, task_view(examples, index=index, max_steps=4), made, learning_rate=1e-2)
            path.append(weights_of(model))
        paths.append(path)
    return paths


def test_the_rows_are_those_of_gram_schmidt():
    """[3, 4] is five times [.6, .8]; of [1, 0] what is at right angles to it is [.64, -.48] = .8 [.8, -.6]."""
    assert torch.allclose(orthonormal(torch.tensor([[3.0, 4.0], [1.0, 0.0]])), torch.tensor([[0.6, 0.8], [0.8, -0.6]]))
    assert torch.allclose(orthonormal(-torch.eye(2)), -torch.eye(2))


def test_rows_that_are_orthonormal_stay():
    a = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))[0].T
    assert (orthonormal(a) - a).abs().max() < 1e-6


def test_what_is_merged_by_hand():
    """B is 4, 8 and 2 when it is trained: 4, then 4 + (8 - 4) / sqrt 2, then that and 1 / sqrt 3 of what it lacks to 2."""
    model, made = adapters.begin_task(tiny_model(), CONTINUE, 0, 0), strategy(orthogonal=False)
    second = 4 + 4 / math.sqrt(2)
    for index, (trained, merged) in enumerate(
        zip((4, 8, 2), (4.0, second, second + (2 - second) / math.sqrt(3)), strict=True)
    ):
        view = task_view(TASKS[index], index=index)
        made.before_task(model, view)
        began = (4.0, 4.0, 8.0)[index]  # what the task before has trained, not what it was merged into
        for _, _, b, _ in adapters.pairs(model):
            assert not index or (b == began).all()
            b.data.fill_(trained)
        made.after_task(model, view)
        assert all(torch.allclose(b, torch.tensor(merged)) for _, _, b, _ in adapters.pairs(model))


def test_one_task_is_plain_lora():
    (mine,), (plain,) = learned(strategy(), None, tasks=TASKS[:1])
    assert equal(mine, plain)


def test_without_both_of_its_parts_it_is_one_adapter_trained_on():
    mine, plain = learned(strategy(orthogonal=False, merge=False), None)
    assert all(map(equal, mine, plain))


def test_merging_does_not_touch_what_is_trained():
    """The path of the trained weights is that without merging, and A goes with it."""
    mine, other = learned(strategy(), strategy(merge=False))
    for index, (one, two) in enumerate(zip(mine, other, strict=True)):
        same = {name for name in one if torch.equal(one[name], two[name])}
        assert {name for name in one if name not in same} == ({n for n in one if "lora_B" in n} if index else set())


def test_a_task_begins_with_orthonormal_rows():
    model, made = adapters.begin_task(tiny_model(), CONTINUE, 0, 0), strategy()
    train(model, task_view(TASKS[0], max_steps=2), made)
    made.before_task(model, task_view(TASKS[1], index=1))
    for _, a, _, _ in adapters.pairs(model):
        assert torch.allclose(a @ a.T, torch.eye(2), atol=1e-6)


def test_a_rank_above_the_inputs_is_refused_before_anything_is_trained():
    model = adapters.begin_task(tiny_model(), Adapter(r=17, lora_alpha=4), 0, 0)
    with pytest.raises(UserError, match=r"slao\.orthogonal: expected a rank of at most 16, the inputs of .*; got 17"):
        strategy().before_task(model, task_view(TASKS[0]))
