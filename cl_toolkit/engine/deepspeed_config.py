"""A user's DeepSpeed config and `train` -> the config that DeepSpeed gets. Does not import deepspeed, so that a mistake
is found before anything heavy loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_toolkit.engine.sections import Train
from cl_toolkit.errors import UserError

DEFAULT = {"zero_optimization": {"stage": 2}}
"""Shards optimizer and gradients at the communication of plain data parallelism; whole weights stay on each device, so
that scoring between two steps costs no gathering."""

OWNED = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "torch_autocast",
}
"""Keys that follow from `train`."""

ONE_PIECE = "a model's layers are in one piece on each process here; leave it out and use ZeRO-3, which shards weights"
INSTEAD = {
    "sequence_parallel_size": "rows are whole on each process here; leave it out and use train.per_device_train_batch_size: 1, "
    "train.gradient_checkpointing: true, or a shorter prompt.max_prompt_length",
    "tensor_parallel": ONE_PIECE,
    "pipeline": ONE_PIECE,
    "expert_parallel": ONE_PIECE,
    "autotuning": "it starts jobs of its own; leave it out and ask `cl-toolkit plan`",
    "elasticity": "it changes the batch size; leave it out: the same command goes on with any number of processes",
    "hybrid_engine": "leave it out: answers are written under `generation`",
    "data_efficiency": "it changes what is trained on; leave it out: that is the strategies' part",
    "curriculum_learning": "it changes what is trained on; leave it out: that is the strategies' part",
    "compression_training": "it changes the model while it is trained; leave it out",
    "amp": "leave it out and use train.bf16",
}
"""Keys that would be passed over, or would make another job of this one -> what to do instead."""

AUTO = "auto"
OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}
SCHEDULES = {"warmuplr": "constant_with_warmup", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}


def final_config(given: Mapping[str, Any] | str | None, train: Train) -> dict[str, Any]:
    """What DeepSpeed gets: everything that was given, and the keys that follow from `train`.

    `given` is a dict, the path of a JSON file, or None for ZeRO stage 2. Keys that `train` decides must be absent,
    "auto" or the same as there. "auto" anywhere else leaves DeepSpeed's own default. UserError: no such file, not JSON,
    a key that contradicts `train`, fp16.
    """
    given = read(given)
    _check(given, train)
    return {
        "zero_allow_untested_optimizer": True,  # the optimizer is torch's, also where ZeRO does not list it
        "zero_force_ds_cpu_optimizer": False,
        **{key: _without_auto(value) for key, value in given.items() if key not in OWNED and value != AUTO},
        "train_micro_batch_size_per_gpu": train.per_device_train_batch_size or 1,
        "gradient_accumulation_steps": 1,  # the number of parts varies from step to step: the session sets the boundary
        "gradient_clipping": train.max_grad_norm,
        # Not DeepSpeed's own `bf16`, which would turn frozen weights and buffers into bfloat16 for good.
        "torch_autocast": {"enabled": train.bf16, "dtype": "bfloat16"},
    }


BUCKET = 500_000_000
"""DeepSpeed's own: numbers that are gathered or reduced at once."""

ALIGNED = 1024
"""Buckets are a multiple of it; DeepSpeed asks for one of 2 or 4."""


