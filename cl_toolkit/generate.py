"""Answers by the model: batched generation with a KV cache, greedy or sampled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import IGNORE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.codec import Codec

torch = LazyModule("torch")


def unwrapped(model: nn.Module) -> nn.Module:
    """The plain module inside an engine, or the module itself."""
    return model.module if hasattr(model, "allreduce_gradients") else model


def in_lockstep(model: nn.Module) -> bool:
    """Whether every process must make the same number of forwards: under ZeRO-3, where each holds a shard of each weight."""
    return getattr(model, "zero_optimization_stage", lambda: 0)() == 3


@contextmanager
def eval_mode(model: nn.Module):
    """Eval mode (no dropout); the mode of every module is put back (a frozen part may have been in eval mode)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def scoring_dtype(model: nn.Module) -> torch.dtype:
    """The precision in which a model is scored."""
    module = unwrapped(model)
    return getattr(module, "scoring_dtype", None) or next(module.parameters()).dtype


@contextmanager
def evaluating(model: nn.Module):
    """No gradient, eval mode, and the one precision in which this model is scored: `scoring_dtype` of the module, by
    autocast; its own weights' precision where it has none."""
    dtype = getattr(unwrapped(model), "scoring_dtype", None)
    kind = next(model.parameters()).device.type
    with torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype is not None), eval_mode(model):
        yield model


@contextmanager
def own_settings(module: nn.Module):
    """The model without the generation settings of its folder: transformers takes from there whatever a call leaves open,
    such as a penalty on repeated words, so that greedy were not the arg max and a rollout not the policy's own."""
    from transformers import GenerationConfig

    holders = [m for m in module.modules() if "generation_config" in vars(m)]
    before = [m.generation_config for m in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, settings in zip(holders, before, strict=True):
            holder.generation_config = settings


class UniformSampling:
    """A logits processor that samples by the inverse of the cumulated distribution, one uniform number per row and token.

    The numbers are fixed before generation starts, so that what a row samples does not depend on the rows beside it,
    nor on how rows are spread over processes. Followed by greedy decoding.
    """

    def __init__(self, uniforms: Tensor, temperature: float):
        self.uniforms, self.temperature, self.position = uniforms, temperature, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulated = torch.softmax(scores.float() / self.temperature, dim=-1).cumsum(-1)
        u = self.uniforms[:, self.position : self.position + 1] * cumulated[:, -1:]
        chosen = torch.searchsorted(cumulated, u, right=True).clamp(max=scores.shape[-1] - 1)
        self.position += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    codec: Codec,
    max_new_tokens: int,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Token ids of the answers, each up to and with the mark that ends it (`codec.stops`), or `max_new_tokens` long.

    prompts: token ids per row. uniforms: (B, max_new_tokens) numbers in [0, 1) to sample with; None: greedy. The arg max, or
    a draw from the model's own distribution: no setting of the model's folder changes it.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    module = unwrapped(model)
    device = next(module.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[codec.pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(codec.stops),
        pad_token_id=codec.pad,
        use_cache=True,
    )
    processors = LogitsProcessorList()
    if uniforms is not None:
        processors.append(UniformSampling(uniforms.to(device), temperature))
    with evaluating(module), own_settings(module):
        out = module.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=processors,
            synced_gpus=in_lockstep(model),
        )
    answers = out[:, width:].tolist()
    ends = [next((i for i, token in enumerate(a, 1) if token in codec.stops), len(a)) for a in answers]
    return [a[:end] for a, end in zip(answers, ends, strict=True)]


def target_logits(logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits and labels at the N positions that predict a target: (N, V) in fp32 and (N,).

    logits (B, T, V) with labels (B, T), where the logits at t predict labels[:, t + 1]; or (B, V) with classes (B,).
    rows: (B,) bool, which sequences to look at; None: all.
    """
    if logits.dim() == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
    wanted = labels != IGNORE
    if rows is not None:
        wanted = wanted & rows.view(-1, *(1,) * (labels.dim() - 1))
    return logits[wanted].float(), labels[wanted]


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log p of each label given what stands before it, 0 where the label is not a target.

    logits (B, T, V), labels (B, T) -> (B, T-1), aligned with labels[:, 1:].
    """
    targets = labels[:, 1:]
    logits = logits[:, :-1].float()
    if temperature != 1.0:
        logits = logits / temperature
    logp = -torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.clamp(min=0).flatten(), reduction="none"
    ).view_as(targets)
    return torch.where(targets >= 0, logp, 0.0)
