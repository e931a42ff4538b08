"""State on disk: whole, checked, and never half written."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from pieces import ask
from tiny import Trajectory, stop_after_a_task, tiny_run_config, trajectory

from cl_toolkit import UserError
from cl_toolkit.runs import checkpoint
from cl_toolkit.runs.checkpoint import distinct, load, newest, replace_file, save, write_json
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run, execute

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16)}
STATE = {
    "numbers": [1, 2.5, -0.0, True, None],
    "text": "Größe 🎈",
    "nested": {"tensor": torch.arange(4), "list": [torch.ones(2, 2), {"deep": torch.tensor(3)}]},
    "empty": {},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b and type(a) is type(b)


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "task-1", STATE, WEIGHTS)
    state, weights = load(tmp_path / "task-1")
    assert same(state, STATE)
    assert same(weights, WEIGHTS)
    assert not any(p.suffix in (".pkl", ".pt", ".bin") for p in (tmp_path / "task-1").iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_found(tmp_path, name, damage):
    save(tmp_path / "task-1", STATE, WEIGHTS)
    path = tmp_path / "task-1" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-1]))
    with pytest.raises(UserError) as error:
        load(tmp_path / "task-1")
    assert name in str(error.value)
    assert "delete" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_damaged_checksums_are_found(tmp_path, content):
    save(tmp_path / "task-1", STATE, WEIGHTS)
    (tmp_path / "task-1" / "checksums.json").write_text(content)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load(tmp_path / "task-1")


@pytest.mark.parametrize("when", ["safetensors.torch.save_file", "cl_toolkit.runs.checkpoint.file_hash"])
def test_an_interrupted_write_leaves_the_old_one(tmp_path, monkeypatch, when):
    save(tmp_path / "task-1", STATE, WEIGHTS)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(when, fail)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "task-1", {"other": 1}, {})
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "task-2", {"other": 1}, {})
    monkeypatch.undo()
    assert same(load(tmp_path / "task-1")[0], STATE)
    assert newest(tmp_path).name == "task-1"
    save(tmp_path / "task-2", {"other": 1}, {})  # what was left over is not in the way
    assert load(tmp_path / "task-2")[0] == {"other": 1}


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})

    def half(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_tensors_that_share_memory_or_look_alike_by_name_are_kept_apart(tmp_path):
    whole = torch.arange(6.0)
    state = {
        "a": {"b": whole},
        "a.b": torch.ones(1),
        "same": whole,
        "slice": whole[2:4],
        "column": whole.view(2, 3)[:, 1],
    }
    save(tmp_path / "task-1", state, {})
    assert same(load(tmp_path / "task-1")[0], state)


def test_tied_weights_are_written_once():
    tied = torch.ones(2, 2)
    kept = distinct({"embed": tied, "head": tied, "view": tied.view(4), "empty": torch.ones(0), "other": torch.ones(0)})
    assert list(kept) == ["embed", "view", "empty", "other"]


def test_the_newest_is_by_number(tmp_path):
    assert newest(tmp_path) is None
    for name in ("task-9", "task-10", "task-11.tmp", "task-x", "other-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checksums.json").write_text("{}")
    (tmp_path / "task-12").mkdir()  # half deleted: the checksums go first
    assert newest(tmp_path).name == "task-10"


def stopped_after_one(folder, **changes):
    run = Run(tiny_run_config(**changes), folder, None)
    stop_after_a_task(run)
    return folder / "checkpoints" / "task-1"


def test_a_run_with_a_damaged_checkpoint_says_so(tmp_path):
    path = stopped_after_one(tmp_path)
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        execute(tiny_run_config(), tmp_path)
    shutil.rmtree(path)
    assert execute(tiny_run_config(), tmp_path)["status"] == "finished"


def test_a_run_does_not_go_on_from_another_config(tmp_path):
    stopped_after_one(tmp_path)
    with pytest.raises(UserError, match=r"another config: train.learning_rate: 0.01 there, 0.5 here"):
        execute(tiny_run_config(train={"learning_rate": 0.5}), tmp_path)


def test_prompts_that_were_cut_are_counted_over_a_stop_too(tmp_path):
    """Each training and test prompt is longer than allowed; those of the first task are not met again after it."""
    changes = {"prompt": {"max_prompt_length": 8}, "evaluate": {"tasks": "seen", "limit": 2}}
    whole = trajectory(tmp_path / "whole", **changes).record
    assert whole["truncated_prompts"] > 12
    stopped_after_one(tmp_path / "stopped", **changes)
    resumed = execute(tiny_run_config(**changes), tmp_path / "stopped")
    assert comparable(resumed) == comparable(whole)


@pytest.mark.parametrize("keep", ["last", "all"])
def test_which_checkpoints_are_kept(tmp_path, keep):
    trajectory(tmp_path, checkpoint={"keep": keep})
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == (["task-2"] if keep == "last" else ["task-1", "task-2"])


def test_of_the_streams_examples_a_checkpoint_has_the_ids_alone(tmp_path):
    changes = {"strategies": {"replay": {"buffer_size": 8}}, "train": {"max_steps": 2}}
    whole = trajectory(tmp_path / "whole", **changes)
    stop_after_a_task(Run(tiny_run_config(**changes), tmp_path / "stopped", None))
    place = tmp_path / "stopped/checkpoints/task-1"
    stored = json.loads((place / "state.json").read_text())["strategy"]["store"]["items"]
    again = Run(tiny_run_config(**changes), tmp_path / "stopped", None)
    ids = {e.id for task in again.stream.tasks for e in task.train}
    assert len(stored) == 8
    assert all(task == 0 and e == {checkpoint.EXAMPLE: e[checkpoint.EXAMPLE]} for task, e in stored)
    assert {e[checkpoint.EXAMPLE] for _, e in stored} <= ids
    resumed = Trajectory(again)
    assert resumed == whole
    assert all(e is again.examples[e.id] for _, e in again.strategy.store.items)


def test_an_example_that_is_not_the_streams_own_is_kept_whole(tmp_path):
    own = ask("q", "a", "one", choices=("a", "b"), extra={"n": [1]})
    other = replace(own, target="b", extra={"logits": torch.arange(3.0)})
    state = {"items": [[0, own], [1, other]]}
    checkpoint.save(tmp_path / "task-1", state, {}, {"one": own})
    found = checkpoint.load(tmp_path / "task-1", {"one": own})[0]["items"]
    assert found[0][1] is own
    assert torch.equal(found[1][1].extra["logits"], torch.arange(3.0))
    assert replace(found[1][1], extra={}) == replace(other, extra={})
    assert checkpoint.load(tmp_path / "task-1")[0]["items"][0][1] == {checkpoint.EXAMPLE: "one"}
