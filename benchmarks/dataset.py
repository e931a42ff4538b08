"""`dataset`: tasks from files as they come, or from data sets of the Hugging Face hub, with columns named in the config.

A source is a file (JSON, JSON lines, CSV, TSV, Parquet, Arrow), a folder of such files for its splits, or a data set's id.
Rows may have any shape that `data.rows` reads. `columns` picks and names the fields; the others of a row are left alone then.
One labelled source may be cut into several tasks by its answers (class-incremental learning) or by another column.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cl_toolkit.data.places import Place
from cl_toolkit.data.rows import PASSED_OVER, Template, examples_of
from cl_toolkit.data.sections import scorer_of
from cl_toolkit.data.splits import ReadWhenAsked
from cl_toolkit.errors import UserError, did_you_mean, listed, quoted
from cl_toolkit.ranges import at_least
from cl_toolkit.types import Example, Task


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Tasks from one source. by: `target`, or a column. number: so many tasks, called `<source>_1` and so on, the values spread
    evenly over them in their order; or groups: task -> its values."""

    by: str = "target"
    number: Annotated[int, at_least(2)] | None = None
    groups: dict[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if (self.number is None) == (self.groups is None):
            raise ValueError("number: expected either number or groups")


@dataclass(frozen=True, kw_only=True)
class Source(Place):
    """columns: field -> column. fields: field -> a text that is the same in every row. labels: the names of the answers that a
    column holds as numbers; they are the choices. without: column -> values; rows with one of them are left out. cut: several
    tasks. valid_from_train, test_from_train: so many rows are cut off the training split, the same ones always; valid in place
    of a split that is there, unless `split: as_published`."""

    columns: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    without: dict[str, tuple[str, ...]] = field(default_factory=dict)
    valid_from_train: Annotated[int, at_least(1)] | None = None
    test_from_train: Annotated[int, at_least(1)] | None = None
    cut: Cut | None = None


class Dataset:
    """Tasks from files and data sets."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """sources: task -> where it comes from. root: the folder that their paths begin in. split: of a benchmark whose valid
        split is its test split, clean (valid is cut off train where the source says so) or as_published. gives: what its
        examples are, questions with answers or texts (column `text`). scorer: for every task, or task: scorer; null, and tasks
        that are not named: `exact_match`, of texts `perplexity`."""

        sources: dict[str, Source]
        root: str | None = None
        split: Literal["clean", "as_published"] = "clean"
        gives: Literal["conversations", "documents"] = "conversations"
        scorer: dict[str, str] | str | None = None

    def __init__(self, config: Config):
        self.config, self.inputs = config, config.gives
        self.sources = {name: self._placed(source) for name, source in config.sources.items()}

    def _placed(self, source: Source) -> Source:
        root = self.config.root
        here = source if root is None else replace(source, path=str(Path(root).expanduser() / source.path))
        return here if self.config.split == "clean" else replace(here, valid_from_train=None)

    def names(self) -> list[str]:
        """The sources, or the tasks that they are cut into, as the config has them."""
        return list(self._owners)

    @cached_property
    def _owners(self) -> dict[str, str]:
        """Task -> its source."""
        found: dict[str, str] = {}
        for name, source in self.sources.items():
            cut = source.cut
            tasks = [name] if cut is None else cut.groups or [f"{name}_{i + 1}" for i in range(cut.number or 0)]
            for task in tasks:
                if task in found:
                    raise UserError(f"stream.sources.{name}: the task {task} is also of source {found[task]}")
                found[task] = name
        return found

    def version(self, names: Sequence[str]) -> str:
        """A hash over the files, or what the hub's data sets are known by."""
        sources = dict.fromkeys(self._owners[name] for name in names)
        return " ".join(self.sources[name].version(_key(name)) for name in sources)

    def tasks(self, names: Sequence[str], prompt: Any) -> list[Task]:
        """The named tasks; rows are read when they are gone through."""
        template = Template.of(prompt.template, prompt.learn_turns)
        documents = self.inputs == "documents"
        readers = {name: Reader(name, source, template, documents) for name, source in self.sources.items()}
        return [self._task(name, readers[self._owners[name]]) for name in names]

    def _task(self, name: str, reader: Reader) -> Task:
        splits: dict[str, Sequence[Example]] = {}
        for split in reader.splits():
            read: Callable[[], Iterable[Example]] = partial(reader.examples, split)
            if reader.source.cut is not None:
                read = partial(reader.part, split, name, reader.source.cut)
            splits[split] = ReadWhenAsked(read)
        usual = "perplexity" if reader.documents else "exact_match"
        return Task(name=name, scorer=scorer_of(self.config.scorer, name, usual), **splits)


def _key(source: str) -> str:
    return f"stream.sources.{source}"


class Reader:
    """Rows of a source as examples."""

    def __init__(self, name: str, source: Source, template: Template, documents: bool):
        self.name, self.source, self.template, self.documents = name, source, template, documents
        self.where = _key(name)
        self._whole: dict[str, list[tuple[str, Example]]] = {}
        self._groups: Mapping[str, Sequence[str]] | None = None
        self.carved = {"test": source.test_from_train or 0, "valid": source.valid_from_train or 0}

    def splits(self) -> list[str]:
        """The splits that there are, and those that are cut off the training split."""
        there = [split for split in self.source.splits(self.where) if split != "valid" or not self.carved["valid"]]
        if self.carved["test"] and "test" in there:
            raise UserError(f"{self.where}.test_from_train: there is a test split; leave this out")
        if "train" not in there:
            raise UserError(f"{self.where}.path: {self.source.path}: no training split is there; name it by `train`")
        return [*there, *(split for split, size in self.carved.items() if size)]

    def examples(self, split: str) -> Iterator[Example]:
        """All of a split."""
        return (example for _, example in self.valued(split, "target"))

    def part(self, split: str, task: str, cut: Cut) -> Iterator[Example]:
        """Those of a split that go to one of the tasks that the source is cut into. They are read once for all tasks."""
        values = self.groups(cut)[task]
        for value, example in self._read(split, cut):
            if value in values:
                yield replace(example, choices=tuple(values)) if cut.by == "target" else example

    def _read(self, split: str, cut: Cut) -> list[tuple[str, Example]]:
        """A whole split with its values, read once. Tasks that are named by `groups` may leave some of them out."""
        if split not in self._whole:
            found = list(self.valued(split, cut.by))
            met = self._met(cut) if split != "train" else {value for value, _ in found}
            for value, example in found if cut.number is not None else ():
                if value not in met:
                    raise UserError(
                        f"{self.where}.cut: {example.id}: no training row has {quoted(value)}{did_you_mean(value, met)}; "
                        f"leave such rows out by `without`, or name the values of each task by `groups`"
                    )
            self._whole[split] = found
        return self._whole[split]

    def _met(self, cut: Cut) -> set[str]:
        """The values that training rows have."""
        return {value for value, _ in self._read("train", cut)}

    def groups(self, cut: Cut) -> Mapping[str, Sequence[str]]:
        """Task -> the values that it has."""
        if self._groups is None:
            self._groups = self._grouped(cut, self._met(cut))
        return self._groups

    def _grouped(self, cut: Cut, met: set[str]) -> Mapping[str, Sequence[str]]:
        for task, values in (cut.groups or {}).items():
            for value in values:
                if value not in met:
                    where = f"{self.where}.cut.groups.{task}"
                    raise UserError(f"{where}: no training row has {quoted(value)}{did_you_mean(value, met)}")
        if cut.groups is not None:
            return cut.groups
        assert cut.number is not None  # one of the two
        labels = self.source.labels if cut.by == "target" else None
        ordered = [label for label in labels if label in met] if labels else sorted(met)
        if len(ordered) < cut.number:
            raise UserError(
                f"{self.where}.cut.number: expected at most {len(ordered)}, the values of {cut.by}, got {cut.number}"
            )
        bounds = [i * len(ordered) // cut.number for i in range(cut.number + 1)]
        return {f"{self.name}_{i + 1}": ordered[bounds[i] : bounds[i + 1]] for i in range(cut.number)}

    def valued(self, split: str, by: str) -> Iterator[tuple[str, Example]]:
        """Each example of a split, and its value of what tasks are cut by."""
        file = "train" if self.carved.get(split) else split
        for number, where, row, fields in self._rows(file):
            if file == "train" and any(self.carved.values()) and self._goes_to(fields) != split:
                continue
            for example in self._examples(fields, where, f"{self.name}/{file}/{number}", split == "train"):
                yield example.target if by == "target" else str(_column(row, by, where)), example

    @cached_property
    def _bounds(self) -> dict[str, str]:
        """Split -> the largest hash of what goes there: equal rows stay together, in whatever order they come."""
        hashes = sorted(_hash(fields) for *_, fields in self._rows("train"))
        gone, bounds = 0, {}
        for split, size in self.carved.items():
            if size:
                bounds[split] = hashes[min(gone + size, len(hashes)) - 1]
                gone = bisect_right(hashes, bounds[split])  # with their copies
            if size and gone == len(hashes):
                raise UserError(
                    f"{self.where}.{split}_from_train: {size}: of {len(hashes)} training rows none would be left"
                )
        return bounds

    def _goes_to(self, fields: Mapping[str, Any]) -> str:
        found = _hash(fields)
        return next((split for split, bound in self._bounds.items() if found <= bound), "train")

    def _rows(self, file: str) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        """(number, place, row, fields): the fields as columns and labels of the config make them."""
        columns = self.source.columns
        for number, (_, where, row), names in self.source.read(file, self.where):
            if any(_plain(row, column, where, values) in values for column, values in self.source.without.items()):
                continue
            fields = {ours: _column(row, theirs, where) for ours, theirs in columns.items()} if columns else dict(row)
            if self.source.cut is not None and self.source.cut.by not in self.template.known:
                fields.pop(self.source.cut.by, None)  # has done its work
            fields |= self.source.fields
            labels = self.source.labels or names.get(columns.get("target", "target"))
            if labels and "target" in fields:
                fields["target"] = _label(fields["target"], labels, where)
                fields.setdefault("choices", list(labels))
            elif type(fields.get("target")) is int:
                fields["target"] = str(fields["target"])
            yield number, where, row, fields

    def _examples(self, fields: dict[str, Any], where: str, identity: str, learned: bool) -> list[Example]:
        if not self.documents:
            return examples_of(fields, where, identity, self.template, learned)
        text = fields.get("text")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: text: expected text that is not empty, got {quoted(text)}")
        return [Example(id=identity, text=text)]


def _hash(fields: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in fields.items() if key not in PASSED_OVER}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=repr).encode()).hexdigest()


def _column(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        near = did_you_mean(column, row).split("; known")[0]
        raise UserError(f"{where}: the column {quoted(column)} is missing or empty{near}; found {listed(row)}")
    return row[column]


def _plain(row: Mapping[str, Any], column: str, where: str, values: Sequence[str]) -> str:
    """A value as text, also one that stands alone in a list, or an empty field where such rows are looked for."""
    value = row.get(column, "") if "" in values else _column(row, column, where)
    return str(value[0] if isinstance(value, list) and len(value) == 1 else value)


def _label(value: Any, labels: Sequence[str], where: str) -> str:
    """The name of a label that is given by its number, from 0, or by its name; where names are other numbers, by its name."""
    if isinstance(value, str) and value in labels:
        return value
    number = str(int(value)) if isinstance(value, bool) else str(value)
    named = any(
        label.isdecimal() and label != str(i) for i, label in enumerate(labels)
    )  # numbers that are names: 1 to 5
    if named and number in labels:
        return number
    if named or not number.isdecimal() or int(number) >= len(labels):
        raise UserError(
            f"{where}: target: expected a label {listed(labels)}{'' if named else ' or its number from 0'}, got {quoted(value)}"
        )
    return labels[int(number)]
