"""The nouns: Example, Task, Stage, Stream, Batch, Outputs.

Shape letters, used in every docstring: B sequences, T tokens, V vocabulary, D hidden width, P past tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""Label of a position that is not a target: prompt, padding, filler."""


SHOWN = 200
"""Characters of a text that are shown where it stands for a question."""


WITHOUT_TARGET = ("filler", "aside")
"""Sources of examples that the objective does not learn from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation. `role`: system, user, assistant or tool. `extra`: what else the turn says and a chat
    template may write: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, as the row has them."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One thing to learn or to be asked.

    Language: `messages` are the turns before the answer and `target` is the answer, or `text` is plain text.
    Arrays: `x` is a float tensor, `y` the index of its class, `target` that class as text. `choices` are all allowed
    answers. `source` says how the example came into a batch: `task`, `memory` (rehearsed), `aside` (goes through the
    forward for a strategy's own terms) or `filler` (keeps processes in step). The last two have no target and count
    nowhere.
    """

    id: str
    messages: tuple[Message, ...] = ()
    target: str = ""
    choices: tuple[str, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    x: Any = None
    y: Any = None
    source: str = "task"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last user turn, or the beginning of a text, for people to read."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), (self.text or "")[:SHOWN])


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of a stream: three splits, a scorer, and how it is learned.

    objective: a component (name and settings) of a config; None: the run's own.
    """

    name: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    scorer: str = "exact_match"
    objective: Any = None


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How a model goes through the tasks of a stream, and what that makes of its scores. A record holds it as plain data.

    does: what a model does under it, in words that follow its name.
    is_method: a way of continual learning, which can win or lose; the others are references, which are drawn apart.
    trained: whether there is any training.
    restarts: whether nothing is kept from task to task.
    upper_bound: its final score is what the methods could reach at best.
    compared: the metrics in which it may be compared with a method.
    undefined: why metrics of what happens from task to task are undefined; "" where they are defined.
    """

    name: str
    does: str
    is_method: bool = False
    trained: bool = True
    restarts: bool = False
    upper_bound: bool = False
    compared: tuple[str, ...] = ()
    undefined: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "compared": list(self.compared)}


SEQUENTIAL = Regime(name="sequential", does="learns one task after the other", is_method=True, compared=("bwt", "acc"))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training, and the row of the matrix that is filled after it (row 0 is before any training).

    task: what is trained. made_of: the names of the stream's tasks that its examples come from.
    scored: the columns that are scored after it. past: the columns learned before, whose forgetting is watched meanwhile.
    learned: the column whose own end this is; None where it is no single one's.
    fresh: it begins with the start model, not where the stage before has ended.
    tasks_at_once: tasks of the stream that it stands for, whose steps it takes.
    """

    task: Task
    row: int
    made_of: tuple[str, ...]
    scored: tuple[int, ...]
    past: tuple[int, ...] = ()
    learned: int | None = None
    fresh: bool = False
    tasks_at_once: int = 1

    def plain(self) -> dict[str, Any]:
        """What a stream that grows must have in common with the one that it was, as JSON data."""
        return {"task": self.task.name, "row": self.row, "made_of": list(self.made_of), "fresh": self.fresh,
                "objective": self.task.objective.name if self.task.objective else None}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tasks, the columns of the matrix, in their order, and the stages in which they are learned.

    anchors: tasks that count as past from the start: scored in every row, never trained as a task.
    class_incremental: an answer is chosen among the answers of all tasks learned so far, not among those of its own task.
    """

    name: str
    tasks: tuple[Task, ...]
    stages: tuple[Stage, ...]
    anchors: tuple[Task, ...] = ()
    regime: Regime = SEQUENTIAL
    class_incremental: bool = False

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """The tasks and the anchors."""
        return *self.tasks, *self.anchors

    @property
    def classes(self) -> tuple[str, ...]:
        """All allowed answers of its tasks, in the order in which they are met."""
        return answers_of((*self.anchors, *self.tasks))

    def allowed(self, row: int) -> tuple[str, ...] | None:
        """What an answer is chosen from once the tasks of so many rows are learned; None: each example's own choices."""
        if not self.class_incremental:
            return None
        return answers_of((*self.anchors, *(self.tasks[:row] if row else self.tasks)))

    def scored(self, row: int, only_seen: bool) -> tuple[int, ...]:
        """The columns that a row asks for. only_seen: not those of tasks to come, which in a class-incremental stream
        cannot even be named."""
        every = tuple(range(len(self.tasks)))
        columns = next((stage.scored for stage in self.stages if stage.row == row), every)
        hidden = (only_seen or self.class_incremental) and self.regime.trained
        return tuple(i for i in columns if i < row) if hidden else columns

    def position(self, k: int) -> int:
        """The stages before stage k since the start model was last begun with."""
        return k - max((j for j in range(k + 1) if self.stages[j].fresh), default=0)

    @staticmethod
    def of(name: str, tasks: Sequence[Task], anchors: Sequence[Task] = (), class_incremental: bool = False) -> Stream:
        """The plain stream: each task is trained once, in order, and fills its own row."""
        stages = [
            Stage(
                task=task,
                row=i + 1,
                made_of=(task.name,),
                scored=tuple(range(len(tasks))),
                past=tuple(range(i)),
                learned=i,
            )
            for i, task in enumerate(tasks)
        ]
        return Stream(
            name=name,
            tasks=tuple(tasks),
            stages=tuple(stages),
            anchors=tuple(anchors),
            class_incremental=class_incremental,
        )


