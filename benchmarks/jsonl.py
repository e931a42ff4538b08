"""`jsonl`: a folder of `<task>/{train,valid,test}.jsonl`.

A line is either five fields, {"task", "instruction", "input", "target", "choices"} (only `target` and one of instruction
and input are needed), or a conversation, {"messages": [{"role", "content"}, ...]}, whose last assistant turn is the answer;
see `rows` for all fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cl_toolkit.data.rows import Template, example_of, parse_row
from cl_toolkit.data.splits import ReadWhenAsked
from cl_toolkit.errors import UserError
from cl_toolkit.sources import files_hash
from cl_toolkit.types import Example, Task

SPLITS = ("train", "valid", "test")


class Jsonl:
    """Tasks from a folder on disk."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """path: the folder. scorer: for every task, or task: scorer; null, and tasks that are not named: `exact_match`."""

        path: str
        scorer: dict[str, str] | str | None = None

    def __init__(self, config: Config):
        self.config = config
        self.folder = Path(config.path).expanduser()

    def names(self) -> list[str]:
        """Task folders, in alphabetical order."""
        if not self.folder.is_dir():
            raise UserError(f"stream.path: {self.folder}: no such folder")
        found = sorted(p.parent.name for p in self.folder.glob("*/train.jsonl"))
        if not found:
            raise UserError(f"stream.path: {self.folder}: expected folders <task>/train.jsonl, found none")
        return found

    def version(self, names: Sequence[str]) -> str:
        """A hash over all that is read for these names."""
        return files_hash(self.folder / name / f"{split}.jsonl" for name in names for split in SPLITS)

    def tasks(self, names: Sequence[str], prompt: Any) -> list[Task]:
        """The named tasks, read and checked."""
        return [self._task(name, prompt) for name in names]

    def _task(self, name: str, prompt: Any) -> Task:
        splits: dict[str, Sequence[Example]] = {}
        for split in SPLITS:
            path = self.folder / name / f"{split}.jsonl"
            if split != "train" and not path.is_file():
                continue
            splits[split] = ReadWhenAsked(partial(read_file, path, f"{name}/{split}", prompt))
        return Task(name=name, scorer=self._scorer(name), **splits)

    def _scorer(self, name: str) -> str:
        scorer = self.config.scorer
        if isinstance(scorer, dict):
            return scorer.get(name, "exact_match")
        return scorer or "exact_match"


def read_file(path: Path, prefix: str, prompt: Any) -> Iterator[Example]:
    """The examples of one file; raises UserError with file and line."""
    template, number = Template.of(prompt.template), 0
    for number, line in lines_of(path):
        where = f"{path}:{number}"
        yield example_of(parse_row(line, where), where, f"{prefix}/{number}", template)
    if not number:
        raise UserError(f"{path}: is empty; expected at least one example")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers, without holding the file in memory."""
    try:
        with path.open("rb") as file:
            start = 0
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8" if start else "utf-8-sig")  # spreadsheets put a byte-order mark first
                start += len(raw)
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8: {error.reason} at byte {start + error.start}") from error
