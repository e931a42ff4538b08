"""What a stream has read, kept on disk where there is much of it: checked once, and read row by row when it is asked for.

A reading is a folder of the user's cache, named by all that it depends on: the stream's class and settings, the files. In it
are one file of all examples, a line each, and a file for each split, the columns of `Facts`. A changed byte is noticed: of the
columns when the folder is opened, of a line when it is read. The examples are mapped when the folder is opened, so it may be
deleted while they are in use.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

from cl_toolkit.data.facts import COLUMNS, SPLITS, Facts, Looked, hashed
from cl_toolkit.data.splits import Known
from cl_toolkit.data.store import example_from_plain
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.sources import digest_of, file_hash
from cl_toolkit.types import Example, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

INDEX, ROWS = "tasks.json", "examples.rows"
DAYS = 30
"""After so many days without use a reading is deleted when the next one is kept."""


class NotPlain(Exception):
    """An example that is more than text says: it cannot be kept."""


def cache_dir() -> Path:
    """Where start models and readings are kept: `$CL_TOOLKIT_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("CL_TOOLKIT_CACHE") or user_cache_dir("cl-toolkit")).expanduser()


class Kept(Known):
    """A split on disk. lines: all examples of the reading. bounds: (n + 1,) where each line begins, and the end."""

    def __init__(self, path: Path, lines: mmap.mmap, facts: Facts, bounds: NDArray[np.int64]):
        self.path, self.lines, self.facts, self.bounds = path, lines, facts, bounds

    def make(self, place: int) -> Example:
        line = self.lines[self.bounds[place] : self.bounds[place + 1] - 1]
        if hashed(line) != self.facts.digests[place].tobytes():
            example = self.facts.ids[place]
            raise UserError(f"{self.path}: example {example} is damaged; delete the folder, it is made anew")
        return example_from_plain(_merged(line))


def keep(tasks: Sequence[Task], folder: Path) -> list[Task]:
    """The tasks, on disk. Raises NotPlain where they are more than text, OSError where they cannot be written."""
    beside = folder.with_name(f"{folder.name}.{uuid4().hex}.tmp")  # machines that share a folder have equal process ids
    beside.mkdir(parents=True)
    try:
        with (beside / ROWS).open("wb") as rows:
            index = [
                {
                    "name": task.name,
                    "scorer": task.scorer,
                    **{split: _write(beside / f"{i}-{split}", rows, getattr(task, split)) for split in SPLITS},
                }
                for i, task in enumerate(tasks)
            ]
        text = json.dumps(index)
        (beside / INDEX).write_text(f"{digest_of([text.encode()])} {text}", encoding="utf-8")
        try:
            beside.replace(folder)
        except OSError:  # another process was faster, or it is damaged
            if opened(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    clear_old(folder.parent)
    found = opened(folder)
    if found is None:
        raise OSError(f"{folder}: cannot be read back")
    return found


def _write(path: Path, rows: BinaryIO, examples: Sequence[Example]) -> str:
    """A split's examples and its columns; gives the hash of the columns."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    looked, bounds = Looked(), [rows.tell()]
    for example in examples:
        line, whole = looked.add(example)
        if not whole or example_from_plain(_merged(line)) != example:
            raise NotPlain(example.id)
        bounds.append(bounds[-1] + rows.write(line + b"\n"))
    facts = looked.facts()
    texts = json.dumps([facts.ids, facts.allowed, facts.shapes]).encode()
    columns = {name: getattr(facts, name) for name in COLUMNS}
    arrays = {**columns, "bounds": np.array(bounds, np.int64), "texts": np.frombuffer(texts, np.uint8)}
    try:
        save_file(arrays, path.with_suffix(".safetensors"))
    except SafetensorError as error:  # a full disk
        raise OSError(str(error)) from error
    return file_hash(path.with_suffix(".safetensors"))


def _merged(line: bytes) -> dict[str, Any]:
    content, rest = line.decode().split("\t", 1)
    return {**json.loads(content), **json.loads(rest)}


def opened(folder: Path) -> list[Task] | None:
    """The tasks of a reading; None where there is none, or one that is damaged or another user's."""
    try:
        if os.name == "posix" and folder.stat().st_uid not in (os.getuid(), 0):
            return None
        digest, index = (folder / INDEX).read_text(encoding="utf-8").split(" ", 1)
        if digest_of([index.encode()]) != digest:
            return None
        with (folder / ROWS).open("rb") as file:
            lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tasks = []
        for i, entry in enumerate(json.loads(index)):
            splits = {split: _open(folder / f"{i}-{split}", entry[split], lines) for split in SPLITS}
            tasks.append(Task(name=entry["name"], scorer=entry["scorer"], **splits))
        with suppress(OSError):  # of a folder that another one keeps, or that cannot be written
            os.utime(folder / INDEX)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tasks


def _open(path: Path, digest: str, lines: mmap.mmap) -> Sequence[Example]:
    from safetensors.numpy import load_file

    if file_hash(path.with_suffix(".safetensors")) != digest:
        raise ValueError("the columns are damaged")
    arrays = load_file(path.with_suffix(".safetensors"))
    ids, allowed, shapes = json.loads(arrays["texts"].tobytes())
    columns = {name: arrays[name] for name in COLUMNS}
    facts = Facts(ids=ids, allowed=[tuple(a) for a in allowed], shapes=shapes, **columns)
    if arrays["bounds"][-1] > len(lines):
        raise ValueError("examples are missing")
    return Kept(path.with_name(ROWS), lines, facts, arrays["bounds"]) if ids else ()


def clear_old(place: Path) -> None:
    """Delete readings that were not used for long, and what a killed process left half written."""
    for folder in _folders(place):
        try:
            half = folder.name.endswith(".tmp")
            age = time.time() - (folder if half else folder / INDEX).stat().st_mtime
        except OSError:
            continue
        if age > (1 if half else DAYS) * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def _folders(place: Path) -> Iterator[Path]:
    return (path for path in place.iterdir() if path.is_dir() and not path.is_symlink())