def with_buckets(config: Mapping[str, Any], trained: int) -> dict[str, Any]:
    """The config with buckets no larger than what is trained, where it names none: DeepSpeed's own take 2 GB each from any
    model."""
    zero = config.get("zero_optimization")
    if not isinstance(zero, Mapping):
        return dict(config)
    size = min(BUCKET, -(-max(trained, 1) // ALIGNED) * ALIGNED)
    return {**config, "zero_optimization": {"reduce_bucket_size": size, "allgather_bucket_size": size, **zero}}


def zero_stage(config: Mapping[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed config: 0 where it names none."""
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else zero
    if stage not in (0, 1, 2, 3):
        raise UserError(f"engine.deepspeed: zero_optimization.stage: expected 0, 1, 2 or 3, got {stage!r}")
    return int(stage)


def read(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """The user's config as a dict."""
    if given is None:
        return dict(DEFAULT)
    if isinstance(given, Mapping):
        return dict(given)
    try:
        content = json.loads(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"engine.deepspeed: {given}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"engine.deepspeed: {given}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"engine.deepspeed: {given}: expected a JSON object, got {type(content).__name__}")
    return content


def _check(given: Mapping[str, Any], train: Train) -> None:
    zero_stage(given)
    for key, instead in INSTEAD.items():
        if _in_use(given.get(key)):
            raise UserError(f"engine.deepspeed: {key}: {instead}")
    if _enabled(given, "fp16") not in (False, AUTO):
        raise UserError("engine.deepspeed: fp16: remove it and use train.bf16; scaled gradients cannot be edited")
    for key in ("bf16", "torch_autocast"):
        wanted = _enabled(given, key)
        if wanted not in (train.bf16, AUTO) and key in given:
            raise UserError(f"engine.deepspeed: {key}: remove it and write train.bf16: {str(bool(wanted)).lower()}")
    for key, name in (
        ("train_batch_size", "global_batch_size"),
        ("train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
        ("gradient_clipping", "max_grad_norm"),
    ):
        value, wanted = given.get(key, AUTO), getattr(train, name)
        if value not in (AUTO, wanted):
            raise UserError(f"engine.deepspeed: {key} is {value!r}, train.{name} is {wanted!r}: write it there only")
    if given.get("gradient_accumulation_steps", AUTO) != AUTO:
        raise UserError(
            "engine.deepspeed: gradient_accumulation_steps: remove it and write train.per_device_train_batch_size, "
            "from which it follows"
        )
    _check_optimizer(_named(given, "optimizer"), train)
    _check_scheduler(_named(given, "scheduler"), train)


def _check_optimizer(optimizer: Mapping[str, Any], train: Train) -> None:
    kind = optimizer.get("type", AUTO)
    if kind != AUTO and OPTIMIZERS.get(str(kind).lower()) != train.optim:
        raise UserError(f"engine.deepspeed: optimizer.type is {kind!r}, train.optim is {train.optim!r}: remove it")
    wanted = {
        "lr": (train.learning_rate, "train.learning_rate"),
        "betas": ([train.adam_beta1, train.adam_beta2], "train.adam_beta1 and train.adam_beta2"),
        "eps": (train.adam_epsilon, "train.adam_epsilon"),
        "weight_decay": (train.weight_decay, "train.weight_decay"),
    }
    for key, value in optimizer.get("params", {}).items():
        expected, instead = wanted.get(key, (AUTO, "train.optim and the keys beside it"))
        if value not in (AUTO, expected):
            raise UserError(f"engine.deepspeed: optimizer.params.{key}: remove it and write {instead}")


def _check_scheduler(scheduler: Mapping[str, Any], train: Train) -> None:
    kind = scheduler.get("type", AUTO)
    chosen = train.lr_scheduler_type
    if kind != AUTO and SCHEDULES.get(str(kind).lower()) != chosen:
        raise UserError(
            f"engine.deepspeed: scheduler.type is {kind!r}, train.lr_scheduler_type is {chosen!r}: remove it"
        )
    for key, value in scheduler.get("params", {}).items():
        if value != AUTO:
            raise UserError(f"engine.deepspeed: scheduler.params.{key}: remove it and write train.warmup_ratio")


def _named(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section with `type` and `params`; empty when it is absent or "auto"."""
    value = given.get(key, AUTO)
    if value == AUTO:
        return {}
    if not isinstance(value, Mapping) or not isinstance(value.get("params", {}), Mapping):
        raise UserError(f"engine.deepspeed: {key}: expected type and params, got {value!r}")
    return value


def _enabled(given: Mapping[str, Any], key: str) -> Any:
    value = given.get(key, AUTO)
    return value.get("enabled", False) if isinstance(value, Mapping) else value


def _in_use(value: Any) -> bool:
    """Whether a section or a number switches something on: sizes of 1 and what is not enabled do not."""
    if isinstance(value, Mapping):
        return bool(value.get("enabled", any(_in_use(inner) for inner in value.values())))
    return value is True or value not in (None, False, 0, 1, AUTO)


def offloaded(config: Mapping[str, Any]) -> frozenset[str]:
    """What of `optimizer` and `param` a DeepSpeed config keeps on the host or on a disk."""
    zero = config.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) and zero_stage(config) else {}
    devices = {part: (zero.get(f"offload_{part}") or {}).get("device", "none") for part in ("optimizer", "param")}
    return frozenset(part for part, device in devices.items() if device not in ("none", None))


def _without_auto(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_auto(inner) for key, inner in value.items() if inner != AUTO}
    return value
