"""`jsonl`: a folder of `<task>/{train,valid,test}.jsonl`; an anchor, which is never trained, needs no `train`.

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

from cl_toolkit.data.facts import SPLITS
from cl_toolkit.data.files import rows_in
from cl_toolkit.data.rows import Template, examples_of
from cl_toolkit.data.sections import scorer_of
from cl_toolkit.data.splits import ReadWhenAsked
from cl_toolkit.errors import UserError
from cl_toolkit.sources import files_hash
from cl_toolkit.types import Example, Task


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
        found = sorted({p.parent.name for split in SPLITS for p in self.folder.glob(f"*/{split}.jsonl")})
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
            if path.is_file():
                splits[split] = ReadWhenAsked(partial(read_file, path, f"{name}/{split}", prompt, split == "train"))
        return Task(name=name, scorer=scorer_of(self.config.scorer, name), **{"train": (), **splits})


def read_file(path: Path, prefix: str, prompt: Any, learned: bool = True) -> Iterator[Example]:
    """The examples of one file; raises UserError with file and line. learned: whether it is of a training split."""
    template = Template.of(prompt.template, prompt.learn_turns)
    for number, where, row in rows_in(path):
        yield from examples_of(row, where, f"{prefix}/{number}", template, learned)
