"""A stream that grows: what was learned stays, what is new is trained, and the record is that of one run over all."""

import json
import shutil

import pytest
from longer import long_but
from tiny import RFT, tiny_config

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.runs import checkpoint
from cl_toolkit.runs.record import comparable
from cl_toolkit.study.cells import load_run

TASKS = ["max", "last", "sort"]
MERGED = {"adapter": {"r": 2, "lora_alpha": 4, "between_tasks": "merge"}}
STACKED = {"adapter": {"r": 2, "lora_alpha": 4, "between_tasks": "stack"}}
CURVE = {"schedule": "linear", "every": 1, "examples": 3}
CASES = {
    "plain": {},
    "all": {"evaluate": {"tasks": "all"}, "checkpoint": {"keep": "all"}},
    "replay + ewc": {"strategies": {"replay": {}, "ewc": {}}},
    "merged": {"model": MERGED},
    "merged all": {"model": MERGED, "evaluate": {"tasks": "all"}, "checkpoint": {"keep": "all"}},
    "stacked": {"model": STACKED, "strategies": {"o_lora": {}}},
    "lwf": {"strategies": {"lwf": {}}},
    "si": {"strategies": {"si": {}}},
    "magmax": {"strategies": {"merge": {"method": "magmax"}}},
    "ema": {"strategies": {"ema": {}}},
    "lwf start": {"strategies": {"lwf": {"teacher": "start"}}},
    "rft": {"objective": RFT},
    "cumulative": {"stream": {"view": "cumulative"}},
    "independent": {"stream": {"view": "independent"}},
    "start": {"stream": {"view": "start"}},
    "anchors": {"stream": {"anchors": ["reverse"]}, "strategies": {"replay": {}}},
}


def config(tasks=TASKS, **changes):
    changes["stream"] = {"tasks": tasks, **changes.get("stream", {})}
    changes["evaluate"] = {"tasks": "seen", "forgetting_curve": CURVE, **changes.get("evaluate", {})}
    return tiny_config(**changes)


def result(folder):
    """The record, the answers, and the last weights."""
    record = json.loads((folder / "record.json").read_text())
    record.pop("checksum")  # over the clock too
    answers = {path.name: path.read_text() for path in sorted((folder / "answers").iterdir())}
    newest = sorted((folder / "checkpoints").glob("task-*"))[-1:] if (folder / "checkpoints").is_dir() else []
    return comparable(record), answers, [checkpoint.load(path)[1] for path in newest]


def same(mine, other):
    assert mine[0].keys() == other[0].keys()
    for key, value in mine[0].items():
        assert value == other[0][key], key
    assert mine[1] == other[1]
    for a, b in zip(mine[2], other[2], strict=True):
        assert a.keys() == b.keys()
        assert all(a[name].equal(b[name]) for name in a)


OFTEN = ("all", "replay + ewc", "stacked", "rft", "start", "anchors")


@pytest.mark.parametrize("name", long_but(OFTEN, CASES))
def test_the_record_is_that_of_one_run_over_all(name, tmp_path):
    whole = cl.run(config(**CASES[name]), out=tmp_path / "whole")
    for upto in (1, 2, 3):
        record = cl.run(config(TASKS[:upto], **CASES[name]), out=tmp_path / "grown")
        assert record["tasks"] == TASKS[:upto]
    assert record["cost"]["steps"] == whole["cost"]["steps"]
    if record["stages"]:  # what is never trained has no checkpoint to go on from
        assert "resumed" in record["provenance"]
        events = (tmp_path / "grown" / "events.jsonl").read_text().count('"task_began"')
        assert events == 3, "each task is trained once"
    same(result(tmp_path / "grown"), result(tmp_path / "whole"))


def refused(folder, tasks=TASKS, **changes):
    with pytest.raises(UserError) as error:
        cl.run(config(tasks, **changes), out=folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_the_same_run_with_more_tasks_is_refused(tmp_path):
    folder = tmp_path / "run"
    cl.run(config(TASKS[:2]), out=folder)
    before = (folder / "record.json").read_bytes()
    assert "other tasks: task 1 is max there, last here" in refused(folder, ["last", "max", "sort"])
    assert "other tasks: task 2 is last there, sort here" in refused(folder, ["max", "sort", "last"])
    assert "train.learning_rate: 0.01 there, 0.02 here" in refused(folder, train={"learning_rate": 2e-2})
    assert "stream.train_size: 12 there, 13 here" in refused(folder, stream={"train_size": 13})
    assert "stream.tasks" in refused(folder, TASKS[:1])
    assert (folder / "record.json").read_bytes() == before


def test_joint_training_on_more_tasks_is_another_run(tmp_path):
    cl.run(config(TASKS[:2], stream={"view": "joint"}), out=tmp_path)
    assert "another stage 2: made_of" in refused(tmp_path, stream={"view": "joint"})


def test_a_row_that_asks_for_new_tasks_needs_its_weights(tmp_path):
    everything = {"evaluate": {"tasks": "all"}}
    cl.run(config(TASKS[:2], **everything), out=tmp_path / "run")
    said = refused(tmp_path / "run", **everything)
    assert "row 1 of its matrix asks for sort too" in said
    assert "evaluate.tasks: seen, or with checkpoint.keep: all" in said


def test_without_checkpoints_nothing_is_trained_anew_in_silence(tmp_path):
    cl.run(config(TASKS[:2]), out=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert "its checkpoints are gone" in refused(tmp_path)


def test_probes_that_looked_at_all_tasks_do_not_grow(tmp_path):
    drift = {"evaluate": {"probes": {"drift": {"examples": 2}}}}
    cl.run(config(TASKS[:2], **drift), out=tmp_path)
    assert "evaluate.probes look at all tasks from the start" in refused(tmp_path, **drift)


def test_a_stopped_run_on_fewer_tasks_goes_on_with_more(tmp_path):
    from tiny import stop_after_a_task

    from cl_toolkit.runs.run import Run

    stop_after_a_task(Run(load_run(config(TASKS[:2])), tmp_path / "grown", None))
    cl.run(config(), out=tmp_path / "grown")
    cl.run(config(), out=tmp_path / "whole")
    same(result(tmp_path / "grown"), result(tmp_path / "whole"))


def test_growing_may_be_stopped_too(tmp_path):
    """Where the new tasks are asked about at old rows, before the first of them is learned."""
    from cl_toolkit.runs.events import TaskBegan
    from cl_toolkit.runs.run import Run

    class Stop(Exception):
        pass

    def stop(event):
        if isinstance(event, TaskBegan):
            raise Stop

    cl.run(config(TASKS[:2], **CASES["all"]), out=tmp_path / "grown")
    run = Run(load_run(config(**CASES["all"])), tmp_path / "grown", None)
    run.events.listeners.append(stop)
    with pytest.raises(Stop):
        run.execute()
    cl.run(config(**CASES["all"]), out=tmp_path / "grown")
    cl.run(config(**CASES["all"]), out=tmp_path / "whole")
    same(result(tmp_path / "grown"), result(tmp_path / "whole"))
