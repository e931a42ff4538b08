"""docs/clinc150_rows.py: what it writes can be read as the stream that its configs name."""

import importlib.util
import json
from pathlib import Path

from files import write_rows
from tiny import tiny_config

from cl_toolkit.data.streams import build_stream
from cl_toolkit.study.cells import load_run

SCRIPT = Path(__file__).parents[2] / "docs" / "clinc150_rows.py"


def test_each_row_has_a_wrong_intent_and_half_of_the_others_show_the_right_one(tmp_path):
    spec = importlib.util.spec_from_file_location("clinc150_rows", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for domain in (*script.START, *script.TASKS):
        for split in ("train", "valid", "test"):
            rows = [{"input": f"{split} {i}", "target": f"{domain} {i % 3}"} for i in range(6)]
            write_rows(tmp_path / "domains" / domain / f"{split}.jsonl", rows)
    script.main(tmp_path / "domains", tmp_path / "rows")
    plain = tiny_config()
    plain["stream"] = {"name": "jsonl", "path": str(tmp_path / "rows"), "tasks": [*script.TASKS, "part", "shown"]}
    stream = build_stream(load_run(plain))
    assert [len(task.train) for task in stream.tasks] == [6, 6, 6, 18, 54]
    for task in stream.tasks:
        for example in task.train:
            assert example.extra["rejected"] != example.target
            assert example.extra["rejected"].split()[0] == example.target.split()[0]
            assert (example.target in example.question) == (task.name == "shown")
    first = json.loads((tmp_path / "rows" / "banking" / "test.jsonl").read_text().splitlines()[0])
    assert (first["input"], first["target"]) == ("test 0", "banking 0")
