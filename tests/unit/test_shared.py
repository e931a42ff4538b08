"""What the runs of a comparison have in common is done once, and nobody can tell by the numbers."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from pieces import Back
from tiny import Trajectory, anchors_for, tiny_config, tiny_run_config

from cl_toolkit import UserError
from cl_toolkit.data.streams import build_stream
from cl_toolkit.measure.answers import Answers
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.runs import forks
from cl_toolkit.runs.identity import identity
from cl_toolkit.runs.parts import parts_of
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run, execute
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.compare import compare

ARMS = {
    "sequential": {},
    "replay": {"strategies": {"replay": {}}},
    "merge": {"strategies": {"merge": {}}},
    "si": {"strategies": {"si": {}}},
    "faster": {"strategies": {"replay": {}}, "train": {"learning_rate": 1.0e-3}},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison, its records by name, and how often a pass over rows of its matrices was made."""
    passes, ask = [], Answers.__call__

    def counting(self, model, requests):
        passes.append(len(requests))
        return ask(self, model, requests)

    folder = tmp_path_factory.mktemp("study")
    study = load_study(tiny_config(evaluate={"tasks": "all"}), methods=ARMS, seeds=[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answers, "__call__", counting)
        found, failures = compare(study, folder)
    assert not failures
    return folder, study, {record["method"]: record for record in found.records}, passes


def test_a_run_that_shares_is_that_run_alone(done, tmp_path):
    _, study, records, _ = done
    for config in study.runs:
        alone = execute(config, tmp_path / config.method)
        assert comparable(alone) == comparable(records[config.method])
        assert alone["reused"] == {}
        for name in alone["answers"]:
            told = [(f / "answers" / name).read_bytes() for f in (tmp_path / config.method, run_folder(done, config))]
            assert told[0] == told[1]


def run_folder(done, config):
    return done[0] / "runs" / config.method / "given-s0"


def test_who_goes_on_from_whose_first_task(done):
    records = done[2]
    assert {name: record["reused"].get("from") for name, record in records.items()} == {
        "sequential": None,
        "replay": "sequential/given-s0",
        "merge": "sequential/given-s0",
        "si": None,  # looks at each step
        "faster": None,
    }
    for name in ("replay", "merge"):
        reused, spent = records[name]["reused"]["compute_seconds"], records[name]["cost"]["compute_seconds"]
        assert 0 < reused < spent["train"] + spent["curves"]  # it stands in what the method costs


def test_equal_models_are_asked_once(done):
    """Five arms with three rows each: the start model is asked once. After the first task the model is the same for the three
    that trained it alike but for merge, whose is another one; each row is asked about both tasks."""
    rows = len({n for record in done[2].values() for n in record["answers"]})
    assert rows == 3
    assert len(done[3]) == 5 * 3 - 4 - 2  # sequential, replay and si are one model after the first task


def test_nothing_large_stays(done):
    assert not (done[0] / "shared" / "forks").exists()
    assert sum(p.stat().st_size for p in (done[0] / "shared").rglob("*.json")) < 100_000


def settings_of(**changes):
    config = tiny_run_config(**changes)
    stream = build_stream(config)
    return forks.key_of(config, stream, identity(config, stream))


def test_which_trainings_are_the_same():
    plain = settings_of()
    assert plain is not None
    same = [
        {"strategies": {"replay": {"replay_fraction": 0.2}}},
        {"strategies": {"replay": {}, "o_lora": {}}, "model": STACK},
        {"checkpoint": {"keep": "all"}},
        {"stream": {"tasks": ["max", "sort"]}},
    ]
    assert [settings_of(**changes) == plain for changes in same] == [True, False, True, True]
    assert settings_of(**same[1]) == settings_of(model=STACK)
    others = [
        {"train": {"learning_rate": 1.0e-3}},
        {"seed": 1},
        {"stream": {"tasks": ["last", "max"]}},
        {"strategies": {"lwf": {}}},  # the logits of training forwards are made for it
        {"objective": {"name": "dft"}},
    ]
    assert len({plain, *(settings_of(**changes) for changes in others)}) == 6


STACK = {**tiny_config()["model"], "adapter": {"r": 2, "between_tasks": "stack"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"strategies": {"si": {}}},
        {"strategies": {"replay": {}, "ema": {}}},
        {"stream": {"anchors": ["sort"]}},
        {"train": {"per_device_train_batch_size": "auto"}},
        {"train": {"lr_scheduler_type": "cosine", "lr_over": "stream"}},
        {"objective": {"name": "rft"}},
    ],
)
def test_what_is_nobodys_but_its_own(changes):
    assert settings_of(**changes) is None


class Louder(STRATEGIES.get("replay", "test")):
    """Inherits what `replay` says of itself, and adds a term in the first task too."""

    def loss(self, model, part, out):
        return {"louder": 0.5 * out.loss}


class Unchanged(STRATEGIES.get("replay", "test")):
    """Changes nothing that the first task could see."""

    def told(self):
        return {"n": 1}


def test_a_guest_inherits_no_word_about_what_it_changes():
    """Tags come with a class; what they say of the first task is about that class's own hooks."""
    assert not forks.forks(Louder())
    assert forks.forks(Unchanged())


def variants(name):
    """The settings of a strategy that differ from its own in one field: each other word, and some other numbers."""
    config = STRATEGIES.get(name, "test").Config
    hints = get_type_hints(config, include_extras=False)
    for field in fields(config):
        words = [arg for part in (hints[field.name], *get_args(hints[field.name])) if get_origin(part) is Literal
                 for arg in get_args(part)]  # fmt: skip
        values = words or ([not field.default] if isinstance(field.default, bool) else [0, 1])
        yield from ({field.name: value} for value in values if value != field.default)


