"""What a strategy is: its hooks, and how several of them are put together.

Models are folded, batches are piped, loss terms are summed by name, gradients are edited in one place. No hook owns
backward, step or zero_grad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from cl_toolkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Batches, Outputs


LIFE_CYCLES = (None, "continue", "merge", "stack")
"""What becomes of an adapter between tasks (`model.adapter.between_tasks`); None: there is no adapter."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step costs beyond plain training on its new examples, in passes over as many rows as it has new ones.

    forwards, backwards: passes of their own. rows: rehearsed rows per new one, which ride through the step's own passes.
    calls: of the model one after the other, one per sampled token. after_task: examples that go forward and backward, one by
    one, when a task is over. read_after: examples that only go forward then, in batches. looks: at most so many passes over the
    anchors' validation examples then. written: tokens that the model is let write before a task, at most so many for each of
    its examples.
    copies: of the trained weights, whole and in fp32 on every process, that are kept beside the model. copies_per_task: further
    ones for each past task.
    """

    forwards: float = 0.0
    backwards: float = 0.0
    rows: float = 0.0
    calls: int = 0
    after_task: int = 0
    read_after: int = 0
    looks: int = 0
    written: float = 0.0
    copies: float = 0.0
    copies_per_task: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)})

    def __str__(self) -> str:
        """In words; "" for nothing."""
        passes = [
            f"{n:g} {w}{'s' * (n != 1)}" for n, w in ((self.forwards, "forward"), (self.backwards, "backward")) if n
        ]
        told = [f"{' and '.join(passes)} per step"] if passes else []
        told += [f"{self.rows:g} rehearsed row{'s' * (self.rows != 1)} per new row"] if self.rows else []
        told += [f"{self.calls} sampled tokens per step"] if self.calls else []
        told += [f"{self.after_task} examples forward and backward per task"] if self.after_task else []
        told += [f"{self.read_after} examples forward per task"] if self.read_after else []
        told += [f"up to {self.written:g} tokens written before each task per new example"] if self.written else []
        told += [f"up to {self.looks} passes over the anchors' validation examples per task"] if self.looks else []
        return ", ".join(told)


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What is known about a strategy before it runs; `list`, `plan` and the contract tests read it.

    paper: where the rule comes from, or "ours".
    off: settings under which the strategy is sequential training, bit for bit (law 2).
    needs_examples: keeps training examples of past tasks.
    needs_trained: at a task's end it looks at the weights that were trained in it. Anchors come before the first adapter, so
        that with one there are none to look at.
    cost: what a step costs with default settings and 32 new examples; `Strategy.cost` says it for others.
    extra_memory: what is kept beside the model, in words; "" for nothing.
    life_cycles: the adapter life cycles at which it works, None standing for no adapter; the first is the one it is
        checked with.
    needs: what the objective must give for it, of `Objective.gives`.
    of_model: what the model must give for it, of `Kind.gives`.
    of_adapter: what the adapter must give for it: `pairs`, the two matrices of LoRA whose product is all that it adds.
    owns: what only one strategy of a run can have: `rehearsal` (the examples added to each batch), `stored_logits`, `weights`
        (those between tasks), `lora_A` (where a new adapter's rows point), `prefix` (what stands before each row).
    inputs: what its examples may be, in the words of `Kind.inputs`. None: all of them.
    anchored: does nothing without anchors that have training examples.
    keeps_anchors: what it rehearses are anchors too, from the first task on.
    begins: the first task, counted from 1, in which it does something by its settings.
    validates: asks for the anchors' scores on validation examples (`TaskView.validate`), a selection that others do not have.
    forks: of the first task it sees the two ends alone, so that it may go on from the training of another method (law 14). Said
        for the hooks of this class; one below it that changes them has tags of its own.
    edits_gradient: writes to `step.grads` in `before_step`; those that only read there have seen the gradient before.
    zero_stages: ZeRO stages at which it works.
    exceptions: law number -> reason why that law does not hold by design.
    """

    paper: str = "ours"
    off: Mapping[str, Any] = field(default_factory=dict)
    needs_examples: bool = False
    needs_trained: bool = False
    cost: Cost = Cost()
    extra_memory: str = ""
    life_cycles: tuple[str | None, ...] = LIFE_CYCLES
    needs: frozenset[str] = frozenset()
    of_model: frozenset[str] = frozenset()
    of_adapter: frozenset[str] = frozenset()
    owns: frozenset[str] = frozenset()
    inputs: tuple[str, ...] | None = None
    anchored: bool = False
    keeps_anchors: bool = True
    begins: int = 1
    validates: bool = False
    forks: bool = False
    edits_gradient: bool = False
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    exceptions: Mapping[int, str] = field(default_factory=dict)


