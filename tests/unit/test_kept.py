"""A large reading is kept on disk: read once by all, the same in every respect, never trusted where it was touched."""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import stop_after_a_task

from cl_toolkit.benchmarks.jsonl import Jsonl
from cl_toolkit.data import kept, streams
from cl_toolkit.data.facts import Facts, facts_of, overlap, task_hash
from cl_toolkit.data.kept import Kept, NotPlain, keep, opened
from cl_toolkit.data.splits import Joined, Lazy, Part, ReadWhenAsked
from cl_toolkit.data.store import ExampleStore
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.models.fit import probed
from cl_toolkit.runs.run import Run, execute
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Example, Message, Task

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "READ", {})
    monkeypatch.setattr(streams, "MANY", 20)
    monkeypatch.setenv("CL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for split, size in (("train", 24), ("test", 6)):
            rows = [
                {
                    "system": "be brief" if i % 5 == 0 else None,
                    "input": f"{name} {split} " + " ".join(draw.choices(WORDS, k=3)),
                    "target": draw.choice(WORDS[:3] if name == "a" else WORDS[2:5]),
                    "choices": WORDS[:3] if name == "a" else WORDS[2:5],
                    "tools": [{"name": "é", "b": 1, "a": [None, 1.5]}] if i == 3 else None,
                }
                for i in range(size)
            ]
            (tmp_path / "data" / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data"


def config_of(folder, **changes):
    stream = {"name": "jsonl", "path": str(folder), "scorer": "choices", **changes.pop("stream", {})}
    return load_run({"stream": stream, **changes})


def both(config, monkeypatch):
    """A stream read from disk, and the same one in memory."""
    build_stream(config)
    streams.READ.clear()
    with monkeypatch.context() as patch:
        patch.setattr(streams, "read_anew", None)  # whoever reads anew fails
        on_disk = build_stream(config)
        streams.READ.clear()
    with monkeypatch.context() as patch:
        patch.setattr(streams, "MANY", 10**9)
        patch.setattr(streams, "opened", lambda folder: None)
        in_memory = build_stream(config)
        streams.READ.clear()
    return on_disk, in_memory


@pytest.mark.parametrize(
    "changes",
    [{}, {"limit": {"train": 7, "test": 2}}, {"order": ["b", "a"]}, {"view": "joint"}, {"view": "cumulative"}],
    ids=["plain", "limit", "order", "joint", "cumulative"],
)
def test_what_is_kept_is_what_was_read(folder, monkeypatch, changes):
    on_disk, in_memory = both(config_of(folder, stream=changes), monkeypatch)
    assert isinstance(on_disk.tasks[0].train, (Kept, Part))
    assert isinstance(in_memory.tasks[0].test, tuple)
    for mine, theirs in zip(on_disk.all_tasks, in_memory.all_tasks, strict=True):
        assert task_hash(mine) == task_hash(theirs)
        assert mine.answers == theirs.answers
        for split in ("train", "test"):
            assert tuple(getattr(mine, split)) == tuple(getattr(theirs, split))
            assert probed(mine, split) == probed(theirs, split)
    stages = zip(on_disk.stages, in_memory.stages, strict=True)
    assert all(list(a.task.train) == list(b.task.train) for a, b in stages)
    assert on_disk.classes == in_memory.classes
    assert overlap(on_disk.tasks) == overlap(in_memory.tasks)


def test_a_run_from_disk_is_a_run_from_memory_also_when_it_is_stopped(folder, monkeypatch, tmp_path):
    for file in folder.glob("*/*.jsonl"):  # without a chat template tools cannot be written
        file.write_text(
            "\n".join(json.dumps({**json.loads(line), "tools": None}) for line in file.read_text().split("\n"))
        )
    config = config_of(
        folder,
        model={"name": "tiny-lm", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "warmup": None},
        train={"max_steps": 3, "global_batch_size": 4},
        strategies={"replay": {"buffer_size": 9}, "ewc": {}},
        evaluate={"forgetting_curve": {"schedule": "off"}},
    )
    records = []
    for where, many in (("disk", 20), ("memory", 10**9)):
        monkeypatch.setattr(streams, "MANY", many)
        monkeypatch.setattr(streams, "opened", kept.opened if many == 20 else lambda folder: None)
        streams.READ.clear()
        if where == "disk":
            stop_after_a_task(Run(config, tmp_path / where, None))
            streams.READ.clear()
        records.append(execute(config, tmp_path / where))
    checkpoint = next((tmp_path / "disk" / "checkpoints").glob("task-*/state.json")).read_text()
    assert "a train " not in checkpoint  # rehearsed examples are named there by their ids alone
    mine, theirs = records
    for key in ("matrix", "losses", "metrics", "identity"):
        assert mine[key] == theirs[key], key


def test_an_example_that_is_held_is_not_read_again(folder):
    train = build_stream(config_of(folder)).tasks[0].train
    held = train[3]
    assert train[3] is held
    assert train[2:5][1] is held
    assert Joined([train, train])[27] is held
    assert isinstance(train[::-1], Part)
    assert train[-1] == train[23] != train[0]
    with pytest.raises(IndexError):
        train[24]


def test_an_edit_is_another_reading(folder):
    first = task_hash(build_stream(config_of(folder)).tasks[0])
    file = folder / "a" / "train.jsonl"
    file.write_text(file.read_text().replace("ant", "asp"))
    assert "asp" in build_stream(config_of(folder)).tasks[0].answers
    file.write_text(file.read_text().replace("asp", "ant"))
    streams.READ.clear()
    assert task_hash(build_stream(config_of(folder)).tasks[0]) == first


def the_reading():
    (found,) = (kept.cache_dir() / "readings").iterdir()
    return found


def test_a_damaged_line_is_refused_when_it_is_read(folder):
    train = build_stream(config_of(folder)).tasks[0].train
    rows = the_reading() / kept.ROWS
    lines = rows.read_bytes().split(b"\n")
    lines[4] = lines[4].replace(b"train", b"trait")
    rows.write_bytes(b"\n".join(lines))
    streams.READ.clear()
    train = build_stream(config_of(folder)).tasks[0].train
    assert train[3].id == "a/train/4"
    with pytest.raises(UserError, match=r"examples\.rows: example a/train/5 is damaged; delete the folder"):
        train[4]


@pytest.mark.parametrize("name", ["0-train.safetensors", "examples.rows", "tasks.json"])
def test_what_is_damaged_otherwise_is_made_anew(folder, name):
    build_stream(config_of(folder))
    (the_reading() / name).write_bytes(b"not this")
    streams.READ.clear()
    assert opened(the_reading()) is None
    stream = build_stream(config_of(folder))
    assert [len(task.train) for task in stream.tasks] == [24, 24]
    assert opened(the_reading()) is not None


@pytest.mark.skipif(os.name != "posix", reason="asks for POSIX users")
def test_another_users_reading_is_not_believed(folder, monkeypatch):
    build_stream(config_of(folder))
    monkeypatch.setattr(kept.os, "getuid", lambda: os.stat(the_reading()).st_uid + 1)
    if os.stat(the_reading()).st_uid == 0:
        pytest.skip("root is believed")
    assert opened(the_reading()) is None


@pytest.mark.skipif(os.name != "posix", reason="asks for POSIX files")
def test_the_folder_may_go_while_it_is_in_use(folder, monkeypatch):
    """Deleted by hand, by another process, or since a file was edited while it was read."""
    train = build_stream(config_of(folder)).tasks[0].train
    shutil.rmtree(the_reading())
    assert train[3].id == "a/train/4"
    streams.READ.clear()
    found = iter("12")
    monkeypatch.setattr(Jsonl, "version", lambda self, names: next(found))
    train = build_stream(config_of(folder)).tasks[0].train
    assert len(list(train)) == 24
    assert not list(kept.cache_dir().glob("readings/*"))


@pytest.mark.skipif(os.name != "posix", reason="asks for POSIX limits")
def test_many_tasks_need_few_open_files(folder):
    import resource

    for i in range(40):
        shutil.copytree(folder / "a", folder / f"a{i}")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, before[1]))
    try:
        stream = build_stream(config_of(folder))
        assert sum(len(list(getattr(task, split))) for task in stream.tasks for split in ("train", "test")) == 42 * 30
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_changed_name_in_the_index_is_noticed(folder):
    build_stream(config_of(folder))
    index = the_reading() / kept.INDEX
    index.write_text(index.read_text().replace('"choices"', '"contains"'))
    assert opened(the_reading()) is None


