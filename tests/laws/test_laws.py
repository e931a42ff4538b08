"""The laws of the house for every registered strategy and objective, and what the contract suite does not ask of guests."""

from itertools import combinations

import pytest
from tiny import RFT, Trajectory, tiny_config, tiny_run_config, trajectory

from cl_toolkit import Compose, Strategy, UserError
from cl_toolkit.check import LAWS
from cl_toolkit.check.laws import judge
from cl_toolkit.check.runs import find_subject
from cl_toolkit.checkpoint import to_plain
from cl_toolkit.record import comparable
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.runner import Run
from cl_toolkit.strategy import Composed
from cl_toolkit.study_config import load_run

NAMES = list(STRATEGIES)
ADAPTERS = [None, *({"r": 2, "lora_alpha": 4, "between_tasks": b} for b in ("continue", "merge", "stack"))]


def needed_adapter(name):
    needed = STRATEGIES.get(name, "test").tags.between_tasks
    return {"r": 2, "between_tasks": needed} if needed else None


def model_of(adapter):
    return {**tiny_config()["model"], "adapter": adapter}


@pytest.fixture(scope="module", params=[*NAMES, *OBJECTIVES])
def subject(request):
    found = find_subject(request.param)
    yield found
    found.close()


@pytest.mark.parametrize("number", LAWS)
def test_law(subject, number):
    result = judge(LAWS[number], subject)
    assert result.passed is not False, result.seen


@pytest.fixture(scope="module", params=NAMES)
def rewarded(request):
    found = find_subject(request.param)
    found.objective = RFT
    yield found
    found.close()


@pytest.mark.parametrize("number", [1, 2, 6, 8])
def test_law_when_the_task_is_learned_from_rewards(rewarded, number):
    result = judge(LAWS[number], rewarded)
    assert result.passed is not False, result.seen


@pytest.mark.parametrize("name", NAMES)
def test_switched_on_it_does_something(name, tmp_path):
    common = {"model": model_of(needed_adapter(name))}
    plain = trajectory(tmp_path / "a", **common)
    assert trajectory(tmp_path / "b", strategies={name: {}}, **common) != plain


class Stop(Exception):
    pass


def stop_after(run: Run, tasks: int) -> None:
    """Run until `tasks` tasks are saved, then die in the middle of the next."""
    save = run.save

    def save_then_stop(k):
        save(k)
        if k + 1 == tasks:
            raise Stop

    run.save = save_then_stop
    with pytest.raises(Stop):
        run.execute()


RESUMED = [
    (None, {"name": "sft"}, None),
    ("replay", RFT, None),
    *(("replay", {"name": "sft"}, adapter) for adapter in ADAPTERS[1:]),
    (None, RFT, ADAPTERS[2]),
]


@pytest.mark.parametrize(("name", "objective", "adapter"), RESUMED)
def test_law_6_stopped_at_a_task_boundary_it_goes_on_as_if_nothing_had_happened(name, objective, adapter, tmp_path):
    settings = {"buffer_size": 9} if name in ("replay", "power_law") else {}
    changes = {
        "stream": {"tasks": ["max", "last", "sort"]},
        "strategies": {name: settings} if name else {},
        "objective": objective,
        "model": model_of(adapter),
        "evaluate": {"forgetting_curve": {"schedule": "log_spaced", "examples": 4}},
    }
    whole = trajectory(tmp_path / "whole", **changes)
    config = tiny_run_config(**changes)
    stop_after(Run(config, tmp_path / "stopped", None), 1)
    stop_after(Run(config, tmp_path / "stopped", None), 2)
    resumed = Trajectory(Run(config, tmp_path / "stopped", None))
    assert comparable(resumed.record) == comparable(whole.record)
    assert resumed.weights == whole.weights


@pytest.mark.parametrize("part", ["data", "init", "memory", "rollout"])
def test_law_7_each_part_of_the_seed_moves_its_own_draws(part, tmp_path):
    seed = {"data": 1, "init": 1, "memory": 1, "rollout": 1}
    changes = {"strategies": {"replay": {}}, "objective": RFT if part == "rollout" else {"name": "sft"}}
    first = trajectory(tmp_path / "a", **changes, seed=seed)
    other = trajectory(tmp_path / "b", **changes, seed={**seed, part: 2})
    assert first.weights != other.weights
    if part == "memory":  # the first task has no memory
        assert [r for r in first.record["losses"] if r["task"] == "max"] == [
            r for r in other.record["losses"] if r["task"] == "max"
        ]


class Pull(Strategy):
    """A penalty: the squared sum of all weights, times a factor."""

    factor = 0.1

    def penalty(self, weights):
        return {self.name: self.factor * sum((w**2).sum() for w in weights.values())}


class Push(Pull):
    factor = 0.003


def pair(*parts):
    for part in parts:
        part.name = type(part).__name__.lower()
    return {part.name: part for part in parts}


def test_law_8_penalties_commute(tmp_path):
    config = tiny_config()
    config["methods"] = {"ab": {"strategies": pair(Pull(), Push())}, "ba": {"strategies": pair(Push(), Pull())}}
    ab, ba = (Trajectory(Run(load_run(config, method=m), tmp_path / m, None)) for m in ("ab", "ba"))
    assert ab.losses == ba.losses
    assert ab.weights == ba.weights
    assert set(ab.losses[0]) == {"sft", "pull", "push"}


def test_law_8_composing_none_is_sequential_and_one_is_itself():
    pull = Pull()
    assert Compose(pull) is pull
    assert isinstance(Compose(), Composed)
    assert Compose().parts == ()


def test_law_8_a_name_taken_twice_is_refused():
    with pytest.raises(UserError, match="pull is there twice"):
        Compose(Pull(), Pull())


@pytest.mark.parametrize(("a", "b"), list(combinations(NAMES, 2)))
def test_law_8_a_pair_works_or_is_refused_by_name(a, b, tmp_path):
    excluded = b in STRATEGIES.get(a, "t").tags.excludes or a in STRATEGIES.get(b, "t").tags.excludes
    config = {"strategies": {a: {}, b: {}}}
    if excluded:
        with pytest.raises(UserError, match=f"{a} and {b} cannot be used together|{b} and {a} cannot"):
            tiny_run_config(**config)
    else:
        assert trajectory(tmp_path, **config).record["status"] == "finished"


def test_law_10_what_is_not_plain_is_refused():
    with pytest.raises(TypeError, match=r"state.a.1: set is not plain data"):
        to_plain({"a": [1, {2}]}, {})
