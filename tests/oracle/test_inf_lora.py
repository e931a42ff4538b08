"""InfLoRA: its subspaces by hand, and a new adapter that says nothing to the inputs of past tasks."""

import math

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, train, weights_of

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.inf_lora import InfLoRA, directions, inputs_of, of_tokens, widened

STACK = Adapter(r=2, lora_alpha=4, between_tasks="stack")
OLD, NEW = [ask("ab", "c")], [ask("xyz", "w"), ask("zx", "y")]


def nothing(d):
    return torch.empty(d, 0)


def test_the_rows_are_the_main_directions_of_the_inputs():
    covariance = torch.diag(torch.tensor([9.0, 1.0, 4.0]))
    rows = directions(covariance, nothing(3), 2).abs() * math.sqrt(3)
    assert torch.allclose(rows, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    past = torch.tensor([[1.0], [0.0], [0.0]])
    rows = directions(covariance, past, 3).abs() * math.sqrt(3)
    assert torch.allclose(rows, torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))  # two are left


def test_past_inputs_are_kept_up_to_their_share_of_the_energy():
    """Energies 81, 1 and 16 of 98: 0.827, 0.990 with the second."""
    covariance = torch.diag(torch.tensor([9.0, 1.0, 4.0]))
    for share, axes in ((0.5, [0]), (0.83, [0, 2]), (0.98, [0, 2]), (0.995, [0, 1, 2]), (1.0, [0, 1, 2])):
        kept = widened(nothing(3), covariance, share)
        assert kept.shape == (3, len(axes))
        assert torch.allclose(kept @ kept.T, torch.diag(torch.tensor([float(i in axes) for i in range(3)])), atol=1e-6)
    known = widened(nothing(3), covariance, 0.83)
    assert widened(known, covariance, 0.98) is known  # it holds enough already
    other = torch.diag(torch.tensor([0.0, 5.0, 0.0]))
    assert widened(known, other, 0.9).shape == (3, 3)


@pytest.mark.parametrize("known", [0, 5])
def test_it_is_what_the_definition_says_on_random_inputs(known):
    """The smallest number of directions is found by trying them one after the other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, generator=generator) * torch.linspace(3, 0.1, 12)
    covariance = x.T @ x / 50
    past = torch.linalg.qr(torch.randn(12, known, generator=generator))[0]
    rest = covariance - past @ past.T @ covariance
    u = torch.linalg.svd(rest)[0]
    total = covariance.square().sum()
    wanted = next(
        k for k in range(13) if (rest - u[:, :k] @ u[:, :k].T @ rest).square().sum() <= (1 - 0.97) * total + 1e-9
    )
    kept = widened(past, covariance, 0.97)
    assert kept.shape[1] == known + wanted
    assert torch.allclose(kept.T @ kept, torch.eye(known + wanted), atol=1e-5)
    assert torch.allclose(kept @ (kept.T @ past), past, atol=1e-5)


def strategy(**settings):
    made = InfLoRA(configured(InfLoRA, **settings))
    made.name = "inf_lora"
    return made


def outputs(model, examples):
    view = task_view(examples)
    with torch.no_grad():
        return view.forward(model.eval(), view.encode(examples, model)).logits


def test_what_a_new_adapter_learns_does_not_reach_past_inputs():
    """With all of the past kept, outputs on past examples stay, whatever the new adapter learns; without, they move."""
    moved = {}
    for energy in (1.0, 0.0):
        model, inf = tiny_model(hidden_size=64), strategy(energy=energy)
        model = adapters.begin_task(model, STACK, 0, 0)
        view = task_view(OLD, max_steps=5)
        train(model, view, inf, learning_rate=1e-2)
        inf.after_task(model, view)
        before = outputs(model, OLD)
        model = adapters.begin_task(model, STACK, 1, 0)
        start, view = weights_of(model), task_view(NEW, index=1, max_steps=20)
        train(model, view, inf, learning_rate=1e-2)
        after = weights_of(model)
        changed = {name for name in start if not torch.equal(start[name], after[name])}
        assert {name for name in changed if "lora_A" in name} == {
            n for n in start if "lora_A.task1" in n
        }  # set, not trained
        assert {name for name in changed if "lora_A" not in name} == {n for n in start if "lora_B.task1" in n}
        moved[energy] = float((outputs(model, OLD) - before).abs().max())
        new = float((outputs(model, NEW)).abs().max())
        assert new > 0
    assert moved[1.0] < 1e-4 < 1e-2 < moved[0.0]


def test_a_rank_above_the_inputs_is_refused_before_anything_is_trained():
    model = adapters.begin_task(tiny_model(), Adapter(r=17, lora_alpha=4, between_tasks="stack"), 0, 0)
    with pytest.raises(UserError, match=r"inf_lora: expected a rank of at most 16, the inputs of .*; got 17"):
        strategy().before_task(model, task_view(OLD))


def test_padding_is_no_input():
    model = adapters.begin_task(tiny_model(), STACK, 0, 0)
    view, inf = task_view(NEW), strategy()
    together = inf._covariances(model, view)
    rows = {}
    with torch.no_grad(), inputs_of(model.eval()) as seen:
        for example in NEW:
            part = view.encode([example], model)
            view.forward(model, part)
            for name, x in seen.items():
                rows.setdefault(name, []).append(of_tokens(x, part))
    for name, found in together.items():
        x = torch.cat(rows[name])
        assert torch.allclose(found, x.T @ x / len(x), atol=1e-5)


def test_switched_off_it_is_a_stack_of_adapters():
    weights = []
    for made in (None, strategy(examples=0)):
        model = adapters.begin_task(tiny_model(), STACK, 0, 0)
        train(model, task_view(NEW, max_steps=3), made)
        weights.append(weights_of(model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert strategy(examples=0).cost(32).read_after == 0
