"""`digits`: the 1,797 images of handwritten digits, 8 x 8, that come with scikit-learn; split by class, or permuted.

From Alpaydin & Kaynak 1998 (UCI, CC BY 4.0). Split: two digits per task (Zenke et al. 2017). Permuted: all ten digits in each
task, each with a fixed pixel order of its own; the first task's is the identity (Goodfellow et al. 2013).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import SEED, at_least, refuse_idle
from cl_toolkit.types import Example, Task

if TYPE_CHECKING:
    from torch import Tensor

torch = LazyModule("torch")


class Digits:
    """A stream of small images (1, 8, 8) with values in [0, 1], for `mlp`, `small-cnn` and `small-vit`. Splits are the same for
    every seed: a tenth of each digit's images is valid, two tenths are test."""

    inputs = "arrays"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """protocol: split (five tasks of two digits) | permuted. permutations: tasks of the permuted stream. seed: of the
        permutations, not of a run."""

        protocol: Literal["split", "permuted"] = "split"
        permutations: Annotated[int, at_least(1).up_to(1000)] = 5
        seed: Annotated[int, SEED] = 0

        def __post_init__(self) -> None:
            refuse_idle(self, self.protocol == "split", "with protocol split", "permutations", "seed")

    def __init__(self, config: Config):
        self.config = config

    def names(self) -> list[str]:
        if self.config.protocol == "permuted":
            return [f"permutation_{i}" for i in range(self.config.permutations)]
        return [f"digits_{i}_{i + 1}" for i in range(0, 10, 2)]

    def version(self, names: Sequence[str]) -> str:
        """It depends on its settings alone."""
        return ""

    def tasks(self, names: Sequence[str], prompt: object = None) -> list[Task]:
        from sklearn.datasets import load_digits

        data = load_digits()
        images, labels = torch.tensor(data.images / 16, dtype=torch.float32), data.target.tolist()
        return [self._task(name, images, labels) for name in names]

    def _task(self, name: str, images: Tensor, labels: list[int]) -> Task:
        number = int(name.split("_")[1])
        if self.config.protocol == "permuted":
            digits: Sequence[int] = range(10)
            order = random.Random(f"{self.config.seed}/digits/{number}").sample(range(64), 64)
            images = images if number == 0 else images.flatten(1)[:, order].reshape(images.shape)
        else:
            digits = (number, number + 1)
        choices = tuple(map(str, digits))
        splits: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
        met = dict.fromkeys(digits, 0)
        for i, digit in enumerate(labels):  # in the data's own order, in which the digits take turns
            if digit not in met:
                continue
            split = {0: "valid", 1: "test", 2: "test"}.get(met[digit] % 10, "train")
            met[digit] += 1
            splits[split].append(
                Example(id=f"{name}/{i}", x=images[i].unsqueeze(0), y=digit, target=str(digit), choices=choices)
            )
        parts = {split: tuple(examples) for split, examples in splits.items()}
        return Task(name=name, train=parts["train"], valid=parts["valid"], test=parts["test"], scorer="class_accuracy")
