"""The laws of the house for every registered strategy and objective, and what the contract suite does not ask of guests."""

from itertools import combinations

import pytest
from longer import AT_EACH_HOOK, long_but
from tiny import RFT, Trajectory, anchors_for, tiny_config, tiny_run_config, trajectory

from cl_toolkit import Strategy, UserError, compose
from cl_toolkit.check.law import Broken, judge
from cl_toolkit.check.laws import LAWS
from cl_toolkit.check.suites import find_subject
from cl_toolkit.engine.session import Session
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.runs.checkpoint import to_plain
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.strategy import LIFE_CYCLES, Composed, Cost
from cl_toolkit.study.cells import load_run

NAMES = list(STRATEGIES)
ADAPTERS = [None, *({"r": 2, "lora_alpha": 4, "between_tasks": b} for b in ("continue", "merge", "stack"))]


def tags_of(name):
    return STRATEGIES.get(name, "test").tags


def works_with(objective, *names):
    """Whether an objective gives what strategies need."""
    return all(tags_of(name).needs <= OBJECTIVES.get(objective, "test").gives for name in names)


def objective_of(*names):
    """The first that they all work with, if there is any."""
    return {"name": next((o for o in OBJECTIVES if works_with(o, *names)), "sft")}


def needed_adapter(*names):
    """None, or the first adapter with which they all work, if there is any."""
    cycles = [c for c in LIFE_CYCLES if all(c in tags_of(name).life_cycles for name in names)]
    return {"r": 2, "between_tasks": cycles[0]} if cycles and cycles[0] else None


def model_of(adapter):
    return {**tiny_config()["model"], "adapter": adapter}


@pytest.fixture(scope="module")
def subject(request):
    _, found = find_subject(request.param)
    yield found
    found.close()


SEVERAL_RUNS = (5, 7, 9, 13, 14)
ASKED = [(name, number) for name in (*NAMES, *OBJECTIVES) for number in LAWS]
QUICK = {pair for pair in ASKED if pair[0] in (*AT_EACH_HOOK, *OBJECTIVES) or pair[1] not in SEVERAL_RUNS}


@pytest.mark.parametrize(("subject", "number"), long_but(QUICK, ASKED), indirect=["subject"])
def test_law(subject, number):
    result = judge(LAWS[number], subject)
    assert result.passed is not False, result.seen


EXCEPTIONS = [(name, number) for name in NAMES for number in tags_of(name).exceptions]


@pytest.mark.parametrize(("name", "number"), EXCEPTIONS)
def test_an_exception_is_needed(name, number):
    _, subject = find_subject(name)
    with pytest.raises(Broken):
        LAWS[number].test(subject)
    subject.close()


@pytest.fixture(scope="module", params=[name for name in NAMES if works_with("rft", name)])
def rewarded(request):
    _, found = find_subject(request.param)
    found.objective = RFT
    yield found
    found.close()


@pytest.mark.parametrize("number", long_but({6}, [1, 2, 6, 8]))
def test_law_when_the_task_is_learned_from_rewards(rewarded, number):
    result = judge(LAWS[number], rewarded)
    assert result.passed is not False, result.seen


@pytest.mark.parametrize("name", NAMES)
def test_switched_on_it_does_something(name, tmp_path):
    common = {"model": model_of(needed_adapter(name)), "objective": objective_of(name), "stream": anchors_for(name)}
    plain = trajectory(tmp_path / "a", **common)
    assert trajectory(tmp_path / "b", strategies={name: {}}, **common) != plain


@pytest.mark.parametrize("name", NAMES)
def test_the_tags_say_what_it_costs(name, tmp_path, monkeypatch):
    tags, adapter = tags_of(name), needed_adapter(name)
    # an adapter that goes on is nobody's: what a stack keeps beside it is for the strategy that needs a stack
    bare = model_of({**adapter, "between_tasks": "continue"} if adapter else None)
    common = {"objective": objective_of(name), "stream": anchors_for(name)}
    plain = trajectory(tmp_path / "a", model=bare, **common).record["cost"]
    run = Run(tiny_run_config(model=model_of(adapter), strategies={name: {}}, **common), tmp_path / "b", None)
    rows, after = passing(run, monkeypatch)
    cost = run.execute()["cost"]
    assert (cost["extra_forwards"] > plain["extra_forwards"]) == (tags.cost.forwards > 0)
    assert (cost["extra_backwards"] > plain["extra_backwards"]) == (tags.cost.backwards > 0)
    assert (max(rows) > run.config.train.global_batch_size) == (tags.cost.rows > 0)
    assert bool(after) == (tags.cost.after_task + tags.cost.read_after + tags.cost.looks > 0)
    assert (cost["stored_examples"] > 0) == tags.needs_examples
    assert (cost["extra_parameters"] > plain["extra_parameters"]) == (
        bool(tags.extra_memory) and not tags.needs_examples
    )


