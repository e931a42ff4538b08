"""Merged weights, by hand and against PEFT; where the next task begins; the ends of the interpolation."""

import copy

import pytest
import torch
from peft.utils import merge_utils
from pieces import ask, configured, equal, task_view, tiny_model, train, weights_of
from tiny import tiny_run_config, trajectory
from torch import nn

from cl_toolkit.errors import UserError
from cl_toolkit.models.adapters import begin_task
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.merge import Merge, dropped, larger
from cl_toolkit.strategy import Cost

EXAMPLES = [ask("ab", "c"), ask("d", "efg"), ask("gh", "i")]
HALF = {"ties": {"density": 0.5}, "dare": {"density": 0.5}}
VECTORS = ([3.0, -1.0, 0.5, 2.0], [-2.0, -2.0, 0.1, 1.0])


class Four(nn.Module):
    """Four weights, at 10 in the beginning."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.w = nn.Parameter(torch.full((4,), 10.0, dtype=dtype))


def merge(**settings):
    strategy = Merge(Merge.Config(**settings))
    strategy.name = "merge"
    return strategy


def learned(strategy, targets, model=None):
    """(where each task began, what it became) of tasks whose training ends at `targets`."""
    model, began, became = model or Four(), [], []
    for index, target in enumerate(targets):
        view = task_view(EXAMPLES, index=index)
        model = strategy.before_task(model, view)
        began.append(model.w.tolist())
        model.w.data.copy_(torch.tensor(target))
        model = strategy.after_task(model, view)
        became.append(model.w.tolist())
    return began, became


def moved(vector, by=1.0):
    return [10.0 + by * x for x in vector]


MIXED = {
    "task_arithmetic": [1.0, -3.0, 0.6, 3.0],
    "average": [0.5, -1.5, 0.3, 1.5],
    "magmax": [3.0, -2.0, 0.5, 2.0],
    "ties": [3.0, -2.0, 0.0, 2.0],
}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("method", MIXED)
def test_two_task_vectors_by_hand(method, parallel):
    strategy = merge(method=method, weight=1.0, parallel=parallel, **HALF.get(method, {}))
    began, became = learned(strategy, [moved(v) for v in VECTORS])
    assert began[0] == [10.0] * 4
    assert began[1] == pytest.approx([10.0] * 4 if parallel else moved(VECTORS[0]))
    alone = [3.0, 0.0, 0.0, 2.0] if method == "ties" else VECTORS[0]  # trimmed to two of four
    assert became[0] == pytest.approx(moved(alone))
    assert became[1] == pytest.approx(moved(MIXED[method]), abs=1e-5)
    half = learned(
        merge(method=method, weight=0.5, parallel=parallel, **HALF.get(method, {})), [moved(v) for v in VECTORS]
    )
    assert half[1][1] == pytest.approx(moved(MIXED[method], 0.5), abs=1e-5)


def test_three_tasks_fold_into_one_vector_but_for_ties():
    draw = torch.Generator().manual_seed(0)
    vectors = [torch.randn(4, generator=draw) for _ in range(3)]
    targets = [moved(v.tolist()) for v in vectors]
    stacked = torch.stack(vectors)
    largest = stacked.gather(0, stacked.abs().argmax(0)[None])[0]
    ones = torch.ones(3)
    wanted = {
        "task_arithmetic": merge_utils.task_arithmetic(vectors, ones),
        "average": stacked.mean(0),
        "magmax": largest,
        "ties": merge_utils.ties(vectors, ones, 0.5),
    }
    for method, mixed in wanted.items():
        strategy = merge(method=method, weight=1.0, **HALF.get(method, {}))
        _, became = learned(strategy, targets)
        assert became[-1] == pytest.approx(moved(mixed.tolist()), abs=1e-5)
        assert len(strategy.vectors) == (3 if method == "ties" else 1)
        assert strategy.extra_parameters == (20 if method == "ties" else 12)


def test_of_equal_magnitudes_the_later_one():
    assert larger(torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 1.0])).tolist() == [-1.0, -2.0]


def test_dare_keeps_a_share_and_the_mean():
    vector = torch.ones(100_000)
    found = dropped(vector, 0.2, torch.Generator().manual_seed(0))
    assert set(found.tolist()) == {0.0, 5.0}
    assert found.mean().item() == pytest.approx(1.0, abs=0.03)
    strategy = merge(method="dare", weight=1.0, density=0.5)
    _, became = learned(strategy, [moved(v) for v in VECTORS])
    first = {10.0 + 2 * x for x in VECTORS[0]} | {10.0}
    assert set(became[0]) <= first
    again = merge(method="dare", weight=1.0, density=0.5)
    assert learned(again, [moved(v) for v in VECTORS])[1] == became


def test_interpolation_begins_anew_with_each_task():
    """10 -> 12, half: 11; trained on to 15, half: 13. The next task begins with the mixture."""
    strategy = merge(weight=0.5)
    began, became = learned(strategy, [[12.0] * 4, [15.0] * 4])
    assert (began[1], became) == ([11.0] * 4, [[11.0] * 4, [13.0] * 4])
    assert strategy.extra_parameters == 4
    assert strategy.state() == {"base": {}, "trained": {}, "vectors": [], "tasks": 0}


def test_bf16_is_mixed_in_fp32_and_rounded_once():
    model = Four(torch.bfloat16)
    _, became = learned(merge(weight=0.1), [[10.5] * 4], model)
    assert became == [[torch.tensor(10.05).bfloat16().item()] * 4]
    assert model.w.dtype == torch.bfloat16


def test_an_anchor_is_not_merged():
    model, strategy = Four(), merge()
    strategy.after_task(model, task_view(EXAMPLES, index=-1))
    assert model.w.tolist() == [10.0] * 4
    assert not strategy.extra_parameters


# trained --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, Adapter(r=2)], ids=["full", "lora"])
def test_the_ends_of_the_interpolation(adapter):
    """a = 0: the model before the task; a = 1: sequential training; bit for bit."""
    start = begin_task(tiny_model(), adapter, 0, 0)
    ends = {}
    for a in (None, 0.0, 0.25, 1.0):
        model = copy.deepcopy(start)
        train(model, task_view(EXAMPLES, max_steps=3), a if a is None else merge(weight=a), learning_rate=1e-2)
        ends[a] = weights_of(model)
    before = weights_of(start)
    assert equal(ends[0.0], before)
    assert equal(ends[1.0], ends[None])
    assert not equal(ends[1.0], before)
    for name, weight in ends[0.25].items():
        assert torch.allclose(weight, 0.75 * before[name] + 0.25 * ends[None][name], atol=1e-6), name


def test_task_vectors_leave_the_training_as_it_was(tmp_path):
    """Sequential training, of which only what is scored differs; with `parallel` each task is trained as the first one is."""
    plain = trajectory(tmp_path / "plain")
    found = trajectory(tmp_path / "magmax", strategies={"merge": {"method": "magmax", "weight": 1.0}})
    assert found.losses == plain.losses
    assert found.weights != plain.weights
    apart = trajectory(tmp_path / "apart", strategies={"merge": {"method": "ties", "parallel": True}})
    assert apart.losses[:4] == plain.losses[:4]
    alone = trajectory(tmp_path / "alone", stream={"view": "independent"})
    assert apart.losses == alone.losses


def test_a_whole_vector_is_the_trained_model_to_the_last_bit_or_so(tmp_path):
    plain, found = (
        trajectory(tmp_path / name, stream={"tasks": ["max"]}, strategies=strategies).run.model.state_dict()
        for name, strategies in {"a": {}, "b": {"merge": {"method": "task_arithmetic", "weight": 1.0}}}.items()
    )
    assert max(float((plain[name] - found[name]).abs().max()) for name in plain) <= 2**-23


@pytest.mark.parametrize("other", ["replay", "ewc", "si", "der", "lwf"])
def test_who_looks_at_the_weights_sees_those_that_were_trained(other, tmp_path):
    """In either order of the config, bit for bit."""
    names = ["merge", other]
    one, two = (trajectory(tmp_path / str(i), strategies={n: {} for n in names[::i]}) for i in (1, -1))
    assert one == two
    assert one != trajectory(tmp_path / "without", strategies={other: {}})


def test_one_owner_of_the_weights_and_no_adapter_that_ends():
    with pytest.raises(UserError, match="merge and ema cannot be used together: only one of them can own weights"):
        tiny_run_config(strategies={"merge": {}, "ema": {}})
    with pytest.raises(
        UserError, match=r"strategies\.merge: needs model\.adapter\.between_tasks: continue, or no adapter"
    ):
        tiny_run_config(strategies={"merge": {}}, model={"adapter": {"r": 2, "between_tasks": "merge"}})


def test_what_it_costs():
    assert merge().cost(32).copies == 1.0
    assert merge(method=None).cost(32) == merge(weight=1.0).cost(32) == Cost()
    assert merge(method="magmax").cost(32).copies == merge(method="magmax", weight=1.0).cost(32).copies == 3.0
    assert merge(method="ties").cost(32).copies_per_task == 1.0


@pytest.mark.parametrize("settings", [{"weight": -0.1}, {"density": 0.0}, {"density": 1.0}, {"parallel": True}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(Merge, **settings)


def test_how_far_the_mixture_is_from_both_ends_by_hand():
    """From (10, 10, 10, 10), 20 long, to (13, 14, 10, 10), which is 5 away and (169 + 196 + 200)^0.5 long. A fifth of the way
    is 1 from the start and 4 from there."""
    strategy = merge(weight=0.2)
    learned(strategy, [[13.0, 14.0, 10.0, 10.0]])
    assert strategy.told() == pytest.approx({"moved": 5 / 20, "to_start": 1 / 20, "to_trained": 4 / 565**0.5}, rel=1e-5)


@pytest.mark.parametrize("method", MIXED)
def test_of_task_vectors_the_ends_are_the_start_model_and_the_last_one(method):
    strategy = merge(method=method, weight=1.0, **HALF.get(method, {}))
    learned(strategy, [moved(v) for v in VECTORS])
    start, last, mixed = (torch.tensor(moved(v)) for v in ([0.0] * 4, VECTORS[1], MIXED[method]))
    wanted = {
        "moved": (last - start).norm() / start.norm(),
        "to_start": (mixed - start).norm() / start.norm(),
        "to_trained": (mixed - last).norm() / last.norm(),
    }
    assert strategy.told() == pytest.approx({key: float(value) for key, value in wanted.items()}, rel=1e-5)


def test_the_record_has_it_task_by_task_and_nothing_where_nothing_is_merged(tmp_path):
    on, off = (
        trajectory(tmp_path / str(w), strategies={"merge": {"weight": w}}).record["adapters"] for w in (0.25, 1.0)
    )
    for stage in on:
        told = stage["told"]["merge"]
        assert told["to_start"] == pytest.approx(0.25 * told["moved"], rel=1e-3)
    assert [stage["told"] for stage in off] == [{}, {}]
