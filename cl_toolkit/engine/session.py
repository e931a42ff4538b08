"""The engine's contract: `Engine.open` gives a `Session` that lives for one task; a `Step` is what strategies see of a
gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from cl_toolkit.engine.access import counted
from cl_toolkit.engine.blocks import begin_part, checkpointed, compiled
from cl_toolkit.engine.cut import cut, shared_out, widened
from cl_toolkit.engine.processes import Processes
from cl_toolkit.engine.schedules import ALONE, Standing
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


WIDTHS = {"cuda": 64}
"""A GPU prepares for each new width of a batch, which takes longer than some padding; a CPU does not."""


def in_bf16(train: Train, device: torch.device) -> bool:
    """Whether training on a device computes in bfloat16: `auto` where it is a GPU that has it."""
    if train.bf16 != "auto":
        return bool(train.bf16)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class Engine:
    """Opens sessions. It knows the processes of the job, the device and the settings of `train`, `bf16` settled.

    mixes_dtypes: whether frozen weights may be of another precision than the trained ones.
    halves: whether parts are halved until they fit (`per_device_train_batch_size: auto`). fitting: rows of a micro-batch that
    were found to do so; None: all so far. standing: where the stage to come stands in its stream.
    """

    name: str = ""
    mixes_dtypes: bool = True

    def __init__(self, train: Train, device: torch.device, processes: Processes | None = None):
        if train.compile == "graphs" and device.type != "cuda":
            raise UserError(f"train.compile: graphs: are CUDA graphs, and engine.device is {device.type}; use layers")
        self.train, self.device = replace(train, bf16=in_bf16(train, device)), device
        self.processes = processes or Processes()
        self.fitting: int | None = None
        self.standing: Standing = ALONE
        self.halves = self.train.per_device_train_batch_size == "auto"
        self.width_multiple = WIDTHS.get(device.type, 1)

    @property
    def size(self) -> int | None:
        """Rows of a micro-batch; None: the whole share."""
        given = self.train.per_device_train_batch_size
        return given if isinstance(given, int) else self.fitting

    def open(self, model: nn.Module, task: TaskView, steps: int) -> Session:
        """A session over `steps` optimizer steps, to be used as a context manager: the optimizer is born on entering
        and gone on leaving, when `model` is a plain module with whole weights again."""
        raise NotImplementedError


class Session:
    """One task's training: cuts batches, adds up losses, steps. Subclasses implement the methods below the line.

    model: what the training forward goes through (the module, or DeepSpeed's engine around it). module: the module itself.
    step_number: optimizer steps taken. examples_seen, of which new_examples_seen are not rehearsed, tokens_seen: over all
    processes, this task. forwards: of the model as a whole, those of its own generation included.
    losses: the last step's terms by name, over the whole job. grad_norm: before clipping. rate: at which it was taken.
    """

    def __init__(self, engine: Engine, model: nn.Module, task: TaskView, steps: int):
        self.engine, self.module, self.task, self.steps = engine, model, task, steps
        self.model: Any = model  # under DeepSpeed its engine around the module
        self.processes = engine.processes
        self.step_number = 0
        self.examples_seen = self.new_examples_seen = 0
        self.tokens_seen = 0
        self.forwards = self.backwards = self.extra_backwards = 0
        self.grad_norm: Tensor | float | None = None
        self.rate = 0.0
        self._sums: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._inside = 0
        self._examples: tuple[Example, ...] = ()
        self._bad: dict[str, Tensor] = {}
        self._cut: list[Batch] | None = None
        self._full = False
        self._before: tuple[Any, ...] = ()

    def __enter__(self) -> Session:
        # Here they wait for each other, in the group that has the patience: DeepSpeed's own groups have torch's ten minutes.
        self.processes.barrier()
        # an adapted model that is told to `generate` does so past its wrapper: the module inside is listened to as well
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
        self._dress = ExitStack()
        try:
            if self.engine.train.gradient_checkpointing:
                self._dress.enter_context(checkpointed(self.module))
            if self.engine.train.compile != "none":
                self._dress.enter_context(compiled(self.module, self.engine.train.compile))
            self.start()
        except BaseException:
            self._dress.close()
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._dress.close()
        for hook in self._hooks_counting:
            hook.remove()
        # Closing may gather weights: where one of several processes failed, it would wait for the others for ever.
        if error is None or self.processes.world == 1:
            self.close()

    def _enter_forward(self, *_: object) -> None:
        self.forwards += self._inside == 0 and counted.get()
        self._inside += 1

    def _leave_forward(self, module: nn.Module, *_: object) -> None:
        self._inside -= 1
        self.forwards += int(self._inside == 0 and counted.get()) * getattr(module, "forwards_inside", 0)

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
        gives the same number of parts. What did not fit (`room`) is given again in smaller ones."""
        total = self.processes.sum(batch.counts())
        if (
            self.step_number % self.task.objective.updates == 0
        ):  # a further update on the same rollouts sees nothing new
            self.new_examples_seen += int(total["sequences"] - total["memory"]) // self.task.objective.copies
            self.examples_seen += int(total["sequences"] + total["aside"]) // self.task.objective.copies
            self._cut = None
        self.tokens_seen += int(total["tokens"])
        self._examples = batch.examples
        self._begin()
        while True:
            if self._cut is None:
                self._cut = self._pieces(batch)
            self._full = False
            for i, piece in enumerate(self._cut):
                self.last_part = i == len(self._cut) - 1
                piece.total, piece.wants_logits = total, self.task.wants_logits
                piece.weights = shared_out(total, self.task.memory_share)
                begin_part(self.engine.train.compile)
                yield piece.to(self.engine.device)
                if self._full:
                    break
            if not self._full:
                return
            self._again()

    def _pieces(self, batch: Batch) -> list[Batch]:
        """The batch cut, on the CPU; as many pieces on every process."""
        engine = self.engine
        pieces = cut(batch, engine.size, engine.train.packing, engine.width_multiple)
        number = self.processes.max(len(pieces))
        if number > 1 and not self.task.objective.divisible:
            raise RuntimeError(f"objective {self.task.objective.name} cannot be cut into parts")
        while len(pieces) < number:
            pieces.append(widened(batch.rows(()), engine.width_multiple))
        return pieces

    def aside(self, batch: Batch) -> Iterator[Batch]:
        """The parts of a batch beside the step's own, cut like that; every process gives the same number."""
        total = self.processes.sum(batch.counts())
        for piece in self._pieces(batch):
            begin_part(self.engine.train.compile)
            yield replace(piece, total=total, wants_logits=False).to(self.engine.device)

    def room(self) -> AbstractContextManager[None]:
        """For the forward and the backward of one part. With `per_device_train_batch_size: auto` one that does not fit into the
        device's memory is given up, and `parts` begins the step again with parts of half the size."""
        return self._tried() if self.engine.halves else nullcontext()

    @contextmanager
    def _tried(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            if max(len(part.labels) for part in self._cut or ()) == 1:
                raise UserError(
                    f"task {self.task.name}: step {self.step_number + 1}: not even one row fits into the memory of "
                    f"{self.engine.device}; train.gradient_checkpointing: true or a shorter prompt.max_prompt_length may help"
                ) from error
            self._full = True

    def _begin(self) -> None:
        """Remember where this step began, so that it can begin again; all of it is cheap."""
        if not self.engine.halves:
            return
        device = self.engine.device
        drawn = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._before = (self.forwards, self.backwards, torch.get_rng_state(), drawn)

    def _again(self) -> None:
        """Back to where the step began, with half the rows in a part: the step and what it draws are the same."""
        self.engine.fitting = -(-max(len(part.labels) for part in self._cut or ()) // 2)
        self._cut, self._sums = None, {}
        self.forwards, self.backwards, drawn, on_device = self._before
        torch.set_rng_state(drawn)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, self.engine.device)
            torch.cuda.empty_cache()
        self.forget()

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
                if (penalty := torch.stack(list(terms.values())).sum()).requires_grad:  # all of it may be frozen by now
                    step.penalty_grads = self.add_penalty(penalty)
        self._check("the loss term {}", self._sums)
        if strategy.uses("before_step"):
            strategy.before_step(self.model, step)
        self.rate = self.learning_rate
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
            if self.processes.world == 1 and value.is_cpu:
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

    def forget(self) -> None:
        """Drop the gradients of a step that begins again."""
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