def passing(run, monkeypatch):
    """(rows of each batch, forwards in `after_task`): lists that fill while the run goes on."""
    rows, after = [], []
    share, after_task = Session.share, run.strategy.after_task

    def sharing(self, examples):
        rows.append(len(examples))
        return share(self, examples)

    def listening(model, task):
        hook = model.register_forward_pre_hook(lambda *_: after.append(task.name))
        try:
            return after_task(model, task)
        finally:
            hook.remove()

    monkeypatch.setattr(Session, "share", sharing)
    run.strategy.after_task = listening
    return rows, after


@pytest.mark.parametrize("name", NAMES)
def test_what_it_costs_is_said_once_and_follows_the_settings(name):
    cls = STRATEGIES.get(name, "test")
    assert cls().cost(32) == cls.tags.cost
    assert cls(cls.Config(**cls.tags.off)).cost(32) == Cost()


@pytest.mark.parametrize("name", [name for name in NAMES if not works_with("rft", name)])
def test_an_objective_that_cannot_work_is_refused(name):
    use = " or ".join(o for o in OBJECTIVES if works_with(o, name))
    lacking = " and ".join(sorted(tags_of(name).needs - OBJECTIVES.get("rft", "test").gives))
    needs = rf"strategies\.{name}: needs {lacking}, which objective rft does not give; use {use}$"
    with pytest.raises(UserError, match=needs):
        tiny_run_config(strategies={name: {}}, objective=RFT)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: str(adapter and adapter["between_tasks"]))
@pytest.mark.parametrize("name", NAMES)
def test_a_life_cycle_that_cannot_work_is_refused(name, adapter):
    config = {"strategies": {name: {}}, "model": model_of(adapter), "objective": objective_of(name)}
    config["stream"] = anchors_for(name)
    cycle = adapter and adapter["between_tasks"]
    if cycle in tags_of(name).life_cycles:
        assert tiny_run_config(**config)
        return
    needs = rf"strategies\.{name}: needs model\.adapter\.between_tasks: .*; got {cycle or 'no adapter'}$"
    with pytest.raises(UserError, match=needs):
        tiny_run_config(**config)


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


DROPOUT = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.3, "between_tasks": "continue"}
RESUMED = [
    (None, {"name": "sft"}, None),
    (None, {"name": "sft"}, DROPOUT),
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
    assert compose(pull) is pull
    assert isinstance(compose(), Composed)
    assert compose().parts == ()


def test_law_8_a_name_taken_twice_is_refused():
    with pytest.raises(UserError, match="pull is there twice"):
        compose(Pull(), Pull())


def refusal(a, b):
    """Why two strategies cannot work together, as their tags say; None where they can."""
    if both := tags_of(a).owns & tags_of(b).owns:
        return f"cannot be used together: only one of them can own {next(iter(both))}"
    if not set(tags_of(a).life_cycles) & set(tags_of(b).life_cycles):
        return "cannot be used together: one needs model.adapter.between_tasks: "
    if anchors_for(a, b) and needed_adapter(a, b) and any(tags_of(name).needs_trained for name in (a, b)):
        return "looks at trained weights, and an anchor comes before the adapter"
    return None if any(works_with(o, a, b) for o in OBJECTIVES) else "no objective gives all that "


@pytest.mark.parametrize(("a", "b"), list(combinations(NAMES, 2)))
def test_law_8_a_pair_may_run_or_is_refused_by_name(a, b):
    """That it works is shown in test_order.py, where it runs both ways."""
    config = {"strategies": {a: {}, b: {}}, "model": model_of(needed_adapter(a, b)), "objective": objective_of(a, b)}
    config["stream"] = anchors_for(a, b)
    if why := refusal(a, b):
        with pytest.raises(UserError, match=f"{a}.*{b}|{b}.*{a}") as refused:
            tiny_run_config(**config)
        assert why in str(refused.value)
    else:
        assert set(tiny_run_config(**config).plain["strategies"]) == {a, b}


PAIRS = [
    ("power_law", "reg_lora", {"sft"}, {"sft", "reg_lora"}),
    ("ewc", "replay", {"sft"}, {"sft", "ewc"}),
    ("o_lora", "replay", {"sft"}, {"sft", "o_lora"}),
    ("logit_swap", "power_law", {"sft", "logit_swap"}, {"sft", "logit_swap"}),
]


@pytest.mark.parametrize(("a", "b", "first", "second"), PAIRS)
def test_law_8_both_of_a_pair_are_at_work(a, b, first, second, tmp_path):
    common = {"model": model_of(needed_adapter(a, b))}
    both = trajectory(tmp_path / "both", strategies={a: {}, b: {}}, **common)
    assert [set(terms) for terms in both.losses] == [first] * 4 + [second] * 4
    assert all(both.losses[-1][term] > 0 for term in second)
    assert both.record["cost"]["stored_examples"] == 24
    for name in (a, b):
        assert both != trajectory(tmp_path / name, strategies={name: {}}, **common)


def test_law_10_what_is_not_plain_is_refused():
    with pytest.raises(TypeError, match=r"state.a.1: set is not plain data"):
        to_plain({"a": [1, {2}]}, {})
