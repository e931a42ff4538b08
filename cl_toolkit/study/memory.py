"""The memory of one process, by arithmetic: from a model's shape, what of it is trained, and how the job is cut.

What is exact: weights, gradients, optimizer, copies. Activations are those of a decoder of Llama's kind with an attention that
keeps no scores (flash or torch's own), counted on what torch keeps for the backward. Other architectures differ by a factor of
up to two. What is left out: the allocator's own, kernels, the cache of generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cl_toolkit.engine.choose import ENGINES, engine_name
from cl_toolkit.engine.deepspeed_config import BUCKET, final_config, offloaded, zero_stage
from cl_toolkit.models.logits import CHUNK, ON_GPU
from cl_toolkit.strategy import Cost

GIB = 2**30
ACTIVATIONS = {False: (32, 8, 16), True: (30, 4, 8)}
"""Bytes per token and layer for each number of the width, of the keys' width and of the inner width; True: under bf16."""
LOGIT_BYTES = {False: 12, True: 16}
"""Bytes per target and entry of the vocabulary: the logits, their logarithms of probabilities, the gradient; in bf16 twice."""
BUCKET_BYTES = {False: (4, 4, 4, 4), True: (4, 8, 8, 6)}
"""Bytes of a number of DeepSpeed's buckets, by ZeRO stage; True: under bf16, where stages 1 and 2 have one bucket for gradients
that are sent in bf16 and one for the others, both in fp32."""
FULL = 0.9
"""The share of a device's memory that can be planned with: the rest is the allocator's and the kernels'."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model decides what it needs.

    total, trained: parameters. weight_bytes: of all of them, as they lie on the device while a task is trained. start_bytes: as
    they are loaded. cast: numbers in fp32 weights of linear layers, of which autocast makes copies in bf16. block: parameters
    of the largest layer. layers, width, inner, keys: of the decoder; 0 where it has no such thing. vocabulary: of the logits.
    """

    total: int
    trained: int
    weight_bytes: int
    start_bytes: int = 0
    cast: int = 0
    block: int = 0
    layers: int = 0
    width: int = 0
    inner: int = 0
    keys: int = 0
    vocabulary: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """How the work is cut.

    stage: of ZeRO, None without DeepSpeed. offload: what lies on the host (`optimizer`, `param`). optimizer: numbers that it
    keeps for each trained one. rows, tokens, targets: of a forward, and of one of its rows; targets are learned tokens.
    logits: whether all of them are kept. cost: of strategies and objective. past: tasks before the last. reads: whole copies of
    trained weights and gradients that a strategy looks at in a step. stored: bytes of examples on the host.
    """

    stage: int | None = None
    processes: int = 1
    offload: frozenset[str] = frozenset()
    optimizer: int = 2
    bf16: bool = False
    gpu: bool = False
    checkpointing: bool = False
    rows: float = 1
    tokens: float = 1
    targets: float = 1
    logits: bool = False
    cost: Cost = field(default_factory=Cost)
    past: int = 0
    reads: int = 0
    stored: float = 0


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for, on the device and on the host, in the backward of a step. whole: of the weights on the device
    where no task is trained (loading, scoring at a task's end): every process has all of them then, at ZeRO-3 too."""

    device: Mapping[str, float]
    host: Mapping[str, float]
    whole: float = 0

    @property
    def total(self) -> float:
        """Of the device, at its fullest."""
        return max(sum(self.device.values()), self.whole)

    def plain(self) -> dict[str, Any]:
        """As JSON data, in whole bytes."""
        parts = {"device": self.device, "host": self.host}
        rounded = {name: {key: round(value) for key, value in part.items()} for name, part in parts.items()}
        return {**rounded, "whole_weights": round(self.whole), "device_total": round(self.total)}

    def fits(self, room: float) -> bool:
        """Whether a device of so many bytes has room for it."""
        return self.total <= FULL * room


def arithmetic(shape: Shape, job: Job) -> Memory:
    """What one process needs in the last task, where strategies keep most."""
    device, host = states(shape, job)
    device |= passing(shape, job)
    copies = (job.cost.copies + job.cost.copies_per_task * job.past) * 4 * shape.trained
    device["strategies"] = copies + (job.reads * 4 * shape.trained if job.stage else 0)
    host |= {"stores": job.stored, "weights, at the start": float(shape.start_bytes)}
    whole = max(shape.start_bytes, shape.weight_bytes) + copies
    return Memory({k: v for k, v in device.items() if v}, {k: v for k, v in host.items() if v}, whole)


def states(shape: Shape, job: Job) -> tuple[dict[str, float], dict[str, float]]:
    """Weights, gradients and optimizer, (on the device, on the host). ZeRO shards the optimizer and its fp32 copy of the
    weights from stage 1 on, gradients from 2 on, weights at 3, where a layer or two are whole at a time."""
    stage, trained, n = job.stage or 0, 4.0 * shape.trained, job.processes
    share = trained / n if stage else trained
    sharded = {
        "weights": shape.weight_bytes / (n if stage == 3 else 1),
        "gradients": trained / n if stage > 1 else trained,
        "optimizer": job.optimizer * share + (share if stage else 0),
    }
    on_host = set()
    if "optimizer" in job.offload:
        on_host |= {"optimizer"} | ({"gradients"} if stage > 1 else set())
    if "param" in job.offload:
        on_host |= {"weights"}
    device = {key: value for key, value in sharded.items() if key not in on_host}
    if stage == 3:
        device["weights gathered"] = min(8.0 * shape.block, 4.0 * shape.total)
    if job.stage is not None:
        device["buckets"] = BUCKET_BYTES[job.bf16][stage] * min(BUCKET, shape.trained)
    return device, {key: value for key, value in sharded.items() if key in on_host}


def passing(shape: Shape, job: Job) -> dict[str, float]:
    """What a forward keeps for its backward."""
    per = sum(b * n for b, n in zip(ACTIVATIONS[job.bf16], (shape.width, shape.keys, shape.inner), strict=True))
    layers = per + 4 * shape.width * shape.layers if job.checkpointing else per * shape.layers
    at_once = CHUNK * (ON_GPU if job.gpu else 1) / max(shape.vocabulary, 1)
    targets = job.rows * job.targets
    kept = targets if job.logits else min(targets, at_once)
    one_by_one = job.checkpointing or job.stage == 3
    return {
        "weights in bf16": 2.0 * (min(shape.cast, shape.block) if one_by_one else shape.cast) if job.bf16 else 0,
        "activations": job.rows * job.tokens * (layers + 8 * shape.width),
        "logits": kept * shape.vocabulary * LOGIT_BYTES[job.bf16],
    }


def shape_of(model: Any, bf16: bool = False, dtype: int = 4, linear: float | None = None) -> Shape:
    """Of a model as it is trained, which may be on torch's device `meta`. dtype: bytes of a frozen weight. linear: those of a
    frozen weight of a linear layer, where they differ (quantised; in bf16 under an adapter)."""
    from torch import nn

    part = getattr(model, "get_base_model", lambda: model)()
    head = getattr(part, "get_output_embeddings", lambda: None)()
    sizes = {p: 4.0 if p.requires_grad else float(dtype) for p in model.parameters()}
    start = sum(p.numel() * size for p, size in sizes.items())
    cast = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if linear is not None and not module.weight.requires_grad and module is not head:
                sizes[module.weight] = linear
            if bf16 and sizes[module.weight] == 4.0 and module is not head:
                cast += module.weight.numel()
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    blocks = [sum(p.numel() for p in block.parameters()) for some in lists for block in some]
    configs = (getattr(module, "config", None) for module in part.modules())  # a net may hold transformers' model
    config = getattr(next(filter(None, configs), None), "get_text_config", lambda: None)()
    return Shape(
        total=sum(p.numel() for p in sizes),
        trained=sum(p.numel() for p in sizes if p.requires_grad),
        weight_bytes=round(sum(p.numel() * size for p, size in sizes.items())),
        start_bytes=round(start),
        cast=cast,
        block=max(blocks, default=0),
        **widths(config),
    )


def widths(config: Any) -> dict[str, int]:
    """Of a model's own settings, by transformers' names."""
    width = getattr(config, "hidden_size", 0) or 0
    heads = getattr(config, "num_attention_heads", 1) or 1
    each = getattr(config, "head_dim", None) or width // heads
    return {
        "layers": getattr(config, "num_hidden_layers", 0) or 0,
        "width": width,
        "inner": getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * width,
        "keys": each * (getattr(config, "num_key_value_heads", None) or heads),
        "vocabulary": getattr(config, "vocab_size", 0) or 0,
    }


def cut(config: Any, processes: int) -> tuple[int | None, frozenset[str]]:
    """(ZeRO stage or None, what is offloaded) of a run in so many processes."""
    if not ENGINES[engine_name(config.engine, processes)].shards:
        return None, frozenset()
    final = final_config(config.engine.deepspeed, config.train)
    return zero_stage(final), offloaded(final)
