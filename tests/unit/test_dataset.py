"""The stream `dataset`: columns and labels, splits that are cut, tasks that are cut, the hub."""

import hashlib
import json
import sys
import types

import pytest
from tables import ROWS, tasks_of, write_gzipped, write_json_lines, write_separated

from cl_toolkit.benchmarks.dataset import Dataset
from cl_toolkit.config.typed import typed
from cl_toolkit.data import streams
from cl_toolkit.data.facts import overlap_lines
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.measure.scorers import Scorer, score
from cl_toolkit.runs.run import execute
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Example


def test_columns_fields_and_labels(tmp_path):
    write_separated(tmp_path / "train.csv", [{"text": f"t{i}", "label": i % 3, "url": "u"} for i in range(6)])
    source = {
        "path": str(tmp_path), "columns": {"input": "text", "target": "label"}, "fields": {"instruction": "Which?"},
        "labels": ["red", "green", "blue"], "valid_from_train": 2,
    }  # fmt: skip
    (task,) = tasks_of({"t": source}, scorer={"t": "choices"}).values()
    assert task.scorer == "choices"
    assert {(e.question, e.target) for e in (*task.train, *task.valid)} == {
        (f"Which?\nt{i}", ("red", "green", "blue")[i % 3]) for i in range(6)
    }
    assert task.answers == ("red", "green", "blue")
    (fewer,) = tasks_of({"t": {**source, "without": {"label": ["0", "1"]}, "valid_from_train": None}}).values()
    assert [e.target for e in fewer.train] == ["blue", "blue"]
    for change, message in (
        (
            {"columns": {"input": "txt", "target": "label"}},
            ":2: the column 'txt' is missing or empty; did you mean 'text'?",
        ),
        ({"labels": ["red"]}, ":3: target: expected a label red or its number from 0, got '1'"),
    ):
        with pytest.raises(UserError) as error:
            list(tasks_of({"t": {**source, **change}})["t"].train)
        assert message in str(error.value)


