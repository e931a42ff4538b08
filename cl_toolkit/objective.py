"""What an objective is: how one task is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cl_toolkit.strategy import Cost

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.sources import Source
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example, Outputs


class Objective:
    """How one task is learned: examples become a batch, a batch becomes a loss.

    `updates`: optimizer steps taken per encoded batch (above 1 only for objectives that reuse rollouts).
    `extra_parameters`: numbers kept beside the model, such as a reference's weights.
    `divisible`: whether a batch may be cut into micro-batches and processes.
    `is_baseline`: plain runs with other objectives are compared with one that has this objective.
    `inputs`: what its examples may be, in the words of `Kind.inputs`.
    `needs`: what a model must give for it, of `Kind.gives`.
    `gives`: what its forward offers to strategies: `logits` (the distribution of each target: `Outputs.logits` at
    `part.labels`), `true_targets` (the targets are the data's, not the model's own), `token_mean` (its loss is
    `part.asked.total` over the step's number of targets, so that these may be weighted), `features`, `prototypes`; and
    `classes` where `equip` brings the outputs, which are classes then, whatever the kind of the model.
    `reads`: what of a row it learns from beside the target, such as `rejected`.
    `copies`: rows that one example makes in a batch (rollouts, views).
    `rollouts`: answers that this process has sampled so far.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings with their defaults. A plain objective has none."""

    paper: ClassVar[str] = "ours"
    zero_stages: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)
    divisible: ClassVar[bool] = True
    is_baseline: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ("conversations",)
    needs: ClassVar[frozenset[str]] = frozenset({"outputs"})
    gives: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    name: str = ""
    updates: int = 1
    copies: int = 1
    rollouts: int = 0
    if TYPE_CHECKING:  # a plain attribute or a property, as it suits

        @property
        def extra_parameters(self) -> int: ...
    else:
        extra_parameters: int = 0

    def __init__(self, config: Any = None):
        self.config: Any = self.Config() if config is None else config
        self.name = self.name or type(self).__name__.lower()

    def cost(self) -> Cost:
        """What a step costs beyond a forward and a backward over its rows, which are `copies` of each example."""
        return Cost()

    @property
    def answer_limit(self) -> tuple[str, int] | None:
        """(name of the setting, tokens) of the longest answer that the objective lets the model write, or of its rows of
        documents; None: no limit."""
        return None

    @property
    def idle(self) -> str:
        """Why nothing is learned with these settings, from the name of one on; "" where something is."""
        return ""

    def sources(self) -> dict[str, Source]:
        """What beside its settings and its own code decides what it does, by setting: another model, a file of functions. A
        result is known by it."""
        return {}

    def equip(self, model: nn.Module, seed: int) -> nn.Module:
        """Once, on the start model: add what the objective needs, such as a head, with weights from `seed`."""
        return model

    def units(self, codec: Any, examples: Sequence[Example]) -> Sequence[Example]:
        """What batches are made of: a task's examples, or what is made of them, such as blocks of packed documents. Strategies
        see these, count them and store them. A pure function."""
        return examples

    def before_task(self, model: nn.Module, task: TaskView) -> TaskView:
        """Prepare for a task, on the plain model: keep a reference, drop examples. Returns the task to be trained."""
        return task

    def noticed(self) -> Sequence[str]:
        """What has turned out while the last task was prepared and its user should know, in sentences from the name of the task
        on; a record's notes hold them."""
        return ()

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        """Examples -> tensors. `model` may be asked (rollouts); nothing is learned here."""
        raise NotImplementedError

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        """The loss of a part: a sum over the part divided by a count of `part.total`. Call `model(...)`, never a module
        inside it: under ZeRO-3 with accumulation that gives wrong gradients without an error."""
        raise NotImplementedError

    def compared(self, model: nn.Module, part: Batch, logits: Tensor) -> Tensor:
        """The logits (N, V) of a part's targets as its distribution has them: what the loss leaves out of it is -inf."""
        return logits
