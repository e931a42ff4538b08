"""What a strategy is: its hooks, and how several of them are put together.

Models are folded, batches are piped, loss terms are summed by name, gradients are edited in one place. No hook owns
backward, step or zero_grad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from cl_toolkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Batches, Outputs


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What is known about a strategy before it runs; `list`, `plan` and the contract tests read it.

    paper: where the rule comes from, or "ours".
    off: settings under which the strategy is sequential training, bit for bit (law 2).
    needs_examples: keeps training examples of past tasks.
    needs_trained: at a task's end it looks at the weights that were trained in it. Anchors come before the first adapter, so
        that with one there are none to look at.
    extra_passes: forwards and backwards beyond sequential training, in words; "" for none.
    extra_memory: what is kept beside the model, in words; "" for nothing.
    between_tasks: the adapter life cycle that it needs, if any.
    life_cycles: the adapter life cycles at which it works; without an adapter it works. None: all of them.
    objectives: names of the objectives with which it works. None: all of them.
    inputs: what its examples may be, in the words of `Kind.inputs`. None: all of them.
    excludes: name of another strategy -> why the two cannot be used together.
    edits_gradient: writes to `step.grads` in `before_step`; those that only read there have seen the gradient before.
    zero_stages: ZeRO stages at which it works.
    exceptions: law number -> reason why that law does not hold by design.
    """

    paper: str = "ours"
    off: Mapping[str, Any] = field(default_factory=dict)
    needs_examples: bool = False
    needs_trained: bool = False
    extra_passes: str = ""
    extra_memory: str = ""
    between_tasks: str | None = None
    life_cycles: tuple[str, ...] | None = None
    objectives: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    excludes: Mapping[str, str] = field(default_factory=dict)
    edits_gradient: bool = False
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    exceptions: Mapping[int, str] = field(default_factory=dict)


class Strategy:
    """How the other tasks are kept while one is learned. Override the hooks that the method needs; the rest cost nothing.

    Settings are a keyword-only frozen dataclass `Config` inside the class; `self.config` holds them. The constructor
    stores and does nothing else. `name` is the key under which the strategy stands in the config. `extra_parameters`:
    numbers kept beside the model, such as a teacher's weights or importances (stored examples are counted elsewhere).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings with their defaults. A plain strategy has none."""

    tags: ClassVar[Tags] = Tags()
    name: str = ""
    extra_parameters: int = 0

    def __init__(self, config: Any = None):
        self.config = self.Config() if config is None else config
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

    def state(self) -> dict[str, Any]:
        """All that must survive a stop between tasks: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


def overrides(strategy: Strategy, hook: str) -> bool:
    """Whether a strategy does anything in that hook (so that a hook nobody uses costs nothing)."""
    if isinstance(strategy, Composed):
        return any(overrides(part, hook) for part in strategy.parts)
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


class Composed(Strategy):
    """Several strategies as one. Use `Compose`, which keeps `Compose(a) is a`.

    Their order does not matter: loss terms are summed by name, and gradients are read by all before any of them edits one.
    """

    def __init__(self, parts: Sequence[Strategy]):
        super().__init__()
        self.parts = tuple(parts)
        self.name = "+".join(part.name for part in parts) or "sequential"

    @property
    def extra_parameters(self) -> int:
        return sum(part.extra_parameters for part in self.parts)

    def build(self, model, index):
        for part in self.parts:
            model = part.build(model, index)
        return model

    def before_task(self, model, task):
        for part in self.parts:
            model = part.before_task(model, task)
        return model

    def batches(self, model, task, batches):
        for part in self.parts:
            batches = part.batches(model, task, batches)
        return batches

    def loss(self, model, part, out):
        return merge_terms(*(strategy.loss(model, part, out) for strategy in self.parts))

    def penalty(self, weights):
        return merge_terms(*(strategy.penalty(weights) for strategy in self.parts))

    def before_step(self, model, step):
        for part in sorted(self.parts, key=lambda part: (part.tags.edits_gradient, part.name)):
            part.before_step(model, step)

    def after_task(self, model, task):
        for part in self.parts:
            model = part.after_task(model, task)
        return model

    def state(self):
        return {part.name: part.state() for part in self.parts}

    def load_state(self, state):
        for part in self.parts:
            part.load_state(state[part.name])


def Compose(*parts: Strategy) -> Strategy:
    """One strategy from any number: none is sequential training, one is itself. Refuses impossible pairs by name."""
    names = [part.name for part in parts]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(f"strategies: {', '.join(sorted(doubled))} is there twice; give each its own name")
    for a, b in combinations(parts, 2):
        refuse_pair(type(a), a.name, type(b), b.name)
    return parts[0] if len(parts) == 1 else Composed(parts)


def refuse_pair(a: type[Strategy], a_name: str, b: type[Strategy], b_name: str) -> None:
    """Raise UserError when one of two strategies says that it cannot work with the other."""
    for one, one_name, other, other_name in ((a, a_name, b, b_name), (b, b_name, a, a_name)):
        for excluded, why in one.tags.excludes.items():
            if excluded in {other_name, *(c.__name__.lower() for c in other.__mro__), registered_name(other)}:
                raise UserError(f"strategies: {one_name} and {other_name} cannot be used together: {why}")
    if a.tags.between_tasks and b.tags.between_tasks and a.tags.between_tasks != b.tags.between_tasks:
        raise UserError(
            f"strategies: {a_name} needs model.adapter.between_tasks: {a.tags.between_tasks}, "
            f"{b_name} needs {b.tags.between_tasks}"
        )
    if None not in (a.tags.objectives, b.tags.objectives) and not {*a.tags.objectives} & {*b.tags.objectives}:
        raise UserError(
            f"strategies: {a_name} and {b_name} cannot be used together: {a_name} works with objective "
            f"{' or '.join(a.tags.objectives)}, {b_name} with {' or '.join(b.tags.objectives)}"
        )
    for one, one_name, other, other_name in ((a, a_name, b, b_name), (b, b_name, a, a_name)):
        needed, allowed = one.tags.between_tasks, other.tags.life_cycles
        if needed and allowed is not None and needed not in allowed:
            raise UserError(
                f"strategies: {one_name} and {other_name} cannot be used together: {one_name} needs "
                f"model.adapter.between_tasks: {needed}, at which {other_name} does not work"
            )


def registered_name(cls: type) -> str:
    """The registry's name of a class, or an empty string for a guest."""
    return getattr(cls, "registry_name", "")


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
