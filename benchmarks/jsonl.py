"""`jsonl`: a folder of `<task>/{train,valid,test}.jsonl`.

A line is either five fields, {"task", "instruction", "input", "target", "choices"} (only `target` and one of instruction
and input are needed), or a conversation, {"messages": [{"role", "content"}, ...]}, whose last assistant turn is the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_toolkit.errors import UserError
from cl_toolkit.types import Example, Message, Task

ROLES = ("system", "user", "assistant", "tool")


class Jsonl:
    """Tasks from a folder on disk."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """path: the folder. scorer: for every task, or task: scorer; null: `exact_match`."""

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

    def tasks(self, names: Sequence[str], prompt: Any) -> list[Task]:
        """The named tasks, read and checked."""
        return [self._task(name, prompt) for name in names]

    def _task(self, name: str, prompt: Any) -> Task:
        splits: dict[str, tuple[Example, ...]] = {}
        for split in ("train", "valid", "test"):
            path = self.folder / name / f"{split}.jsonl"
            if split != "train" and not path.is_file():
                continue
            splits[split] = tuple(read_file(path, f"{name}/{split}", prompt))
            if not splits[split]:
                raise UserError(f"{path}: is empty; expected at least one example")
        return Task(name=name, scorer=self._scorer(name), **splits)

    def _scorer(self, name: str) -> str:
        scorer = self.config.scorer
        if isinstance(scorer, dict):
            return scorer.get(name, "exact_match")
        return scorer or "exact_match"


def read_file(path: Path, prefix: str, prompt: Any) -> Iterator[Example]:
    """The examples of one file; raises UserError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield parse_line(line, f"{path}:{number}", f"{prefix}/{number}", prompt)


def parse_line(line: str, where: str, identity: str, prompt: Any) -> Example:
    """One line as an Example."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with fields, got {type(row).__name__}")
    if "messages" in row:
        return conversation(row, where, identity)
    if "target" not in row:
        raise UserError(f"{where}: the field 'target' is missing; found {', '.join(map(repr, row))}")
    if not isinstance(row["target"], str) or not row["target"].strip():
        raise UserError(f"{where}: target: expected text that is not empty, got {row['target']!r}")
    if not (row.get("instruction") or row.get("input")):
        raise UserError(f"{where}: expected a field 'instruction' or 'input' (or 'messages')")
    choices = allowed(row, row["target"], where)
    fields = {"task": "", "instruction": "", "input": "", **{k: v for k, v in row.items() if v is not None}}
    fields["choices"] = ", ".join(choices or ())
    try:
        content = prompt.template.format(**fields).strip("\n")
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"prompt.template: cannot be filled from {where}: {type(error).__name__}: {error}") from error
    return Example(
        id=identity,
        messages=(Message(role="user", content=content),),
        target=row["target"],
        choices=choices,
    )


def allowed(row: dict[str, Any], target: str, where: str) -> tuple[str, ...] | None:
    """The choices of a line, of which the target must be one; None without them."""
    choices = row.get("choices")
    if choices is None:
        return None
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{where}: choices: expected a list of texts, got {choices!r}")
    if target not in choices:
        raise UserError(f"{where}: target: {target!r} is not one of the choices {choices}")
    return tuple(choices)


def conversation(row: dict[str, Any], where: str, identity: str) -> Example:
    """A line with `messages`."""
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"{where}: messages: expected a list of turns with role and content")
    for m in messages:
        if m.get("role") not in ROLES:
            raise UserError(f"{where}: messages: role: expected {' | '.join(ROLES)}, got {m.get('role')!r}")
        if not isinstance(m.get("content"), str):
            raise UserError(f"{where}: messages: content: expected text, got {m.get('content')!r}")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: messages: expected at least two turns, the last one by the assistant")
    if not messages[-1]["content"].strip():
        raise UserError(f"{where}: messages: the last turn, which is the answer, is empty")
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{where}: tools: expected a list of objects, got {tools!r}")
    return Example(
        id=identity,
        messages=tuple(Message(role=m["role"], content=m["content"]) for m in messages[:-1]),
        target=messages[-1]["content"],
        choices=allowed(row, messages[-1]["content"], where),
        tools=tuple(tools),
    )
