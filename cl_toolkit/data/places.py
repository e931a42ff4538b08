"""Where rows lie: a file, a folder of files for its splits, or a data set of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_toolkit.data.files import FORMATS, Placed, needed, rows_in, said
from cl_toolkit.errors import UserError, did_you_mean, listed, quoted
from cl_toolkit.sources import file_hash, files_hash

USUAL = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}
"""Split -> how its file, or the hub's split, is usually called."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """path: a file, a folder, or the id of a data set. subset, revision: of a data set. train, valid, test: the file (or a
    pattern, such as train-*.parquet), the hub's split, or the key in a JSON file that is one object; null: called as usual.
    rows: the key of the rows in each JSON file. sha256: file in the folder -> its hash; another file is refused."""

    path: str
    subset: str | None = None
    revision: str | None = None
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    rows: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)

    def named(self, split: str) -> str | None:
        """What the config calls a split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    def version(self, where: str) -> str:
        """A hash over the files, or what the hub's data set is known by. where: the key in the config, for messages."""
        if (folder := self._local(where)) is not None:
            self._check_files(folder, where)
            return files_hash(file for split in USUAL for file in self._files(folder, split, where))
        if self.revision is not None and len(self.revision) == 40:
            return self.revision  # a commit never changes
        return " ".join(str(self._hub(name, where)._fingerprint) for name in self._hub_splits(where).values())

    def splits(self, where: str) -> list[str]:
        """The splits that are there."""
        if (folder := self._local(where)) is not None:
            return [split for split in USUAL if self._files(folder, split, where)]
        return list(self._hub_splits(where))

    def read(self, split: str, where: str) -> Iterator[tuple[str, Placed, Mapping[str, Sequence[str]]]]:
        """(number in the split, row, names of the labels by column), one after the other."""
        if (folder := self._local(where)) is not None:
            files = self._files(folder, split, where)
            key = self.rows or (self._keys().get(split) if folder.is_file() else None)
            for i, file in enumerate(files, 1):
                for placed in rows_in(file, key):
                    yield f"{i}.{placed.number}" if len(files) > 1 else str(placed.number), placed, {}
            return
        found = self._hub(self._hub_splits(where)[split], where)
        names = {column: kind.names for column, kind in found.features.items() if getattr(kind, "names", None)}
        for number, row in enumerate(found, 1):
            yield str(number), Placed(number, f"{self.path} {split}: row {number}", said(row)), names

    def _local(self, where: str) -> Path | None:
        """The path, where it is on this machine."""
        path = Path(self.path).expanduser()
        if not path.exists() and (self.path.count("/") > 1 or path.suffix.lower() in FORMATS):
            raise UserError(f"{where}.path: {path}: no such file or folder")
        return path if path.exists() else None

    def _files(self, path: Path, split: str, where: str) -> list[Path]:
        """A split's files, in the order of their names: one, or parts whose names differ in their numbers alone."""
        named = self.named(split)
        if path.is_file():
            return [path] if split == "train" or split in self._keys() else []
        if named is not None:
            found = sorted(path.glob(named))
            if not found:
                raise UserError(f"{where}.{split}: {path / named}: no such file")
            return found
        ends = [f"{folder}{name}{end}" for name in USUAL[split] for folder in ("", "data/") for end in (".*", "-*.*")]
        files = sorted(file for pattern in ends for file in path.glob(pattern) if _readable(file))
        kinds = {re.sub(r"\d+", "0", str(file)): file for file in files}
        if len(kinds) > 1:  # a copy in another format, an older state
            both = listed(str(file.relative_to(path)) for file in kinds.values())
            raise UserError(f"{where}.{split}: in {path} there are {both}; name what is meant by `{split}`")
        return files

    def _keys(self) -> dict[str, str]:
        """Split -> its key, of a file that is one JSON object: the config names it."""
        return {split: name for split in USUAL if (name := self.named(split)) is not None}

    def _check_files(self, folder: Path, where: str) -> None:
        """Raise UserError for a file that is not the one that the config means."""
        for name, expected in self.sha256.items():
            path = folder if folder.is_file() else folder / name
            try:
                found = file_hash(path)
            except OSError as error:
                raise UserError(f"{where}.sha256: {path}: cannot be read: {error.strerror}") from error
            if found != expected:
                raise UserError(
                    f"{where}.sha256: {path}: is another file: expected {expected[:12]}…, got {found[:12]}…"
                )

    def _hub_splits(self, where: str) -> dict[str, str]:
        """Split -> what the hub calls it."""
        datasets = needed("datasets", f"{where}.path: {self.path} (no such file, so it is asked of the hub)")
        try:
            there = datasets.get_dataset_split_names(self.path, self.subset, revision=self.revision)
        except Exception as error:
            raise UserError(f"{where}.path: {self.path}: {_one_line(error)}") from error
        found = {}
        for split, usual in USUAL.items():
            named = self.named(split)
            if named is not None and named not in there:
                raise UserError(f"{where}.{split}: no split {quoted(named)}{did_you_mean(named, there)}")
            if name := named or next((name for name in usual if name in there), None):
                found[split] = name
        return found

    def _hub(self, name: str, where: str) -> Any:
        """A split of the hub's, memory-mapped by `datasets`."""
        datasets = needed("datasets", where)
        try:
            return datasets.load_dataset(self.path, self.subset, revision=self.revision, split=name)
        except Exception as error:
            raise UserError(f"{where}.path: {self.path}: {_one_line(error)}") from error


def _readable(path: Path) -> bool:
    return Path(path.name.removesuffix(".gz")).suffix.lower() in FORMATS


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