@pytest.mark.skipif(os.name != "posix", reason="asks for POSIX limits")
def test_a_disk_that_fills_up_is_done_without(folder):
    """Whichever file is the one that has no room."""
    import resource

    (folder / "a" / "train.jsonl").write_text(
        '{"input": "a", "target": "b"}\n' * 90
    )  # its columns are larger than its rows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in range(500, 14_000, 500):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            streams.READ.clear()
            assert len(build_stream(config_of(folder, stream={"tasks": ["a"], "scorer": None})).tasks[0].train) == 90
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_reading_that_cannot_be_touched_is_used(folder, monkeypatch):
    build_stream(config_of(folder))

    def refused(path):
        raise PermissionError(path)

    monkeypatch.setattr(kept.os, "utime", refused)
    assert opened(the_reading()) is not None


def test_a_wrong_row_far_down_is_named_and_nothing_is_kept(folder):
    file = folder / "b" / "train.jsonl"
    file.write_text(file.read_text() + '\n{"input": "x"}')
    with pytest.raises(UserError, match=r"b/train\.jsonl:25: .*target"):
        build_stream(config_of(folder))
    assert not list(kept.cache_dir().glob("readings/*"))


def test_a_cache_that_cannot_be_written_is_done_without(folder, monkeypatch):
    kept.cache_dir().write_text("a file, no folder")
    stream = build_stream(config_of(folder))
    assert isinstance(stream.tasks[0].train, tuple)


