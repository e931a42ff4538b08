"""Rows of files, one after the other, each with its place: JSON lines, JSON, CSV, TSV, Parquet, Arrow; text also gzipped.

Text is UTF-8 and what stands there: a column of a CSV file stays text ("007", "NA"), an empty field is an absent one.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from cl_toolkit.data.rows import each_once, parse_row
from cl_toolkit.errors import UserError, did_you_mean, listed, quoted, short


class Placed(NamedTuple):
    """A row, its number in its file from 1 on (of text the line), and its place for people."""

    number: int
    where: str
    row: dict[str, Any]


def rows_in(path: Path, key: str | None = None) -> Iterator[Placed]:
    """The rows of a file. key: of the list of rows in a JSON file that is one object. Raises UserError with the file and the
    line or row."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in FORMATS or (key is not None and suffix != ".json"):
        expected = listed(FORMATS) if key is None else ".json, which is one object"
        raise UserError(f"{path}: expected a file {expected}, each text also .gz")
    number = 0
    try:
        for number, where, row in json_object(path, key) if key is not None else FORMATS[suffix](path):
            yield Placed(number, where, {key: value for key, value in row.items() if value is not None})
    except (OSError, EOFError, zlib.error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: cannot be read: {what}") from error
    if not number:
        raise UserError(f"{path}: is empty; expected at least one example")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """All lines of a text file with their numbers, without holding the file in memory."""
    zipped = path.suffix == ".gz"
    with cast(BinaryIO, gzip.open(path) if zipped else path.open("rb")) as file:
        start = 0
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw  # spreadsheets put one first
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                place = start + len(raw) - len(line) + error.start
                raise UserError(f"{path}:{number}: not UTF-8: {error.reason} at byte {place}") from error
            start += len(raw)


def json_lines(path: Path) -> Iterator[Placed]:
    """An object a line."""
    for number, line in lines_of(path):
        if line.strip():
            where = f"{path}:{number}"
            yield Placed(number, where, parse_row(line, where))


def json_list(path: Path) -> Iterator[Placed]:
    """One list of objects; or an object a line, which many call JSON too."""
    lines = lines_of(path)
    first = next((pair for pair in lines if pair[1].strip()), None)
    if first is not None and first[1].strip() == "{":
        raise UserError(f"{path}: is one object over several lines; name the key of its rows (`rows`)")
    if first is None or not first[1].lstrip().startswith("["):
        yield from json_lines(path)
        return
    text = "".join(line for _, line in chain([first], lines))
    try:
        found = json.loads(text, object_pairs_hook=each_once)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {short(str(error), 120)}") from error
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    for number, row in enumerate(found, 1):
        where = f"{path}: row {number}"
        yield Placed(number, where, parse_row(json.dumps(row), where))  # as strict as a line


def json_object(path: Path, key: str) -> Iterator[Placed]:
    """A list of rows, objects or lists, in one object. What else the object says, as text, each row says too; the values of a
    row that is a list are called 0, 1 and so on."""
    text = "".join(line for _, line in lines_of(path))
    whole = parse_row(text, str(path))
    rows = whole.get(key)
    if not isinstance(rows, list):
        raise UserError(f"{path}: {key}: expected a list of rows{did_you_mean(key, whole)}")
    common = {name: value for name, value in whole.items() if isinstance(value, str)}
    common |= {name: v[0] for name, v in whole.items() if isinstance(v, list) and len(v) == 1 and isinstance(v[0], str)}
    for number, row in enumerate(rows, 1):
        where = f"{path}: {key}[{number - 1}]"
        if isinstance(row, list):
            row = {str(i): value for i, value in enumerate(row)}
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with fields or a list, got {type(row).__name__}")
        yield Placed(number, where, {**common, **row})


def separated(separator: str) -> Callable[[Path], Iterator[Placed]]:
    """A header, and a row a line; a quoted field may run over lines."""

    def read(path: Path) -> Iterator[Placed]:
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader((line for _, line in lines_of(path)), delimiter=separator, strict=True)
        header: list[str] = []
        try:
            for values in reader:
                where = f"{path}:{reader.line_num}"
                if not values:
                    continue
                if not header:
                    header = values
                    if twice := [name for name in header if header.count(name) > 1 or not name.strip()]:
                        raise UserError(f"{where}: a column is named {quoted(twice[0])}; expected names that differ")
                elif len(values) != len(header):
                    raise UserError(f"{where}: has {len(values)} fields, the header {len(header)} ({listed(header)})")
                else:
                    yield Placed(reader.line_num, where, {k: v for k, v in zip(header, values, strict=True) if v})
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}") from error

    return read


def arrow(path: Path) -> Iterator[Placed]:
    """Parquet, or an Arrow file or stream, some rows at a time."""
    pyarrow: Any = needed("pyarrow", path)
    from pyarrow import ipc, parquet

    try:
        if path.suffix == ".parquet":
            batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        else:
            with pyarrow.memory_map(str(path)) as probe:
                starts = probe.read(6) == b"ARROW1"
            source = pyarrow.memory_map(str(path))
            opened = ipc.open_file(source) if starts else ipc.open_stream(source)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches)) if starts else opened
        number = 0
        for batch in batches:
            if twice := [name for name in batch.schema.names if batch.schema.names.count(name) > 1]:
                raise UserError(f"{path}: two columns are named {quoted(twice[0])}; expected names that differ")
            for row in batch.to_pylist():
                number += 1
                yield Placed(number, f"{path}: row {number}", said(row))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: cannot be read: {short(' '.join(str(error).split()), 160)}") from error


def said(value: Any) -> Any:
    """A value without the fields that a table had to fill with null, since others of their kind have them."""
    if isinstance(value, dict):
        return {key: said(inner) for key, inner in value.items() if inner is not None}
    return [said(inner) for inner in value] if isinstance(value, list) else value


def needed(module: str, what: Any) -> Any:
    """A library of the extra `data`."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what}: needs {module}; install it with: pip install 'cl-toolkit[data]'") from error


FORMATS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_list,
    ".csv": separated(","),
    ".tsv": separated("\t"),
    ".parquet": arrow,
    ".arrow": arrow,
    ".feather": arrow,
}
"""A name's ending -> what reads the file."""
