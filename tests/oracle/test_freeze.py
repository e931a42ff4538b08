"""Freezing: what is frozen is bit-equal, what is not moves, and nothing frozen is sequential training."""

import pytest
from pieces import ask, equal, task_view, tiny_model, weights_of

from cl_toolkit import run
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.strategies.freeze import Freeze
from cl_toolkit.study.cells import load_run
from cl_toolkit.study.plan import fitting

BASE = {
    "stream": {
        "name": "skills",
        "tasks": ["max", "last"],
        "length": 3,
        "train_size": 24,
        "test_size": 4,
        "valid_size": 4,
    },
    "model": {"name": "tiny-lm", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "warmup": None},
    "train": {"max_steps": 4, "global_batch_size": 4, "learning_rate": 1.0e-2},
    "evaluate": {"forgetting_curve": {"schedule": "off"}},
}


def weights_after(settings, tasks, tmp_path, **more):
    """The trained weights after so many tasks, by name."""
    import cl_toolkit as cl

    folder = tmp_path / f"{tasks}"
    stream = {**BASE["stream"], "tasks": BASE["stream"]["tasks"][:tasks]}
    config = {**BASE, "stream": stream, "strategies": {"freeze": settings}, **more}
    run(config, out=folder)
    return weights_of(cl.load_model(folder)[0])


@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({"layers": 2}, ("embed_tokens", "lm_head", "layers.0.", "layers.1.")),
        ({"layers": 2, "embeddings": False}, ("layers.0.", "layers.1.")),
        ({"from_task": 2}, ("embed_tokens", "lm_head")),
    ],
)
def test_what_is_frozen_stays_from_the_second_task_on(settings, still, tmp_path):
    first, second = (weights_after(settings, n, tmp_path) for n in (1, 2))
    assert first.keys() == second.keys()
    same = {name for name in first if equal({"": first[name]}, {"": second[name]})}
    assert same == {name for name in first if any(part in name for part in still)}


def test_the_first_task_may_be_frozen_too_and_later_ones_left():
    model = tiny_model()
    for from_task, index, frozen in ((1, 0, True), (2, 0, False), (3, 1, False), (3, 2, True)):
        model.requires_grad_(True)
        Freeze(Freeze.Config(from_task=from_task)).before_task(model, task_view([ask("a", "b")], index=index))
        assert model.get_input_embeddings().weight.requires_grad == (not frozen)


def test_more_layers_than_there_are():
    with pytest.raises(
        UserError, match=r"strategies\.freeze: layers: expected at most 1, as many as the model has, got 9"
    ):
        Freeze(Freeze.Config(layers=9)).before_task(tiny_model(), task_view([ask("a", "b")]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategies": {"freeze": {"layers": 1, "from_task": 2}}}, ""),
        (
            {"strategies": {"freeze": {"layers": 1, "from_task": 3}}},
            "strategies.freeze does nothing: it begins in task 3",
        ),
        ({"train": {"lr_per_stage": [1.0, 0.5]}}, ""),
        ({"train": {"lr_per_stage": [1.0, 0.5, 0.2]}}, "train.lr_per_stage is for 3 tasks"),
        ({"train": {"lr_per_stage": [1.0, 0.5, 0.2]}, "stream": {"view": "start"}}, ""),
        (
            {"model": {"adapter": {"r": 2, "between_tasks": "merge", "per_task": {"r": [2, 2, 1]}}}},
            "model.adapter.per_task is for 3 tasks",
        ),
    ],
)
def test_what_lies_beyond_the_streams_end_is_said(changes, said):
    merged = {**BASE, **{key: {**BASE.get(key, {}), **value} for key, value in changes.items()}}
    config = load_run(merged)
    notes = [note for note in fitting(config, build_stream(config)) if "the last one is task" in note]
    assert notes == ([f"{said}, and the last one is task 2"] if said else [])


def test_nothing_is_left_to_train():
    """Said in the first task, which would have been learned in vain."""
    model = tiny_model()
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    with pytest.raises(UserError, match="nothing is left to train"):
        Freeze().before_task(model, task_view([ask("a", "b")]))


@pytest.mark.parametrize(
    "beside",
    [
        {"replay": {}},
        {"lwf": {}},
        {"agem": {"memory_batch_size": 4}},
        {"ewc": {}},
        {"si": {}},
        {"ogd": {"examples": 2}},
    ],
)
def test_it_composes(beside, tmp_path):
    stream = {**BASE["stream"], "tasks": ["max", "last", "sort"]}
    record = run({**BASE, "stream": stream, "strategies": {"freeze": {"layers": 1}, **beside}}, out=tmp_path)
    assert record["status"] == "finished"
