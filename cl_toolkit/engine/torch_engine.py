"""One process, one device: plain torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cl_toolkit.engine.schedules import ALONE, Standing, peak, rates
from cl_toolkit.engine.sections import Train
from cl_toolkit.engine.session import Engine, GradientsView, Session
from cl_toolkit.errors import UserError
from cl_toolkit.types import Example


def make_optimizer(train: Train, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of one task, by transformers' names: `adamw_torch` (one kernel on a GPU) or `sgd`."""
    if train.optim == "sgd":
        return torch.optim.SGD(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    return torch.optim.AdamW(
        parameters,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        fused=all(parameter.device.type == "cuda" for parameter in parameters) or None,
    )


class Constant:
    """The schedule that changes nothing: torch's own would set each rate anew at each step."""

    def step(self) -> None:
        """The next step has the same rate."""


def make_schedule(
    train: Train, optimizer: torch.optim.Optimizer, steps: int, standing: Standing = ALONE
) -> torch.optim.lr_scheduler.LRScheduler | Constant:
    """The rates of a stage of so many steps, which stands there in its stream."""
    if train.lr_scheduler_type == "constant" and peak(train, len(standing.done)) == 1:
        return Constant()
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rates(train, steps, standing))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that are trained, by name. They are fp32: in less, an optimizer's small steps are rounded away."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, weight in weights.items():
        if weight.dtype in (torch.bfloat16, torch.float16):
            raise UserError(
                f"model.dtype: the weight {name} would be trained in {str(weight.dtype).removeprefix('torch.')}, in which "
                "small steps are lost; use model.dtype: float32 with train.bf16: true"
            )
    return weights


class TorchEngine(Engine):
    """One device: cpu, cuda or mps. bf16 by autocast, with fp32 weights."""

    name = "torch"

    def open(self, model, task, steps):
        return TorchSession(self, model, task, steps)

    def precision(self) -> AbstractContextManager:
        """The context of a training forward."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.train.bf16 else nullcontext()


class TorchSession(Session):
    """A plain training step."""

    engine: TorchEngine

    def start(self):
        self._weights = trainable(self.module)
        self.optimizer = make_optimizer(self.engine.train, list(self._weights.values()))
        self.schedule = make_schedule(self.engine.train, self.optimizer, self.steps, self.engine.standing)
        if self.engine.train.bf16:
            self._wrap_forward()

    def _wrap_forward(self) -> None:
        plain_forward = self.module.forward

        @functools.wraps(plain_forward)  # transformers reads the signature: position ids, logits_to_keep
        def forward(*args, **kwargs):
            with self.engine.precision():
                return plain_forward(*args, **kwargs)

        self.module.forward = forward

    def accumulate(self, loss):
        loss.backward()

    def weights(self):
        return self._weights

    def add_penalty(self, penalty):
        grads = torch.autograd.grad(penalty, list(self._weights.values()), allow_unused=True)
        found = {}
        for (name, weight), grad in zip(self._weights.items(), grads, strict=True):
            if grad is not None:
                found[name] = grad
                weight.grad = grad.clone() if weight.grad is None else weight.grad.add_(grad)
        return found

    def gradients(self):
        return _Gradients(self._weights)

    def gradient_of(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        weights = list(self._weights.values())
        found: list[Tensor | None] = [None] * len(weights)
        for part in self.aside(self.task.encode(examples, self.model)):
            loss = self.task.forward(self.model, part).loss
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            found = [
                new if old is None else old if new is None else old + new for old, new in zip(found, grads, strict=True)
            ]
        self.extra_backwards += 1
        return {
            name: torch.zeros_like(weight) if grad is None else grad
            for (name, weight), grad in zip(self._weights.items(), found, strict=True)
        }

    def forget(self):
        for weight in self._weights.values():
            weight.grad = None

    def update(self):
        limit = self.engine.train.max_grad_norm
        if limit:
            self.grad_norm = nn.utils.clip_grad_norm_(self._weights.values(), limit)
        self.optimizer.step()
        self.schedule.step()
        self.forget()

    @property
    def learning_rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def close(self):
        self.forget()
        if self.engine.train.bf16:
            del self.module.forward
        del self.optimizer, self.schedule


class _Gradients(GradientsView):
    def __init__(self, weights: dict[str, nn.Parameter]):
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        return torch.zeros_like(weight) if weight.grad is None else weight.grad

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._weights[name].grad = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
