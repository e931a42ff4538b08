"""What a stream has read, kept on disk where there is much of it: checked once, and read row by row when it is asked for.

A reading is a folder of the user's cache, named by all that it depends on: the stream's class and settings, the files. A
split in it is two files: the examples, a line each, and the columns of `Facts`. A changed byte is noticed: of the columns when
the folder is opened, of a line when it is read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.data.facts import COLUMNS, SPLITS, Facts, Looked, hashed
from cl_toolkit.data.splits import Known
from cl_toolkit.data.store import example_from_plain
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import Example, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

INDEX = "tasks.json"
DAYS = 30
"""After so many days without use a reading is deleted when the next one is kept."""


class NotPlain(Exception):
    """An example that is more than text says: it cannot be kept."""


def cache_dir() -> Path:
    """Where start models and readings are kept: `$CL_TOOLKIT_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("CL_TOOLKIT_CACHE") or user_cache_dir("cl-toolkit"))


class Kept(Known):
    """A split on disk. ends: (n,) where each line ends."""

    def __init__(self, path: Path, facts: Facts, ends: NDArray[np.int64]):
        self.path, self.facts, self.ends = path, facts, ends

    @cached_property
    def _lines(self) -> Any:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def make(self, place: int) -> Example:
        line = self._lines[self.ends[place - 1] if place else 0 : self.ends[place] - 1]
        if hashed(line) != self.facts.digests[place].tobytes():
            raise UserError(f"{self.path}: line {place + 1} is damaged; delete the folder, it is made anew")
        return example_from_plain(_merged(line))


def keep(tasks: Sequence[Task], folder: Path) -> list[Task]:
    """The tasks, on disk. Raises NotPlain where they are more than text, OSError where they cannot be written."""
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        index = [
            {
                "name": task.name,
                "scorer": task.scorer,
                **{split: _write(beside / f"{i}-{split}", getattr(task, split)) for split in SPLITS},
            }
            for i, task in enumerate(tasks)
        ]
        (beside / INDEX).write_text(json.dumps(index), encoding="utf-8")
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


def _write(path: Path, examples: Sequence[Example]) -> str:
    """A split's two files; gives the hash of the columns."""
    from safetensors.numpy import save_file

    looked, ends, size = Looked(), [], 0
    with path.with_suffix(".rows").open("wb") as file:
        for example in examples:
            line, whole = looked.add(example)
            if not whole or example_from_plain(_merged(line)) != example:
                raise NotPlain(example.id)
            file.write(line + b"\n")
            size += len(line) + 1
            ends.append(size)
    facts = looked.facts()
    texts = json.dumps([facts.ids, facts.allowed, facts.shapes]).encode()
    columns = {name: getattr(facts, name) for name in COLUMNS}
    arrays = {**columns, "ends": np.array(ends, np.int64), "texts": np.frombuffer(texts, np.uint8)}
    save_file(arrays, path.with_suffix(".safetensors"))
    return _digest(path.with_suffix(".safetensors"))


def _merged(line: bytes) -> dict[str, Any]:
    content, rest = line.decode().split("\t", 1)
    return {**json.loads(content), **json.loads(rest)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def opened(folder: Path) -> list[Task] | None:
    """The tasks of a reading; None where there is none, or one that is damaged or another user's."""
    try:
        if os.name == "posix" and folder.stat().st_uid not in (os.getuid(), 0):
            return None
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        tasks = []
        for i, entry in enumerate(index):
            splits = {split: _open(folder / f"{i}-{split}", entry[split]) for split in SPLITS}
            tasks.append(Task(name=entry["name"], scorer=entry["scorer"], **splits))
        os.utime(folder / INDEX)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tasks


def _open(path: Path, digest: str) -> Sequence[Example]:
    from safetensors.numpy import load_file

    if _digest(path.with_suffix(".safetensors")) != digest:
        raise ValueError("the columns are damaged")
    arrays = load_file(path.with_suffix(".safetensors"))
    ids, allowed, shapes = json.loads(arrays["texts"].tobytes())
    columns = {name: arrays[name] for name in COLUMNS}
    facts = Facts(ids=ids, allowed=[tuple(a) for a in allowed], shapes=shapes, **columns)
    ends, rows = arrays["ends"], path.with_suffix(".rows")
    if rows.stat().st_size != (ends[-1] if len(ends) else 0):
        raise ValueError("rows are missing")
    return Kept(rows, facts, ends) if ids else ()


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