FORKS = [name for name in STRATEGIES if STRATEGIES.get(name, "test").tags.forks]


@pytest.mark.parametrize("name", FORKS)
def test_with_which_settings_the_first_task_is_that_of_the_others(name, tmp_path):
    """For every setting of every strategy: where it says so, the losses of the first task are those without it."""
    tags = STRATEGIES.get(name, "test").tags
    life = tags.life_cycles[0]
    objective = next(o for o in OBJECTIVES if tags.needs <= OBJECTIVES.get(o, "test").gives)
    common = {
        "stream": {"tasks": ["max"], **anchors_for(name)},
        "objective": {"name": objective},
        "model": {**tiny_config()["model"], **({"adapter": {"r": 2, "between_tasks": life}} if life else {})},
    }
    alone = Trajectory(Run(tiny_run_config(**common), tmp_path / "alone")).losses
    tried, apart = 0, []
    for i, settings in enumerate(variants(name)):
        try:
            run = Run(tiny_run_config(**common, strategies={name: settings}), tmp_path / str(i))
            if not all(map(forks.forks, parts_of(run.strategy))):
                apart.append(settings)
                continue
            losses = Trajectory(run).losses
        except UserError:
            continue  # not a value of that setting
        assert losses == alone, settings
        tried += 1
    assert tried
    assert apart == APART.get(name, [])


APART = {
    "freeze": [{"from_task": 1}],
    "lwf": [{"teacher": "start"}],
    "o_lora": [{"norm_weight": 1}],
}
"""With what the first task of a strategy is one of its own."""


def test_joint_training_has_a_first_task_of_its_own():
    joint = {"stream": {"view": "joint"}}
    assert settings_of(**joint) == settings_of(**joint, strategies={"replay": {}}) != settings_of()
    assert settings_of(stream={"view": "cumulative"}) == settings_of()


def test_what_probes_have_seen_of_other_tasks_is_not_taken_over():
    """They look at tasks to come before the first is trained."""
    probes = {"evaluate": {"probes": {"drift": {"examples": 1, "max_new_tokens": 2}}}}
    orders = [settings_of(**probes, stream={"tasks": ["max", other]}) for other in ("last", "sort")]
    assert orders[0] != orders[1]
    assert orders[0] == settings_of(**probes, strategies={"replay": {}})


def test_a_damaged_first_task_is_trained_again(tmp_path):
    config, shared = tiny_run_config(strategies={"replay": {}}), tmp_path / "shared"
    run = Run(config, tmp_path / "a", shared=shared)
    key = forks.key_of(config, run.stream, run.identity)
    forks.ask_for(shared, [key, key])
    first = run.execute()
    weights = shared / "forks" / key / "first" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    again = Run(config, tmp_path / "b", shared=shared).execute()
    assert again["reused"] == {}
    assert comparable(again) == comparable(first)


def test_a_killed_comparison_leaves_no_claim(tmp_path):
    forks.ask_for(tmp_path, ["a", "a", "b", None, None])
    (tmp_path / "forks" / "a" / "claimed").touch()
    forks.ask_for(tmp_path, ["a", "a"])
    assert [p.name for p in (tmp_path / "forks").rglob("*")] == ["a"]


def test_weights_that_are_as_before_are_asked_nothing_again(tmp_path):
    config = load_study(
        tiny_config(stream={"tasks": ["max", "last", "sort"]}), methods={"back": {"strategies": {"back": Back}}}
    )
    run = Run(config.runs[-1], tmp_path)
    record = run.execute()
    assert run.asked.reused == 3
    assert record["matrix"] == [record["matrix"][0]] * 4
    rows = [(tmp_path / "answers" / f"row-{row}.jsonl").read_text() for row in range(4)]
    assert rows == [rows[0]] * 4


@pytest.mark.parametrize(
    ("changed", "asked_again"),
    [
        ({"model": {"tokenizer": "another"}}, True),  # a template or a config of the folder, beside equal weights
        ({"code": {"stream": {"from": "a.py:S", "hash": "another"}}}, True),
        ({"code": {"strategies.replay": {"from": "a.py:R", "hash": "another"}}}, False),
        ({"model": {"strategies.guard: base": "another"}}, False),
    ],
)
def test_a_model_that_was_changed_is_asked_again(tmp_path, changed, asked_again):
    """Though its weights are what they were: answers stay in the folder of a comparison."""
    config, shared = tiny_run_config(), tmp_path / "shared"
    one = Run(config, tmp_path / "one", shared=shared)
    parts = {**one.identity, **{part: {**one.identity[part], **new} for part, new in changed.items()}}
    other = Run(config, tmp_path / "other", parts=parts, shared=shared)
    requests = [request for exam in one.exams.values() for request in exam.ask()]
    for run in (one, other):
        run.asked(run.model, requests)
    assert other.asked.reused == (not asked_again)


def test_replies_that_were_left_are_those_that_were_given(tmp_path):
    """And a damaged file is asked again."""
    shared = tmp_path / "shared"
    one, other, third = (Run(tiny_run_config(), tmp_path / name, shared=shared) for name in "abc")
    requests = [r for exam in one.exams.values() for r in exam.ask()]
    said = one.asked(one.model, requests)
    (left,) = Path(shared / "answers").glob("*.json")
    assert other.asked(other.model, requests) == said == one.answers(one.model, requests)
    assert (one.asked.reused, other.asked.reused) == (0, 1)
    left.write_text(json.dumps({**json.loads(left.read_text()), "truncated": ["x"]}))
    assert third.asked(third.model, requests) == said
    assert third.asked.reused == 0
