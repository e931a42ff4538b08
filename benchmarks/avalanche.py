"""`avalanche`: any benchmark of Avalanche (Lomonaco et al. 2021) that classifies, an experience as a task.

Needs avalanche-lib (`pip install 'cl-toolkit[avalanche]'`). Examples are read under the benchmark's transforms for evaluation,
in training too: what is drawn anew at each look would be another data set each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from cl_toolkit.data.facts import Facts
from cl_toolkit.data.splits import Known
from cl_toolkit.data.spread import spread
from cl_toolkit.errors import UserError, did_you_mean, quoted, short
from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import at_least
from cl_toolkit.registry import load_reference
from cl_toolkit.types import Example, Task

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


class Avalanche:
    """A benchmark of Avalanche as a stream of arrays, for `mlp`, `small-cnn` and `small-vit`."""

    inputs = "arrays"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """benchmark: a name of `avalanche.benchmarks`, such as SplitMNIST, or file.py:function that gives a benchmark.
        arguments: of either. valid_from_train: so many training examples of each experience, spread over it, are valid."""

        benchmark: str
        arguments: dict[str, Any] = field(default_factory=dict)
        valid_from_train: Annotated[int, at_least(0)] = 0

    def __init__(self, config: Config):
        self.config = config

    def names(self) -> list[str]:
        return [f"experience_{i + 1}" for i in range(len(self._benchmark.train_stream))]

    def version(self, names: Sequence[str]) -> str:
        """What makes the benchmark; its data are Avalanche's own, which do not change."""
        return version("avalanche-lib")

    def tasks(self, names: Sequence[str], prompt: object = None) -> list[Task]:
        return [self._task(name, int(name.removeprefix("experience_")) - 1) for name in names]

    def _task(self, name: str, index: int) -> Task:
        tests, experience = self._benchmark.test_stream, self._benchmark.train_stream[index]
        test = tests[index if len(tests) > 1 else 0]  # one test for all, where the domain changes
        classes = sorted(map(int, experience.classes_in_this_experience))
        whole = Experience(f"{name}/train", experience.dataset.eval(), classes)
        count = self.config.valid_from_train
        if count >= len(whole):
            raise UserError(
                f"stream.valid_from_train: {count}, and {name} has {len(whole)} training examples; lower it"
            )
        places = set(spread(range(len(whole)), count))  # not the last: data may come class by class
        train, valid = whole.take([i for i in range(len(whole)) if i not in places]), whole.take(sorted(places))
        return Task(
            name=name,
            train=train,
            valid=valid if count else (),
            test=Experience(f"{name}/test", test.dataset.eval(), classes),
            scorer="class_accuracy",
        )

    @cached_property
    def _benchmark(self) -> Any:
        try:
            from avalanche import benchmarks
        except ImportError as error:
            raise UserError(
                f"stream.name: avalanche: needs avalanche-lib ({error}); pip install 'cl-toolkit[avalanche]'"
            ) from error
        name, where = self.config.benchmark, "stream.benchmark"
        if ":" in name:
            make = load_reference(name, where)
        elif (make := getattr(benchmarks, name, None)) is None:
            raise UserError(f"{where}: avalanche.benchmarks has no {quoted(name)}{did_you_mean(name, dir(benchmarks))}")
        try:
            found = make(**self.config.arguments)
            if not len(found.train_stream) or not len(found.test_stream):
                raise ValueError("it has no experience to be trained, or none to be tested on")
        except Exception as error:
            what = short(" ".join(f"{type(error).__name__}: {error}".split()), 200)
            raise UserError(f"{where}: {name}: {what}") from error
        return found


class Experience(Known):
    """The examples of one of Avalanche's data sets."""

    def __init__(self, name: str, dataset: Any, classes: Sequence[int]):
        self.name, self.dataset, self.choices = name, dataset, tuple(map(str, classes))

    def make(self, place: int) -> Example:
        x, y, *_ = self.dataset[place]
        x = torch.as_tensor(x, dtype=torch.float32)
        return Example(id=f"{self.name}/{place}", x=x, y=int(y), target=str(int(y)), choices=self.choices)

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]  # found when it is asked for
        return Facts.of(self.make(place) for place in range(len(self)))
