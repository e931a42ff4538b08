"""Rows in files of every format, and the tasks that the stream `dataset` makes of them."""

import csv
import gzip
import json

import pytest

from cl_toolkit.benchmarks.dataset import Dataset
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.models.sections import Prompt

ROWS = [{"instruction": "double", "input": str(i), "target": str(2 * i)} for i in range(12)]


def tasks_of(sources, prompt=None, **settings):
    builder = Dataset(typed(Dataset.Config, {"sources": sources, **settings}, "stream", "here"))
    section = typed(Prompt, base_layer()["prompt"] | (prompt or {}), "prompt", "here")
    return {task.name: task for task in builder.tasks(builder.names(), section)}


def write_json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))


def write_gzipped(path, rows):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def write_separated(path, rows):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    opened = pyarrow.ipc.new_stream if path.name.startswith("stream") else pyarrow.ipc.new_file
    with opened(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
