"""The config's sections `train` and `engine`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cl_toolkit.engine.schedules import Infinite
from cl_toolkit.ranges import SHARE, above, at_least


@dataclass(frozen=True, kw_only=True)
class Train:
    num_train_epochs: Annotated[float, above(0).up_to(1_000_000)]
    max_steps: Annotated[int, at_least(1).or_(-1)]
    global_batch_size: Annotated[int, at_least(1)]
    per_device_train_batch_size: Annotated[int, at_least(1)] | Literal["auto"] | None
    packing: Annotated[int, at_least(2)] | None
    learning_rate: Annotated[float, at_least(0)]
    optim: Literal["adamw_torch", "sgd"]
    weight_decay: Annotated[float, at_least(0)]
    adam_beta1: Annotated[float, at_least(0).below(1)]
    adam_beta2: Annotated[float, at_least(0).below(1)]
    adam_epsilon: Annotated[float, above(0)]
    max_grad_norm: Annotated[float, at_least(0)]
    lr_scheduler_type: str
    lr_scheduler_kwargs: Infinite | None
    warmup_ratio: Annotated[float, SHARE]
    lr_over: Literal["stage", "stream"]
    lr_per_stage: tuple[Annotated[float, at_least(0)], ...] | Annotated[float, above(0)] | None
    bf16: bool | Literal["auto"]
    compile: Literal["none", "layers", "graphs"]
    gradient_checkpointing: bool
    logging_steps: Annotated[int, at_least(1)]
    num_threads: Annotated[int, at_least(1).up_to(1024)]


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    name: Literal["auto", "torch", "deepspeed"]
    device: str
    deepspeed: dict[str, Any] | str | None
    timeout_minutes: Annotated[float, above(0).up_to(100_000)]
