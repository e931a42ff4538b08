"""The nouns: Example, Task, Stage, Stream, Batch, Outputs.

Shape letters, used in every docstring: B sequences, T tokens, V vocabulary, D hidden width, P past tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

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


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class Example:
    """One thing to learn or to be asked.

    Language: `messages` are the turns before the answer, `target` is the answer, `images` (uint8, (3, H, W)) stand before the
    first user turn; or `text` is plain text. Arrays: `x` is a float tensor, `y` the index of its class, `target` that class
    as text. `choices` are all allowed answers. `source` says how the example came into a batch: `task`, `memory` (rehearsed),
    `aside` (for a strategy's own terms) or `filler` (keeps processes in step). The last two have no target.
    """

    id: str
    messages: tuple[Message, ...] = ()
    target: str = ""
    choices: tuple[str, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    images: tuple[Any, ...] = ()
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
    """A task of a stream: three splits, which may be read lazily, a scorer, and how it is learned.

    objective: a component (name and settings) of a config; None: the run's own.
    """

    name: str
    train: Sequence[Example]
    valid: Sequence[Example] = ()
    test: Sequence[Example] = ()
    scorer: str = "exact_match"
    objective: Any = None

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The allowed answers of its training examples, in the order in which they are met."""
        known = getattr(self.train, "answers", None)  # who reads lazily knows them
        return tuple(dict.fromkeys(c for e in self.train for c in e.choices or ())) if known is None else known()


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
        every = tuple(range(len(tasks)))
        stages = tuple(
            Stage(task=task, row=i + 1, made_of=(task.name,), scored=every, past=every[:i], learned=i)
            for i, task in enumerate(tasks)
        )
        return Stream(
            name=name, tasks=tuple(tasks), stages=stages, anchors=tuple(anchors), class_incremental=class_incremental
        )


def answers_of(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The allowed answers of some tasks, each once."""
    return tuple(dict.fromkeys(choice for task in tasks for choice in task.answers))


@dataclass(frozen=True)
class Targets:
    """The N targets of a batch, row after row: what is to be predicted, where, and of which example.

    places: (N,) of the outputs that predict them: r T + t for `labels[r, t + 1]`, or the row of a class. labels: (N,).
    examples: (N,) index into `Batch.examples`. learned: (N,) bool; None: all are. weights: (N,) what each counts; None: 1.
    """

    places: Tensor
    labels: Tensor
    examples: Tensor
    learned: Tensor | None
    weights: Tensor | None = None

    def total(self, values: Tensor) -> Tensor:
        """The sum of values (N,) over the targets that are learned, each by its weight."""
        values = values if self.weights is None else values * self.weights
        return values.sum() if self.learned is None else values.where(self.learned, 0).sum()


@dataclass
class Batch:
    """Encoded examples. Rows of every tensor go with `examples`, unless `owners` says that a row holds several of them.

    inputs: what the model's forward takes: `input_ids`, `attention_mask` (B, T), or `input_ids`, `position_ids` (B, T) where
        rows hold several documents or examples, or `x` (B, ...).
    labels: (B, T) token ids with IGNORE where nothing is to be learned, or (B,) classes.
    targets: as `labels`, and also what rows without a target (`aside`, `filler`) answer; None: the labels.
    owners: (B, T) index into `examples` of each token, where rows are packed; None: row i is example i.
    extra: further tensors of the objective, one for each example, e.g. `advantages` (E,), or along tokens.
    along_tokens: the names of those tensors (of `inputs`, `extra`, and `labels`, which `targets` go with) with axes (B, T).
    total: counts over the *whole step*, all processes and micro-batches: divide every sum by one of these.
        `tokens` (targets), `sequences`, and per source `memory`, `memory_tokens`, `aside`. Set by the session.
    wants_logits: whether the objective's forward shall give `Outputs.logits`, for those who say that they need them.
    weights: what a target of a rehearsed example counts, and one of a new one; None: 1. Set by `TaskView.memory_share`.
    memo: what an objective keeps of this part from one update to the next (`Objective.updates`).
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    examples: tuple[Example, ...]
    targets: Tensor | None = None
    owners: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    along_tokens: frozenset[str] = frozenset()
    total: Mapping[str, float] = field(default_factory=dict)
    wants_logits: bool = True
    weights: tuple[float, float] | None = None
    memo: dict[str, Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each row without padding: by its attention mask, or `extra["lengths"]` where it has none."""
        mask = self.inputs.get("attention_mask")
        return self.extra["lengths"] if mask is None else mask.sum(1)

    @cached_property
    def asked(self) -> Targets:
        """Where the targets are. Found on the CPU where the batch begins there: a device would have to be waited for."""
        labels = self.labels
        all_of_them = labels if self.targets is None else labels.where(labels != IGNORE, self.targets)
        if labels.dim() == 1:
            rows = torch.arange(len(labels), device=labels.device)
            if self.targets is None and self.weights is None and IGNORE not in labels.tolist():
                return Targets(rows, labels, rows, None)
            places = rows = rows[all_of_them != IGNORE]
        else:
            rows, columns = (all_of_them[:, 1:] != IGNORE).nonzero(as_tuple=True)
            places = rows * labels.shape[1] + columns
            labels, all_of_them = (t.flatten() for t in (labels, all_of_them))
        after = places + (self.labels.dim() > 1)
        owners = rows if self.owners is None else self.owners.flatten()[after]
        learned = None if self.targets is None else labels[after] != IGNORE
        if learned is not None and self.labels.device.type == "cpu" and bool(torch.all(learned)):
            learned = None
        weights = None if self.weights is None else torch.where(self.source("memory")[owners], *self.weights)
        return Targets(places, all_of_them[after], owners, learned, weights)

    @cached_property
    def sources(self) -> frozenset[str]:
        """The sources of its examples."""
        return frozenset([e.source for e in self.examples])

    def source(self, name: str) -> Tensor:
        """(E,) bool: which examples have that source."""
        return torch.tensor([e.source == name for e in self.examples], device=self.labels.device)

    def counts(self) -> dict[str, float]:
        """What `total` sums over parts and processes, of rows that are not packed. Filler counts nowhere, `aside` alone."""
        if self.sources == {"task"}:
            classes = self.labels.dim() == 1  # so few that a call of torch takes longer than to count them
            missing = self.labels.tolist().count(IGNORE) if classes else (self.labels == IGNORE).sum()
            others = dict.fromkeys(("memory", "memory_tokens", "aside"), 0.0)
            return {"tokens": float(self.labels.numel() - missing), "sequences": float(len(self.examples)), **others}
        targets = (self.labels != IGNORE).reshape(len(self.examples), -1).sum(1)
        memory, aside = self.source("memory"), self.source("aside")
        return {
            "tokens": float(targets.sum()),
            "sequences": float((~(self.source("filler") | aside)).sum()),
            "memory": float(memory.sum()),
            "memory_tokens": float(torch.where(memory, targets, 0).sum()),
            "aside": float(aside.sum()),
        }

    def map(self, change: Callable[[str, Tensor], Tensor], **changes: Any) -> Batch:
        """The batch with `change(name, tensor)` in the place of each tensor, and further fields changed. `targets` and `owners`
        are called `labels`, which they go with."""

        def each(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: change(name, tensor) for name, tensor in tensors.items()}

        beside = {"targets": self.targets, "owners": self.owners}
        moved: dict[str, Any] = {k: None if t is None else change("labels", t) for k, t in beside.items()}
        moved |= {"inputs": each(self.inputs), "labels": change("labels", self.labels), "extra": each(self.extra)}
        return replace(self, **{**moved, **changes})

    def rows(self, chosen: Sequence[int]) -> Batch:
        """The micro-batch of those rows, which are not packed, without columns that are padding in all of them. None gives one
        filler row, so that every process makes the same number of forwards."""
        if not chosen:
            part = self.rows([0])
            answer = part.labels if part.targets is None else part.targets
            filler = tuple(replace(e, source="filler") for e in part.examples)
            nothing = part.labels.new_full(part.labels.shape, IGNORE)
            return replace(part, labels=nothing, targets=answer, examples=filler)
        width = max(self.lengths[chosen].tolist()) if self.along_tokens else None

        def cut(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor[chosen]
            return tensor[:, :width] if name in self.along_tokens else tensor

        return self.map(cut, examples=tuple(self.examples[i] for i in chosen), memo={})

    def to(self, device: Any) -> Batch:
        """The same batch on another device, itself where it is there; copies to a GPU are not waited for."""
        device = torch.device(device)
        tensors = (self.labels, self.targets, *self.inputs.values(), *self.extra.values())
        if all(tensor is None or tensor.device == device for tensor in tensors):
            return self
        apart = device.type == "cuda"

        def moved(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if apart else tensor).to(device, non_blocking=apart)

        found, asked = self.map(lambda name, tensor: moved(tensor)), self.asked
        learned, weights = (None if tensor is None else moved(tensor) for tensor in (asked.learned, asked.weights))
        found.asked = Targets(moved(asked.places), moved(asked.labels), moved(asked.examples), learned, weights)
        return found


class Outputs:
    """What an objective's forward gives: `loss` (scalar, already a sum over counts of the whole step), and for terms that need
    them `logits` (N, V), those that predict the targets of `Batch.asked`, in the precision that the model computes in, and
    `features` (B, D)."""

    def __init__(self, loss: Tensor, logits: Tensor | None = None, features: Tensor | None = None):
        self.loss, self.given = loss, {"logits": logits, "features": features}

    def _told(self, name: str) -> Tensor:
        value = self.given[name]
        if value is None:
            raise UserError(
                f"reads out.{name}, which are made only for those who say so: needs={{{name!r}}} in its tags"
            )
        return value

    @property
    def logits(self) -> Tensor:
        """Raises UserError where nobody has said that they are needed."""
        return self._told("logits")

    @property
    def features(self) -> Tensor:
        """Raises UserError where the objective has none."""
        return self._told("features")


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
