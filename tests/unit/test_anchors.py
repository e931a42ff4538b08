"""Anchors, whatever the view, the adapter and the strategy: a run finishes, or its config is refused."""

import pytest
from files import write_rows
from longer import AT_EACH_HOOK, long_but
from tiny import TINY, Run, Trajectory, tiny_config, trajectory

from cl_toolkit import UserError
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.study import budget
from cl_toolkit.study.cells import load_run, load_study
from cl_toolkit.study.compare import compare

SMALL = {"ewc": {"fisher_examples": 2}}
VIEWS = (None, "joint", "cumulative")


def changes(view, life, name):
    adapter = {"r": 2, "lora_alpha": 4, "between_tasks": life}
    return {
        "stream": {
            "anchors": ["sort"],
            "tasks": ["max"],
            "view": view,
            "train_size": 4,
            "valid_size": 1,
            "test_size": 1,
        },
        "model": {**TINY, "adapter": adapter} if life else TINY,
        "strategies": {name: SMALL.get(name, {})},
        "train": {"max_steps": 1, "global_batch_size": 2},
        "evaluate": {"max_new_tokens": 1},
    }


@pytest.mark.parametrize("life", [None, "continue", "merge", "stack"])
@pytest.mark.parametrize("name", long_but((*AT_EACH_HOOK, "guard"), STRATEGIES.names()))
def test_a_run_with_anchors_finishes_or_is_refused(tmp_path, name, life):
    for view in VIEWS:
        try:
            load_run(tiny_config(**changes(view, life, name)))
        except UserError:
            continue
        assert trajectory(tmp_path / str(view), **changes(view, life, name)).record["status"] == "finished"


def test_importances_of_an_anchor_have_no_place_in_an_adapter():
    with pytest.raises(UserError, match=r"stream\.anchors: strategies\.ewc looks at trained weights"):
        load_run(tiny_config(**changes(None, "continue", "ewc")))
    load_run(tiny_config(**changes(None, None, "ewc")))


def rows(folder, **splits):
    for place, count in splits.items():
        task, split = place.split("_")
        write_rows(folder / task / f"{split}.jsonl", [{"input": f"{task} {i}", "target": "y"} for i in range(count)])


def test_an_anchor_needs_no_training_rows_and_is_no_task_where_none_is_named(tmp_path):
    rows(tmp_path, a_train=4, a_test=2, b_train=4, b_test=2, c_test=2)
    plain = tiny_config(**changes(None, None, "replay"))
    plain["stream"] = {"name": "jsonl", "path": str(tmp_path), "tasks": None, "anchors": ["c"]}
    record = Trajectory(Run(load_run(plain), tmp_path / "run", None)).record
    assert [stage["task"] for stage in record["stages"]] == ["a", "b"]
    assert [len(row) for row in record["anchor_matrix"]] == [1, 1, 1]
    assert record["cost"]["stored_examples"] == 8  # of a and b
    for anchors, said in (([], "task c: has no training examples"), (["a", "b", "c"], "none is left to learn")):
        plain["stream"]["anchors"] = anchors
        with pytest.raises(UserError, match=said):
            Run(load_run(plain), tmp_path / "other", None)


def test_rehearsal_of_anchors_alone_is_refused_where_none_has_anything_to_rehearse(tmp_path):
    rows(tmp_path, a_train=4, a_test=2, c_test=2, d_train=2, d_test=2)
    plain = tiny_config(**changes(None, None, "replay"))
    plain["strategies"] = {"replay": {"source": "general"}}
    plain["stream"] = {"name": "jsonl", "path": str(tmp_path), "tasks": ["a"], "anchors": ["c"]}
    with pytest.raises(UserError, match=r"stream\.anchors: strategies\.replay does nothing.*without training examples"):
        Run(load_run(plain), tmp_path / "run", None).execute()
    assert not budget.rehearses(0, budget.outline(load_run(plain)))
    plain["methods"] = {"sequential": {"strategies": {}}, "general": {}}
    study = load_study(plain)
    with pytest.raises(UserError, match="without training examples"):  # before the method that has nothing against it
        compare(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    del plain["methods"]
    plain["stream"]["anchors"] = ["c", "d"]
    assert budget.rehearses(0, budget.outline(load_run(plain)))
    assert Trajectory(Run(load_run(plain), tmp_path / "more", None)).record["cost"]["stored_examples"] == 2