def test_what_is_cut_off_is_the_same_whatever_the_order_and_copies_stay_together(tmp_path):
    rows = [*ROWS, *ROWS[:4]]
    found = []
    for order in (rows, rows[::-1]):
        write_json_lines(tmp_path / "train.jsonl", order)
        (task,) = tasks_of({"t": {"path": str(tmp_path), "valid_from_train": 3, "test_from_train": 4}}).values()
        parts = [{e.target for e in split} for split in (task.train, task.valid, task.test)]
        assert sum(map(len, parts)) == 12
        assert len([*task.train, *task.valid, *task.test]) == 16
        assert 3 <= len(task.valid) <= 4
        found.append(parts)
    assert found[0] == found[1]
    with pytest.raises(UserError, match="test_from_train: 20: of 16 training rows none would be left"):
        list(tasks_of({"t": {"path": str(tmp_path), "test_from_train": 20}})["t"].train)
    write_json_lines(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(UserError, match="test_from_train: there is a test split; leave this out"):
        tasks_of({"t": {"path": str(tmp_path), "test_from_train": 2}})


def test_copies_leave_both_splits_that_are_cut_off(tmp_path):
    write_json_lines(tmp_path / "t.jsonl", [{"input": f"q{i % 7}", "target": "a"} for i in range(70)])
    source = {"path": str(tmp_path / "t.jsonl"), "test_from_train": 5, "valid_from_train": 5}
    (task,) = tasks_of({"t": source}).values()
    assert [len(split) for split in (task.train, task.valid, task.test)] == [50, 10, 10]
    with pytest.raises(UserError, match="valid_from_train: 51: of 70 training rows none would be left"):
        list(tasks_of({"t": {**source, "valid_from_train": 51}})["t"].train)


def test_shards_and_usual_names(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(2):
        write_json_lines(tmp_path / "data" / f"train-0000{i}-of-00002.jsonl", ROWS[6 * i : 6 * i + 6])
    write_json_lines(tmp_path / "dev.jsonl", ROWS[:1])
    write_json_lines(tmp_path / "odd.jsonl", ROWS[:2])
    (tmp_path / "train.txt").write_text("notes, no rows")
    (task,) = tasks_of({"t": {"path": str(tmp_path), "test": "odd.*"}}).values()
    assert [len(split) for split in (task.train, task.valid, task.test)] == [12, 1, 2]
    assert [e.id for e in task.train][5:7] == ["t/train/1.11", "t/train/2.1"]
    with pytest.raises(UserError, match=r"stream\.sources\.t\.test: .*nothing\*: no such file"):
        tasks_of({"t": {"path": str(tmp_path), "test": "nothing*"}})
    with pytest.raises(UserError, match=r"stream\.sources\.t\.path: .*none\.csv: no such file or folder"):
        tasks_of({"t": {"path": str(tmp_path / "none.csv")}})


LABELLED = [{"input": f"x{i}", "target": "abcde"[i % 5]} for i in range(20)]


@pytest.mark.parametrize("other", ["train.csv", "train-old.jsonl", "train.jsonl.gz", "data/train.jsonl"])
def test_a_copy_of_a_split_is_not_read_beside_it(tmp_path, other):
    (tmp_path / "data").mkdir()
    write_json_lines(tmp_path / "train.jsonl", ROWS)
    {"csv": write_separated, "gz": write_gzipped}.get(other.split(".")[-1], write_json_lines)(tmp_path / other, ROWS)
    with pytest.raises(UserError, match=r"sources\.t\.train: in .* there are .*, .*; name what is meant by `train`"):
        tasks_of({"t": {"path": str(tmp_path)}})
    (task,) = tasks_of({"t": {"path": str(tmp_path), "train": "train.jsonl"}}).values()
    assert len(task.train) == 12


@pytest.mark.parametrize(
    ("labels", "value", "target"),
    [("12345", 1, "1"), ("12345", "5", "5"), ("12345", 0, None), ("012", 1, "1"), ("ab", 1, "b"), ("123", True, "1")],
)
def test_labels_that_are_other_numbers_are_names(tmp_path, labels, value, target):
    write_json_lines(tmp_path / "t.jsonl", [{"input": "q", "target": value}])
    (task,) = tasks_of({"t": {"path": str(tmp_path / "t.jsonl"), "labels": list(labels)}}).values()
    if target is None:
        with pytest.raises(UserError, match=r"t\.jsonl:1: target: expected a label 1, 2, 3, 4, 5, got 0"):
            list(task.train)
    else:
        assert task.train[0].target == target


def test_a_row_whose_value_was_never_trained_is_not_lost(tmp_path):
    write_json_lines(tmp_path / "train.jsonl", LABELLED)
    write_json_lines(tmp_path / "test.jsonl", [*LABELLED, {"input": "x", "target": "z"}])
    source = {"path": str(tmp_path), "cut": {"number": 2}}
    with pytest.raises(UserError, match=r"sources\.s\.cut: s/test/41: no training row has 'z'"):
        list(tasks_of({"s": source})["s_1"].test)
    assert len(tasks_of({"s": {**source, "without": {"target": ["z"]}}})["s_1"].test) == 8
    chosen = {"cut": {"groups": {"one": ["a"], "two": ["b"]}}}  # a choice
    assert len(tasks_of({"s": {**source, **chosen}})["one"].test) == 4


def test_one_source_as_several_tasks(tmp_path):
    for split in ("train", "test"):
        write_json_lines(tmp_path / f"{split}.jsonl", LABELLED)
    tasks = tasks_of({"s": {"path": str(tmp_path), "cut": {"number": 2}}})
    assert list(tasks) == ["s_1", "s_2"]
    assert tasks["s_1"].answers == ("a", "b")
    assert tasks["s_2"].answers == ("c", "d", "e")
    assert len(tasks["s_2"].test) == 12
    labels = {"labels": ["e", "d", "c", "b", "a"]}
    assert tasks_of({"s": {"path": str(tmp_path), **labels, "cut": {"number": 2}}})["s_1"].answers == ("e", "d")
    write_json_lines(tmp_path / "train.jsonl", [{**row, "domain": "old"} for row in LABELLED[:15]])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.writelines(json.dumps({**row, "domain": "new"}) + "\n" for row in LABELLED[15:])
    (tmp_path / "test.jsonl").unlink()
    by = {"by": "domain", "groups": {"early": ["old"], "late": ["new"]}}
    source = {"path": str(tmp_path), "cut": by}
    assert [len(task.train) for task in tasks_of({"s": source}).values()] == [15, 5]
    by["groups"]["late"] = ["knew"]
    with pytest.raises(UserError, match=r"cut\.groups\.late: no training row has 'knew'; did you mean 'new'"):
        list(tasks_of({"s": source})["late"].train)
    one = {"columns": {"input": "input", "target": "target"}}
    with pytest.raises(UserError, match=r"cut\.number: expected at most 5, the values of target, got 7"):
        list(tasks_of({"s": {"path": str(tmp_path), **one, "cut": {"number": 7}}})["s_1"].train)
    with pytest.raises(UserError, match=r"stream\.sources\.s\.cut\.number: expected either number or groups"):
        tasks_of({"s": {"path": str(tmp_path), "cut": {}}})


def test_a_run_over_two_sources_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "READ", {})
    write_separated(tmp_path / "one.csv", ROWS)
    (tmp_path / "two.json").write_text(json.dumps(ROWS[:8]))
    small = {
        "model": {
            "name": "tiny-lm",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "warmup": None,
        },
        "train": {"max_steps": 2, "global_batch_size": 4},
    }
    sources = {name: {"path": str(tmp_path / file), "test_from_train": 3}
               for name, file in (("one", "one.csv"), ("two", "two.json"))}  # fmt: skip
    config = load_run({"stream": {"name": "dataset", "sources": sources}, **small})
    record = execute(config, tmp_path / "run")
    assert record["tasks"] == ["one", "two"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"body": f"a text of {i} words"}) for i in range(9)))
    source = {"path": str(tmp_path / "texts.jsonl"), "columns": {"text": "body"}, "test_from_train": 3}
    stream = {"name": "dataset", "gives": "documents", "sources": {"t": source}}
    config = load_run({"stream": stream, "objective": {"name": "lm", "block_size": 16}, **small})
    (task,) = build_stream(config).tasks
    assert (task.scorer, len(task.train)) == ("perplexity", 6)
    with pytest.raises(UserError, match=r"objective sft: learns from conversations.* stream dataset gives documents"):
        load_run({"stream": stream, **small})


