"""A stream is read once in a process, and again where what it holds has changed."""

import json
import os

import pytest

from cl_toolkit.benchmarks.jsonl import Jsonl
from cl_toolkit.benchmarks.skills import Skills
from cl_toolkit.data import streams
from cl_toolkit.data.facts import task_hash
from cl_toolkit.data.streams import build_stream, has_version
from cl_toolkit.runs.identity import identity
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Example, Message, Task


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "READ", {})
    for name in "ab":
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            lines = [json.dumps({"input": f"{name} {i}", "target": f"{split} {i}"}) for i in range(3)]
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def config_of(folder, **stream):
    return load_run({"stream": {"name": "jsonl", "path": str(folder), "tasks": ["a", "b"], **stream}})


def test_it_is_read_once_for_all_orders_and_views(folder, monkeypatch):
    read = []
    plain = Jsonl.tasks
    monkeypatch.setattr(
        Jsonl, "tasks", lambda self, names, prompt: read.extend([names] if names else []) or plain(self, names, prompt)
    )
    first = build_stream(config_of(folder))
    hashes = [task_hash(task) for task in first.tasks]
    turned = build_stream(config_of(folder, order=["b", "a"]))
    assert turned.tasks[1] is first.tasks[0]
    assert [task_hash(task) for task in turned.tasks] == hashes[::-1]
    build_stream(config_of(folder, view="joint"))
    build_stream(config_of(folder, limit={"train": 1}))
    assert read == [["a", "b"]]
    build_stream(config_of(folder, tasks=["a"]))
    assert read == [["a", "b"], ["a"]]


def test_an_edit_of_the_same_size_and_time_is_seen(folder):
    file = folder / "b" / "train.jsonl"
    before, known = file.stat(), identity(config_of(folder), build_stream(config_of(folder)))["data"]
    file.write_text(file.read_text().replace("train 1", "train 7"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    stream = build_stream(config_of(folder))
    assert [e.target for e in stream.tasks[1].train] == ["train 0", "train 7", "train 2"]
    now = identity(config_of(folder), stream)["data"]
    assert now["a"] == known["a"]
    assert now["b"] != known["b"]


def test_a_split_that_comes_and_goes_is_seen(folder):
    assert not build_stream(config_of(folder)).tasks[0].valid
    (folder / "a" / "valid.jsonl").write_text('{"input": "q", "target": "t"}')
    assert len(build_stream(config_of(folder)).tasks[0].valid) == 1
    (folder / "a" / "valid.jsonl").unlink()
    assert not build_stream(config_of(folder)).tasks[0].valid


def test_an_edit_while_it_is_read_is_read_again(folder, monkeypatch):
    file, plain = folder / "a" / "train.jsonl", Jsonl.tasks

    def edited(self, names, prompt):
        tasks = [streams.in_memory(task) for task in plain(self, names, prompt)]
        file.write_text('{"input": "new", "target": "new"}')
        return tasks

    with monkeypatch.context() as patch:
        patch.setattr(Jsonl, "tasks", edited)
        assert build_stream(config_of(folder)).tasks[0].train[0].target == "train 0"
    assert build_stream(config_of(folder)).tasks[0].train[0].target == "new"


class Counted(Skills):
    """A guest's stream that depends on more than its settings, and does not say so."""

    calls = 0

    def tasks(self, names, prompt=None, repeat=False):
        Counted.calls += 1
        one = (Example(id=f"{names[0]}/{Counted.calls}", messages=(Message(role="user", content="q"),), target="a"),)
        return [Task(name=name, train=one, test=()) for name in names]


def test_a_guest_is_asked_each_time_unless_it_says_what_it_depends_on():
    assert has_version(Skills)
    assert not has_version(Counted)
    config = load_run({"stream": {"name": f"{__name__}:Counted", "tasks": ["max"]}})
    for wanted in (1, 2):
        assert streams.read_tasks(config, ["max"])[0].train[0].id == f"max/{wanted}"


def test_few_readings_are_kept(folder):
    for i in range(2 * streams.KEPT):
        build_stream(config_of(folder, tasks=["a"] if i % 2 else ["b"]))
        (folder / "a" / "train.jsonl").write_text(json.dumps({"input": f"q {i}", "target": "t"}))
    assert len(streams.READ) <= streams.KEPT