class Strategy:
    """How the other tasks are kept while one is learned. Override the hooks that the method needs; the rest cost nothing.

    Settings are a keyword-only frozen dataclass `Config` inside the class; `self.config` holds them. The constructor
    stores and does nothing else. `name` is the key under which the strategy stands in the config. `extra_parameters`:
    numbers kept beside the model, such as a teacher's weights or importances (stored examples are counted elsewhere).
    `rollouts`: answers that this process has let the model write so far. `kept`: the
    names of the attributes that must survive a stop between tasks.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings with their defaults. A plain strategy has none."""

    tags: ClassVar[Tags] = Tags()
    kept: ClassVar[tuple[str, ...]] = ()
    name: str = ""
    if TYPE_CHECKING:  # plain attributes or properties, as it suits

        @property
        def extra_parameters(self) -> int: ...
        @property
        def rollouts(self) -> int: ...
    else:
        extra_parameters: int = 0
        rollouts: int = 0

    def __init__(self, config: Any = None):
        self.config: Any = self.Config() if config is None else config
        self.name = self.name or type(self).__name__.lower()

    def build(self, model: nn.Module, index: int) -> nn.Module:
        """Change the model's structure for task `index` (from 0): add heads, prompts. A pure function of the model and the
        index (fresh weights from `generator_from(...)`), since a run that goes on after a stop calls it again for every
        finished task and then loads the weights.

        With an adapter the model is PEFT's wrapper around the start model, which `merge` takes off after each task; what hangs
        on the wrapper (`model.head = ...`) is moved to the plain model then, and is found as `model.head` in every task. A
        new adapter freezes all else: a head that goes on learning is unfrozen in `before_task`."""
        return model

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        """Prepare the model before its optimizer is born: freeze, unfreeze, take a snapshot. Structure belongs into `build`."""
        return model

    def batches(self, model: nn.Module, task: TaskView, batches: Batches) -> Batches:
        """Change what is trained on: mix in rehearsed examples, rewrite answers."""
        return batches

    def loss(self, model: nn.Module, part: Batch, out: Outputs) -> dict[str, Tensor]:
        """Further terms over data, once per micro-batch: a sum over the part divided by a count of `part.total`."""
        return {}

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Further terms over weights, once per step. `weights` gives trainable weights, whole, by name."""
        return {}

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Read or edit the gradients of the whole step, before clipping. Who edits says so in `tags.edits_gradient`: of
        several strategies those that read come first, then those that edit, each by their names, whatever the config's
        order."""

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        """Learn from what was just trained: store examples, take a Fisher, merge. The model is plain and whole."""
        return model

    @property
    def as_set(self) -> Tags:
        """Its tags as its settings make them, where they ask for more than others: what cannot work is refused by these."""
        return self.tags

    @property
    def needs(self) -> frozenset[str]:
        """What the objective must give for it."""
        return self.as_set.needs

    @property
    def answer_limit(self) -> tuple[str, int] | None:
        """(name of the setting, tokens) of the longest answer that it lets the model write; None: it lets it write none."""
        return None

    @property
    def validating(self) -> tuple[str, ...]:
        """Who asks for scores on validation examples."""
        return (self.name,) if self.as_set.validates else ()

    def uses(self, hook: str) -> bool:
        """Whether it does anything in that hook, so that a hook nobody uses costs nothing."""
        return getattr(type(self), hook) is not getattr(Strategy, hook)

    def told(self) -> dict[str, Any]:
        """What it has noted about the task that was just learned, as JSON data for the record, which has it under the
        strategy's name. The same on every process."""
        return {}

    def cost(self, batch_size: int) -> Cost:
        """What a step of `batch_size` new examples costs with these settings; nothing where they switch the strategy off."""
        off = self.tags.off
        return Cost() if off and all(getattr(self.config, k) == v for k, v in off.items()) else self.tags.cost

    def state(self) -> dict[str, Any]:
        """All that must survive a stop between tasks: tensors, numbers, strings, lists, dicts. By default what is `kept`; a
        store or a teacher gives its own state."""
        values = {name: getattr(self, name) for name in self.kept}
        return {name: value.state() if hasattr(value, "state") else value for name, value in values.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name in self.kept:
            value = getattr(self, name)
            if hasattr(value, "load_state"):
                value.load_state(state[name])
            else:
                setattr(self, name, state[name])


class Composed(Strategy):
    """Several strategies as one. Use `compose`, which keeps `compose(a) is a`.

    Their order does not matter: loss terms are summed by name, and gradients are read by all before any of them edits one.
    """

    def __init__(self, parts: Sequence[Strategy]):
        super().__init__()
        self.parts = tuple(parts)
        self.name = "+".join(part.name for part in parts) or "sequential"

    @property
    def extra_parameters(self) -> int:
        """Of all parts together."""
        return sum(part.extra_parameters for part in self.parts)

    @property
    def rollouts(self) -> int:
        """Of all parts together."""
        return sum(part.rollouts for part in self.parts)

    def build(self, model: nn.Module, index: int) -> nn.Module:
        for part in self.parts:
            model = part.build(model, index)
        return model

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        for part in self.parts:
            model = part.before_task(model, task)
        return model

    def batches(self, model: nn.Module, task: TaskView, batches: Batches) -> Batches:
        for part in self.parts:
            batches = part.batches(model, task, batches)
        return batches

    def loss(self, model: nn.Module, part: Batch, out: Outputs) -> dict[str, Tensor]:
        return merge_terms(*(strategy.loss(model, part, out) for strategy in self.parts))

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return merge_terms(*(strategy.penalty(weights) for strategy in self.parts))

    def before_step(self, model: nn.Module, step: Step) -> None:
        for part in sorted(self.parts, key=lambda part: (part.tags.edits_gradient, part.name)):
            part.before_step(model, step)

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        for part in self.parts:
            model = part.after_task(model, task)
        return model

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def validating(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.validating)

    def uses(self, hook: str) -> bool:
        return any(part.uses(hook) for part in self.parts)

    def cost(self, batch_size: int) -> Cost:
        return sum((part.cost(batch_size) for part in self.parts), Cost())

    def state(self) -> dict[str, Any]:
        return {part.name: part.state() for part in self.parts}

    def load_state(self, state: dict[str, Any]) -> None:
        for part in self.parts:
            part.load_state(state[part.name])


def compose(*parts: Strategy) -> Strategy:
    """One strategy from any number: none is sequential training, one is itself."""
    names = [part.name for part in parts]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(f"strategies: {', '.join(sorted(doubled))} is there twice; give each its own name")
    return parts[0] if len(parts) == 1 else Composed(parts)


def merge_terms(*groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loss terms of several sources by name, in alphabetical order so that their sum does not depend on who came first.
    A name that is taken twice is refused."""
    merged: dict[str, Tensor] = {}
    for group in groups:
        for name, value in group.items():
            if name in merged:
                raise UserError(f"the loss term {name!r} is given twice; each term needs its own name")
            merged[name] = value
    return dict(sorted(merged.items()))