def test_files_that_are_one_object(tmp_path):
    """As Natural Instructions, and as CLINC150 has them."""
    answers = [["a", "A"], ["b"]]
    instances = [{"id": i, "input": f"q{i}", "output": found} for i, found in enumerate(answers)]
    whole = {"Definition": ["Do it."], "Domains": ["x", "y"], "Instances": instances}
    (tmp_path / "train.json").write_text(json.dumps(whole))
    columns = {"instruction": "Definition", "input": "input", "target": "output"}
    source = {"path": str(tmp_path), "rows": "Instances", "columns": columns}
    first, second = tasks_of({"t": source})["t"].train
    assert (first.question, first.target, first.extra) == ("Do it.\nq0", "a", {"references": ["A"]})
    assert (second.target, second.extra) == ("b", {})
    with pytest.raises(UserError, match=r"train\.json: Instance: expected a list of rows; did you mean 'Instances'"):
        list(tasks_of({"t": {**source, "rows": "Instance"}})["t"].train)
    path = tmp_path / "full.json"
    path.write_text(json.dumps({"train": [["q", "x"], ["r", "y"]], "val": [["s", "x"]], "oos": [["t", "oos"]]}))
    source = {"path": str(path), "train": "train", "valid": "val", "columns": {"input": "0", "target": "1"}}
    task = tasks_of({"t": source})["t"]
    assert [(e.question, e.target) for e in (*task.train, *task.valid)] == [("q", "x"), ("r", "y"), ("s", "x")]
    assert not task.test


