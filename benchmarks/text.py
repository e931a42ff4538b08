"""`text`: a folder of texts, a folder for each domain in it, for continued pre-training (as in Gururangan et al. 2020).

A domain has `train.txt`, `test.txt` and perhaps `valid.txt`, in which documents stand apart by two empty lines, or folders
`train`, `test`, `valid` of `.txt` files, a document each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_toolkit.data.facts import SPLITS
from cl_toolkit.errors import UserError
from cl_toolkit.sources import files_hash
from cl_toolkit.types import Example, Task

APART = re.compile(r"\n(?:[ \t]*\n){2,}")


class Text:
    """Domains of plain text from a folder on disk, scored by perplexity: a task is a domain, an example a document."""

    inputs = "documents"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """path: the folder of the domains."""

        path: str

    def __init__(self, config: Config):
        self.folder = Path(config.path).expanduser()

    def names(self) -> list[str]:
        """The domains, in alphabetical order."""
        if not self.folder.is_dir():
            raise UserError(f"stream.path: {self.folder}: no such folder")
        found = sorted({p.parent.name for p in (*self.folder.glob("*/train.txt"), *self.folder.glob("*/train/"))})
        if not found:
            raise UserError(
                f"stream.path: {self.folder}: expected folders <task>/train.txt or <task>/train/*.txt, found none"
            )
        return found

    def version(self, names: Sequence[str]) -> str:
        """A hash over all that is read for these names."""
        places = [self.folder / name / split for name in names for split in SPLITS]
        return files_hash(p for place in places for p in (place.with_suffix(".txt"), *sorted(place.glob("*.txt"))))

    def tasks(self, names: Sequence[str], prompt: object = None) -> list[Task]:
        """The named domains, read whole."""
        return [
            Task(name=name, scorer="perplexity", **{split: self._split(name, split) for split in SPLITS})
            for name in names
        ]

    def _split(self, name: str, split: str) -> tuple[Example, ...]:
        file, folder = self.folder / name / f"{split}.txt", self.folder / name / split
        if file.is_file() and folder.is_dir():
            raise UserError(f"{file}: stands beside the folder {split}; expected one of them")
        if folder.is_dir():
            found = [(path.stem, read(path)) for path in sorted(folder.glob("*.txt"))]
        elif file.is_file():
            found = [(str(i), text) for i, text in enumerate(APART.split(read(file)), 1)]
        else:
            return ()
        documents = tuple(
            Example(id=f"{name}/{split}/{place}", text=text.strip("\n")) for place, text in found if text.strip()
        )
        if not documents:
            raise UserError(f"{folder if folder.is_dir() else file}: holds no text")
        return documents


def read(path: Path) -> str:
    """A file's text; raises UserError with its path."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
