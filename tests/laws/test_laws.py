"""The laws of the house, for every registered strategy. Sequential training is the measure of all of them."""

from itertools import combinations

import pytest
import torch
from tiny import RFT, Trajectory, tiny_config, tiny_run_config, trajectory

from cl_toolkit import Compose, Strategy, UserError
from cl_toolkit import runner as run_module
from cl_toolkit.checkpoint import from_plain, to_plain
from cl_toolkit.record import comparable
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.runner import Run
from cl_toolkit.strategy import Composed
from cl_toolkit.study_config import load_run
from cl_toolkit.types import Task

NAMES = list(STRATEGIES)
OBJECTIVES = [{"name": "sft"}, RFT]
ADAPTERS = [None, *({"r": 2, "lora_alpha": 4, "between_tasks": b} for b in ("continue", "merge", "stack"))]


def ids(value):
    return "full" if value is None else value.get("between_tasks") or value["name"]


def needed_adapter(name):
    needed = STRATEGIES.get(name, "test").tags.between_tasks
    return {"r": 2, "between_tasks": needed} if needed else None


def model_of(adapter):
    return {**tiny_config()["model"], "adapter": adapter}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("name", NAMES)
def test_law_1_without_past_tasks_it_is_sequential_training(name, objective, tmp_path):
    common = {"stream": {"tasks": ["max"]}, "objective": objective, "model": model_of(needed_adapter(name))}
    plain = trajectory(tmp_path / "a", **common)
    other = trajectory(tmp_path / "b", strategies={name: {}}, **common)
    assert other.losses == plain.losses
    assert other.weights == plain.weights


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("name", NAMES)
def test_law_2_switched_off_it_is_sequential_training(name, objective, tmp_path):
    off = dict(STRATEGIES.get(name, "test").tags.off)
    common = {"objective": objective, "model": model_of(needed_adapter(name))}
    plain = trajectory(tmp_path / "a", **common)
    other = trajectory(tmp_path / "b", strategies={name: off}, **common)
    assert other.losses == plain.losses
    assert other.weights == plain.weights
    on = trajectory(tmp_path / "c", strategies={name: {}}, **common)
    assert on.weights != plain.weights, "the strategy does nothing even when it is on"


class Guarded(Task):
    """A task that may only be looked at when its turn has come."""

    now = None  # index of the task in training

    def __getattribute__(self, name):
        if Guarded.now is not None and name in ("train", "valid", "test"):
            index = ["max", "last", "sort"].index(object.__getattribute__(self, "name"))
            if name != "train" or index > Guarded.now:
                raise AssertionError(f"looked at {name} of task {index} while task {Guarded.now} was trained")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("name", [None, *NAMES])
def test_law_4_nothing_but_the_current_training_examples_is_seen(name, tmp_path, monkeypatch):
    config = tiny_run_config(stream={"tasks": ["max", "last", "sort"]}, strategies={name: {}} if name else {})
    run = Run(config, tmp_path, None)
    tasks = tuple(Guarded(name=t.name, train=t.train, valid=t.valid, test=t.test) for t in run.stream.tasks)
    run.stream = type(run.stream).of("guarded", tasks)
    original = run_module.learn

    def guarded_learn(model, task, *rest):
        Guarded.now = task.index
        try:
            for attribute in ("valid", "test", "stream", "tasks"):
                assert not hasattr(task, attribute)
            if task.index == 0:
                with pytest.raises(AssertionError, match="looked at train of task 1"):
                    _ = tasks[1].train  # the guard itself works
            return original(model, task, *rest)
        finally:
            Guarded.now = None

    monkeypatch.setattr(run_module, "learn", guarded_learn)
    assert run.execute()["status"] == "finished"


@pytest.mark.parametrize("name", [None, *NAMES])
def test_law_5_watching_leaves_no_trace(name, tmp_path):
    common = {"stream": {"tasks": ["max", "last", "sort"]}, "strategies": {name: {}} if name else {}}
    blind = trajectory(tmp_path / "a", evaluate={"forgetting_curve": {"schedule": "off"}, "limit": 1}, **common)
    curve = {"schedule": "linear", "every": 1, "examples": 4}
    watched = trajectory(tmp_path / "b", evaluate={"forgetting_curve": curve}, **common)
    assert len(watched.record["curves"]) == 3 + 4 + 8  # own ends; task 1 during tasks 2 and 3, task 2 during 3
    assert watched.losses == blind.losses
    assert watched.weights == blind.weights


def test_law_5_the_global_generator_is_not_drawn_from(tmp_path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    trajectory(tmp_path, strategies={"replay": {"buffer_size": 5}}, objective=RFT)
    assert torch.equal(torch.random.get_rng_state(), before)


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
    *((name, {"name": "sft"}, needed_adapter(name)) for name in NAMES),
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


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
@pytest.mark.parametrize("name", [None, *NAMES])
def test_law_7_the_seed_decides(name, objective, tmp_path):
    changes = {"strategies": {name: {}} if name else {}, "objective": objective}
    first = trajectory(tmp_path / "a", **changes, seed=1)
    again = trajectory(tmp_path / "b", **changes, seed=1)
    other = trajectory(tmp_path / "c", **changes, seed=2)
    assert comparable(first.record) == comparable(again.record)
    assert first.weights == again.weights
    assert first.weights != other.weights


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


class Draws(Strategy):
    """Draws from its own generator and does nothing with it."""

    def batches(self, model, task, batches):
        torch.rand(7, generator=task.generator(self.name))
        return batches

    def after_task(self, model, task):
        torch.rand(5, generator=task.generator(self.name))
        return model


@pytest.mark.parametrize("name", NAMES)
def test_law_7_another_part_does_not_change_the_draws(name, tmp_path):
    settings = {"buffer_size": 5} if STRATEGIES.get(name, "test").tags.needs_examples else {}
    alone = trajectory(tmp_path / "a", strategies={name: settings})
    config = tiny_config(strategies={name: settings})
    config["methods"] = {"m": {"strategies": {"draws": Draws()}}}
    beside = Trajectory(Run(load_run(config, method="m"), tmp_path / "b", None))
    assert beside.losses == alone.losses
    assert beside.weights == alone.weights


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


@pytest.mark.parametrize("name", NAMES)
def test_law_10_state_is_plain_data(name, tmp_path):
    strategy = trajectory(tmp_path, strategies={name: {}}).run.strategy
    tensors = {}
    plain = to_plain(strategy.state(), tensors)
    fresh = type(strategy)(strategy.config)
    fresh.load_state(from_plain(plain, tensors))
    assert to_plain(fresh.state(), {}) == plain
    assert plain != to_plain(type(strategy)(strategy.config).state(), {}), "the state says nothing"


def test_law_10_what_is_not_plain_is_refused():
    with pytest.raises(TypeError, match=r"state.a.1: set is not plain data"):
        to_plain({"a": [1, {2}]}, {})