def test_a_benchmark_as_it_was_published_and_clean(tmp_path):
    folder = tmp_path / "clone" / "one"
    folder.mkdir(parents=True)
    write_json_lines(folder / "train.jsonl", ROWS)
    for split in ("dev", "test"):
        write_json_lines(folder / f"{split}.jsonl", [{"input": f"t{i}", "target": "x"} for i in range(5)])
    digest = hashlib.sha256((folder / "test.jsonl").read_bytes()).hexdigest()
    source = {"path": "one", "valid_from_train": 4, "sha256": {"test.jsonl": digest}}
    root = str(tmp_path / "clone")
    clean = tasks_of({"t": source}, root=root)["t"]
    published = tasks_of({"t": source}, root=root, split="as_published")["t"]
    assert [len(s) for s in (clean.train, clean.valid, clean.test)] == [8, 4, 5]
    assert [len(s) for s in (published.train, published.valid, published.test)] == [12, 5, 5]
    assert overlap_lines([clean]) == []
    assert overlap_lines([published]) == ["t: 5 valid examples also stand in test"]
    settings = typed(Dataset.Config, {"sources": {"t": source}, "root": root}, "stream", "here")
    (folder / "test.jsonl").write_text("edited")
    with pytest.raises(
        UserError, match=rf"stream\.sources\.t\.sha256: .*test\.jsonl: is another file: expected {digest[:12]}…"
    ):
        Dataset(settings).version(["t"])


def test_the_best_of_several_right_answers_counts():
    example = Example(id="1", target="cat", extra={"references": ["kitten", "tom"]})
    wer = Scorer(lambda e, a: float(abs(len(e.target) - len(a))), higher_is_better=False, bounded=False)
    assert score("t", "exact", Scorer(lambda e, a: float(e.target == a)), example, "tom") == 1
    assert score("t", "exact", Scorer(lambda e, a: float(e.target == a)), example, "dog") == 0
    assert score("t", "length", wer, example, "sixlet") == 0


class Hub(list):
    """What `datasets` gives for a split."""

    def __init__(self, rows, names=None):
        super().__init__(rows)
        self.features = {"label": types.SimpleNamespace(names=names), "text": types.SimpleNamespace()}
        self._fingerprint = f"print{len(rows)}"


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []
    hub = {
        "train": Hub([{"text": f"t{i}", "label": i % 2, "note": None} for i in range(4)], ["no", "yes"]),
        "validation": Hub([{"text": "v", "label": 1}], ["no", "yes"]),
    }

    def load_dataset(path, subset, revision, split):
        asked.append((path, subset, revision, split))
        return hub[split]

    fake = types.SimpleNamespace(
        load_dataset=load_dataset, get_dataset_split_names=lambda path, subset, revision: list(hub)
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    columns = {"input": "text", "target": "label"}
    source = {"path": "org/set", "subset": "en", "columns": columns, "test": "validation", "valid": "validation"}
    task = tasks_of({"t": source})["t"]
    assert [(e.question, e.target, e.choices) for e in task.train][:2] == [
        ("t0", "no", ("no", "yes")), ("t1", "yes", ("no", "yes")),
    ]  # fmt: skip
    assert ("org/set", "en", None, "train") in asked
    builder = Dataset(typed(Dataset.Config, {"sources": {"t": source}}, "stream", "here"))
    assert builder.version(["t"]) == "print4 print1 print1"
    pinned = typed(Dataset.Config, {"sources": {"t": {**source, "revision": "a" * 40}}}, "stream", "here")
    asked.clear()
    assert Dataset(pinned).version(["t"]) == "a" * 40
    assert not asked  # a commit never changes, so nothing is asked
    with pytest.raises(UserError, match=r"stream\.sources\.t\.test: no split 'tests'"):
        tasks_of({"t": {**source, "test": "tests"}})


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"org/set .*: needs datasets; install it with: pip install 'cl-toolkit\[data\]'"
    ):
        tasks_of({"t": {"path": "org/set"}})