class Arrays:
    """Examples that are more than text."""

    extra = (1, 2)

    def version(self, names):
        return ""

    def names(self):
        return ["t"]

    def tasks(self, names, prompt):
        made = tuple(Example(id=str(i), x=torch.ones(2) * i, y=i % 2, target=str(i % 2)) for i in range(30))
        return [Task(name="t", train=made, test=(replace(made[0], id="test"),))]


def test_examples_that_are_more_than_text_stay_in_memory(tmp_path, folder):
    task = Arrays().tasks(["t"], None)[0]
    with pytest.raises(NotPlain):
        keep([task], tmp_path / "place")
    odd = replace(task, train=(Example(id="1", target="a", extra={"pair": (1, 2)}),), test=())
    with pytest.raises(NotPlain):  # a tuple would come back as a list
        keep([odd], tmp_path / "place")
    assert not list(tmp_path.glob("place*"))
    (found,) = streams.read_anew(Arrays(), ["t"], None, "here", tmp_path / "other")
    assert isinstance(found.train, tuple)


def test_two_that_keep_at_once_and_what_a_killed_one_left(folder, tmp_path):
    tasks = [replace(task, objective=None) for task in build_stream(config_of(folder)).tasks]
    place = tmp_path / "readings" / "one"
    first = keep(tasks, place)
    left = place.with_name("two.1.tmp")
    left.mkdir()
    os.utime(left, (0, 0))
    again = keep(tasks, place)  # the other was faster
    assert [task_hash(t) for t in first] == [task_hash(t) for t in again]
    assert sorted(p.name for p in place.parent.iterdir()) == ["one"]
    os.utime(place / kept.INDEX, (0, 0))
    keep(tasks, place.with_name("three"))
    assert sorted(p.name for p in place.parent.iterdir()) == ["three"]  # nobody has used the first for long


@pytest.mark.parametrize("policy", ["reservoir", "ring", "quota"])
def test_a_store_reads_only_what_it_keeps(policy):
    read = []

    class Counted(Lazy):
        def __init__(self, name):
            self.name = name

        def __len__(self):
            return 1000

        def at(self, place):
            read.append(place)
            return Example(id=f"{self.name}{place}")

    plain, lazy = ExampleStore(10, policy), ExampleStore(10, policy)
    for task, name in enumerate("ab"):
        split = Counted(name)
        lazy.add(task, split, torch.Generator().manual_seed(task))
        assert len(read) <= 10
        plain.add(task, tuple(split), torch.Generator().manual_seed(task))
        read.clear()
    assert lazy.items == plain.items
    assert lazy.seen == plain.seen == 2000


def test_a_reservoir_is_vitters():
    """Example n takes the slot that is drawn below n, where there is one."""
    store, draws = ExampleStore(3, "reservoir"), torch.Generator().manual_seed(5)
    examples = [Example(id=str(i)) for i in range(40)]
    slots = examples[:3]
    for n in range(4, 41):
        slot = int(torch.randint(n, (1,), generator=draws))
        if slot < 3:
            slots[slot] = examples[n - 1]
    generator = torch.Generator().manual_seed(5)
    store.add(0, examples[:1], generator)
    store.add(0, examples[1:30], generator)
    store.add(0, examples[30:], generator)
    assert [e for _, e in store.items] == slots


def test_a_split_that_reads_when_asked_is_a_sequence():
    calls = []

    def read():
        calls.append(1)
        return iter([Example(id=str(i)) for i in range(3)])

    split = ReadWhenAsked(read)
    assert [e.id for e in split] == [e.id for e in split] == ["0", "1", "2"]
    assert len(calls) == 2
    assert (len(split), split[1].id, [e.id for e in split[1:]]) == (3, "1", ["1", "2"])
    assert len(calls) == 3
    assert repr(split) == "ReadWhenAsked(3 examples)"


def test_facts_by_hand():
    turn = Message(role="user", content="four")
    one = Example(id="1", messages=(turn,), target="ab", choices=("ab", "c"))
    facts = Facts.of([one, replace(one, id="2", choices=None), replace(one, id="3", choices=("d", "c"), y=4)])
    assert facts.ids == ["1", "2", "3"]
    assert facts.choices.tolist() == [0, -1, 1]
    assert facts.answers() == ("ab", "c", "d")
    assert (facts.asked.tolist(), facts.answered.tolist()) == ([4, 4, 4], [2, 2, 2])
    assert facts.classes.tolist() == [-1, -1, 4]
    assert len(set(facts.contents.tolist())) == 1  # the same question and answer
    assert len({tuple(d) for d in facts.digests.tolist()}) == 3
    some = facts.take([2, 0])
    assert (some.ids, some.answers()) == (["3", "1"], ("d", "c", "ab"))
    assert facts_of(Task(name="t", train=(one,)), "train").hash() == Facts.of([one]).hash()
