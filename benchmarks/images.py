"""`images`: pictures from a folder, as tasks of a few classes each or as permutations of their pixels.

Split: the classes in groups (Zenke et al. 2017). Permuted: all classes in each task, each task with a fixed pixel order of its
own, the first as it is (Goodfellow et al. 2013). What a folder may hold: `data.pictures`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from cl_toolkit.data.pictures import Pictures, Shelf, read_folder
from cl_toolkit.errors import UserError
from cl_toolkit.ranges import SEED, at_least, refuse_idle
from cl_toolkit.sources import files_hash
from cl_toolkit.types import Task


class Images:
    """A stream of pictures (C, H, W) with values in [0, 1], for `mlp`, `small-cnn` and `small-vit`."""

    inputs = "arrays"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """path: the folder. protocol: split | permuted. classes_per_task: of the split stream. permutations: tasks of the
        permuted one. seed: of the permutations, not of a run. valid_from_train: so many training pictures are valid, where
        there is no such split: the last ones, of a folder for each class the last ones of each in proportion."""

        path: str
        protocol: Literal["split", "permuted"] = "split"
        classes_per_task: Annotated[int, at_least(1)] = 2
        permutations: Annotated[int, at_least(1).up_to(1000)] = 10
        seed: Annotated[int, SEED] = 0
        valid_from_train: Annotated[int, at_least(0)] = 0

        def __post_init__(self) -> None:
            refuse_idle(self, self.protocol == "split", "with protocol split", "permutations", "seed")
            refuse_idle(self, self.protocol == "permuted", "with protocol permuted", "classes_per_task")

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.path).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"stream.path: {self.folder}: no such folder")

    def names(self) -> list[str]:
        if self.config.protocol == "permuted":
            return [f"permutation_{i}" for i in range(self.config.permutations)]
        return list(self._groups)

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        """Task -> its classes."""
        size, classes = self.config.classes_per_task, self._shelf.classes
        groups = [classes[i : i + size] for i in range(0, len(classes), size)]
        return {"_".join(("classes", *group)): group for group in groups}

    def version(self, names: Sequence[str]) -> str:
        """A hash over all files."""
        return files_hash(sorted(path for path in self.folder.rglob("*") if path.is_file()))

    def tasks(self, names: Sequence[str], prompt: object = None) -> list[Task]:
        return [self._task(name) for name in names]

    def _task(self, name: str) -> Task:
        order, chosen = None, self._shelf.classes
        if self.config.protocol == "split":
            chosen = self._groups[name]
        elif number := int(name.removeprefix("permutation_")):
            pixels = self._shelf.splits["train"][0][0].size
            order = random.Random(f"{self.config.seed}/images/{number}").sample(range(pixels), pixels)
        splits = {split: Pictures(f"{name}/{split}", self._shelf, split, chosen, order) for split in self._shelf.splits}
        return Task(name=name, scorer="class_accuracy", **splits)

    @cached_property
    def _shelf(self) -> Shelf:
        shelf, count = read_folder(self.folder), self.config.valid_from_train
        if not count:
            return shelf
        images, labels = shelf.splits["train"]
        if "valid" in shelf.splits or count >= len(images):
            have = "there is a valid split" if "valid" in shelf.splits else f"there are {len(images)} training pictures"
            raise UserError(f"stream.valid_from_train: {count}, and {have}; lower it or leave it out")
        if gone := sorted(set(labels.tolist()) - set(labels[:-count].tolist())):
            raise UserError(
                f"stream.valid_from_train: {count}: no training picture of class {shelf.classes[gone[0]]} would be left"
            )
        cut = {"train": (images[:-count], labels[:-count]), "valid": (images[-count:], labels[-count:])}
        return Shelf(shelf.classes, {**shelf.splits, **cut})
