"""The engine's contract: `Engine.open` gives a `Session` that lives for one task; a `Step` is what strategies see of a
gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from cl_toolkit.engine.processes import Processes
from cl_toolkit.errors import UserError
from cl_toolkit.strategy import merge_terms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.engine.sections import Train
    from cl_toolkit.strategy import Strategy
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example


LOWER = "a lower train.learning_rate or weight of a strategy may help"
NEVER = 2**31 - 1
"""A step that no task reaches."""


class Engine:
    """Opens sessions. It knows the processes of the job, the device and the settings of `train`."""

    name: str = ""

    def __init__(self, train: Train, device: torch.device, processes: Processes | None = None):
        self.train, self.device = train, device
        self.processes = processes or Processes()

    def open(self, model: nn.Module, task: TaskView, steps: int) -> Session:
        """A session over `steps` optimizer steps, to be used as a context manager: the optimizer is born on entering
        and gone on leaving, when `model` is a plain module with whole weights again."""
        raise NotImplementedError


class Session:
    """One task's training: cuts batches, adds up losses, steps. Subclasses implement the methods below the line.

    model: what the training forward goes through (the module, or DeepSpeed's engine around it). module: the module itself.
    step_number: optimizer steps taken. examples_seen, tokens_seen: over all processes, this task. forwards: of the model
    as a whole, those of its own generation included.
    losses: the last step's terms by name, over the whole job. grad_norm: before clipping.
    """

    def __init__(self, engine: Engine, model: nn.Module, task: TaskView, steps: int):
        self.engine, self.module, self.task, self.steps = engine, model, task, steps
        self.model: Any = model  # under DeepSpeed its engine around the module
        self.processes = engine.processes
        self.step_number = 0
        self.examples_seen = 0
        self.tokens_seen = 0
        self.forwards = 0
        self.backwards = 0
        self.extra_backwards = 0
        self.grad_norm: Tensor | float | None = None
        self._sums: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._inside = 0
        self._examples: tuple[Example, ...] = ()
        self._bad: dict[str, Tensor] = {}

    def __enter__(self) -> Session:
        # an adapted model generates past its wrapper: the module inside that generates is listened to as well
        heard = {self.module, *(m for m in self.module.modules() if "generation_config" in vars(m))}
        self._hooks_counting = [
            hook
            for module in heard
            for hook in (
                module.register_forward_pre_hook(self._enter_forward),
                module.register_forward_hook(self._leave_forward, always_call=True),
            )
        ]
        self.module.train()
        # counted here: whole weights, after `before_task` has added and frozen what it wants
        self.all_parameters = sum(p.numel() for p in self.module.parameters())
        self.trained_names = {n for n, p in self.module.named_parameters() if p.requires_grad}
        self.trained_parameters = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        self.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for hook in self._hooks_counting:
            hook.remove()
        # Closing may gather weights: where one of several processes failed, it would wait for the others for ever.
        if error is None or self.processes.world == 1:
            self.close()

    def _enter_forward(self, *_: object) -> None:
        self.forwards += self._inside == 0
        self._inside += 1

    def _leave_forward(self, *_: object) -> None:
        self._inside -= 1

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What is asked of the model inside is no cost of the method."""
        forwards = self.forwards
        yield
        self.forwards = forwards

    def share(self, examples: Sequence[Example]) -> list[Example]:
        """This process's part of a batch."""
        return self.processes.share(examples)

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches of this process's share, each with the counts of the whole step in `total`. Every process
        gives the same number of parts."""
        batch = replace(batch, total=self.processes.sum(batch.counts()))
        if (
            self.step_number % self.task.objective.updates == 0
        ):  # a further update on the same rollouts sees nothing new
            self.examples_seen += int(batch.total["sequences"]) // self.task.objective.copies
        self.tokens_seen += int(batch.total["tokens"])
        self._examples = batch.examples
        batch = batch.to(self.engine.device)
        size = self.engine.train.per_device_train_batch_size or len(batch.examples)
        rows = len(batch.examples)
        number = self.processes.max(-(-rows // size))
        if number == 1:
            self.last_part = True
            yield batch
            return
        if not self.task.objective.divisible:
            raise RuntimeError(f"objective {self.task.objective.name} cannot be cut into parts")
        for i in range(number):
            self.last_part = i == number - 1
            yield batch.rows(i * size, min((i + 1) * size, rows))

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        """Add the gradient of one part's terms."""
        for name, value in terms.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        values = list(terms.values())
        loss = values[0] if len(values) == 1 else torch.stack(values).sum()
        self.backwards += 1
        self.accumulate(loss)

    def step(self, strategy: Strategy) -> None:
        """Penalties once, `before_step`, clip, update, next learning rate."""
        step = Step(self)
        if strategy.uses("penalty"):
            terms = merge_terms(strategy.penalty(self.weights()))
            if terms:
                self._sums.update({name: value.detach() / self.processes.world for name, value in terms.items()})
                step.penalty_grads = self.add_penalty(torch.stack(list(terms.values())).sum())
        self._check("the loss term {}", self._sums)
        if strategy.uses("before_step"):
            strategy.before_step(self.model, step)
        self.update()
        if self.grad_norm is not None:
            self._check("the {}", {"norm of the gradient": torch.as_tensor(self.grad_norm)})
        self.step_number += 1
        self._last, self._sums = self._sums, {}
        if self.step_number % self.engine.train.logging_steps == 0 or self.step_number in (1, self.steps):
            self._check_late()

    def _check(self, what: str, values: Mapping[str, Tensor]) -> None:
        """Stop where a number of this step is none any more: at once on one CPU; elsewhere looking would wait for the device
        (or one process would stop alone), so that it is noted there and read by `_check_late`."""
        for name, value in values.items():
            if self.processes.world == 1 and value.device.type == "cpu":
                if not math.isfinite(number := float(value)):
                    self._stop(what.format(name), self.step_number + 1, f" is {number}")
            else:
                now = torch.where(torch.isfinite(value), 0, self.step_number + 1)
                before = self._bad.get(what.format(name), now)
                self._bad[what.format(name)] = torch.where(before > 0, before, now)

    def _check_late(self) -> None:
        """Tell of the earliest of what was noted: what else is bad by now follows from it."""
        first: dict[str, int] = {}
        for name in sorted(self._bad):
            step = int(self._bad[name])
            first[name] = -self.processes.max(-step if step else -NEVER)
        name = min(first, key=first.__getitem__, default="")
        if name and first[name] < NEVER:
            self._stop(name, first[name], " is no longer a finite number")

    def _stop(self, what: str, step: int, how: str) -> None:
        at_once = step == self.step_number + 1  # noticed later, the examples at hand are not those of that step
        shown = ", ".join(e.id for e in self._examples[:4])
        more = f" and {len(self._examples) - 4} more" if len(self._examples) > 4 else ""
        seen = f" (examples {shown}{more})" if at_once else ""
        raise UserError(f"task {self.task.name}: step {step}: {what}{how}{seen}; {LOWER}")

    @property
    def losses(self) -> dict[str, float]:
        """The last step's loss terms by name, over the whole job. Asking for them waits for the device; with several
        processes all of them must ask."""
        return self.processes.sum({name: float(value) for name, value in self._last.items()})

    # what a subclass implements -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Make optimizer and schedule."""
        raise NotImplementedError

    def accumulate(self, loss: Tensor) -> None:
        """Backward of one part. The sum over parts and processes is the gradient of the step."""
        raise NotImplementedError

    def weights(self) -> Mapping[str, Tensor]:
        """Trainable weights by name, whole, with gradient to them."""
        raise NotImplementedError

    def add_penalty(self, penalty: Tensor) -> dict[str, Tensor]:
        """Add the gradient of a penalty on `weights()`; return that gradient by name."""
        raise NotImplementedError

    def gradients(self) -> GradientsView:
        """The whole step's gradients by name, to read and to write."""
        raise NotImplementedError

    def gradient_of(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The objective's gradient on other examples, over the whole job, without touching the step's own."""
        raise NotImplementedError

    def update(self) -> None:
        """Clip and step the optimizer and the schedule; forget the gradients."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave `module` a plain module with whole weights."""


class GradientsView(Mapping):
    """Gradients by weight name. Reading gives whole tensors; assigning writes them back."""

    def __setitem__(self, name: str, value: Tensor) -> None:
        raise NotImplementedError


class Step:
    """What `before_step` sees: the gradient of the whole step before clipping.

    grads: by name, whole, read and write; with the penalties' part. penalty_grads: that part alone, {} if none.
    weights: trainable weights by name, whole.
    """

    def __init__(self, session: Session):
        self._session = session
        self.penalty_grads: dict[str, Tensor] = {}

    @property
    def number(self) -> int:
        """Optimizer steps taken before this one, in this task."""
        return self._session.step_number

    @property
    def learning_rate(self) -> float:
        """The rate of this step."""
        return self._session.learning_rate

    @property
    def grads(self) -> GradientsView:
        return self._session.gradients()

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self._session.weights()

    def gradient_of(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The objective's gradient on other examples (a memory, say), averaged over the whole job."""
        return self._session.gradient_of(examples)

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """Plain data of all processes, one list after the other, the same on every process."""
        return self._session.processes.gather(items)