def answers_of(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The allowed answers of some tasks, each once."""
    return tuple(dict.fromkeys(choice for t in tasks for e in t.train for choice in e.choices or ()))


@dataclass
class Batch:
    """Encoded examples. Rows of every tensor go with `examples`.

    inputs: what the model's forward takes: `input_ids`, `attention_mask` (B, T), or `input_ids`, `position_ids` (B, T) where
        rows hold several documents, or `x` (B, ...).
    labels: (B, T) token ids with IGNORE where nothing is to be learned, or (B,) classes.
    targets: as `labels`, and also what rows without a target (`aside`, `filler`) answer; None: the labels.
    extra: further tensors of the objective, first axis B, e.g. `advantages` (B,), `reference` (B, T).
    along_tokens: the names of those tensors (of `inputs`, `extra`, and `labels`, which `targets` go with) whose second axis runs along the tokens.
    total: counts over the *whole step*, all processes and micro-batches: divide every sum by one of these.
        `tokens` (targets), `sequences`, and per source `memory`, `memory_tokens`. Set by the session.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    examples: tuple[Example, ...]
    targets: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    along_tokens: frozenset[str] = frozenset()
    total: Mapping[str, float] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each row without padding: by its attention mask, or `extra["lengths"]` where it has none."""
        mask = self.inputs.get("attention_mask")
        return self.extra["lengths"] if mask is None else mask.sum(1)

    def source(self, name: str) -> Tensor:
        """(B,) bool: which rows have that source."""
        import torch

        return torch.tensor([e.source == name for e in self.examples], device=self.labels.device)

    def counts(self) -> dict[str, float]:
        """What `total` sums over parts and processes. Filler counts nowhere."""
        if all(e.source == "task" for e in self.examples):
            classes = self.labels.dim() == 1  # so few that a call of torch takes longer than to count them
            return {
                "tokens": float(
                    len(self.labels) - self.labels.tolist().count(IGNORE) if classes else (self.labels != IGNORE).sum()
                ),
                "sequences": float(len(self.examples)),
                "memory": 0.0,
                "memory_tokens": 0.0,
            }
        import torch

        targets = (self.labels != IGNORE).reshape(len(self.examples), -1).sum(1)
        memory, real = self.source("memory"), ~(self.source("filler") | self.source("aside"))
        return {
            "tokens": float(targets.sum()),
            "sequences": float(real.sum()),
            "memory": float(memory.sum()),
            "memory_tokens": float(torch.where(memory, targets, 0).sum()),
        }

    def rows(self, start: int, stop: int) -> Batch:
        """The micro-batch of those rows, without columns that are padding in all of them. An empty range gives one
        filler row, so that every process makes the same number of forwards."""
        if start >= stop:
            part = self.rows(0, 1)
            filler = tuple(replace(e, source="filler") for e in part.examples)
            return replace(part, labels=part.labels.new_full(part.labels.shape, IGNORE), examples=filler)
        width = int(self.lengths[start:stop].max()) if self.along_tokens else None

        def cut(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor[start:stop]
            return tensor[:, :width] if name in self.along_tokens else tensor

        return replace(
            self,
            inputs={k: cut(k, v) for k, v in self.inputs.items()},
            labels=cut("labels", self.labels),
            targets=None if self.targets is None else cut("labels", self.targets),
            examples=self.examples[start:stop],
            extra={k: cut(k, v) for k, v in self.extra.items()},
        )

    def to(self, device: Any) -> Batch:
        """The same batch on another device; itself where it is there."""
        tensors = (self.labels, self.targets, *self.inputs.values(), *self.extra.values())
        if all(tensor is None or tensor.device == device for tensor in tensors):
            return self
        return replace(
            self,
            inputs={k: v.to(device) for k, v in self.inputs.items()},
            labels=self.labels.to(device),
            targets=None if self.targets is None else self.targets.to(device),
            extra={k: v.to(device) for k, v in self.extra.items()},
        )


@dataclass
class Outputs:
    """What an objective's forward gives: `loss` (scalar, already a sum over counts of the whole step), and the
    `logits` (B, T, V) or (B, V) and `features` (B, D) for terms that need them."""

    loss: Tensor
    logits: Tensor = None  # type: ignore[assignment]  # who reads it says so in `needs`; where it is missing, no run begins
    features: Tensor = None  # type: ignore[assignment]  # the same


def spread(examples: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """At most `limit` of the examples (None: all), spread evenly over them, in their order, without a draw.

    One of each of `limit` equal stretches, at a place that moves from stretch to stretch by the golden ratio: of a file
    sorted by class, or in which classes take turns, not one class alone.
    """
    count = len(examples)
    if limit is None or limit >= count:
        return examples
    if limit == 0:
        return examples[:0]
    bounds = [i * count // limit for i in range(limit + 1)]
    places = (low + int((i * GOLDEN) % 1 * (high - low)) for i, (low, high) in enumerate(pairwise(bounds)))
    kind: Any = type(examples)
    return kind(examples[place] for place in places)


GOLDEN = (5**0.5 - 1) / 2


class Batches(Sequence[list[Example]]):
    """A task's batches: sized and indexable, so that the schedule knows its horizon and a stopped run can go on at
    batch i. Batch i is a list of examples for the whole job."""

    def __init__(self, length: int, get: Callable[[int], list[Example]]):
        self._length, self._get = length, get

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[Example]:  # type: ignore[override]  # a batch, never a slice of them
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._get(index % self._length)

    def __iter__(self) -> Iterator[list[Example]]:
        return (self[i] for i in range(self._length))
