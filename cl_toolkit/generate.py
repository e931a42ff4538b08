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
def evaluating(model: nn.Module):
    """No gradient, eval mode; the mode of every module is put back (a frozen part may have been in eval mode)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


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
    """Token ids of the answers, each up to and with its end-of-sequence token.

    prompts: token ids per row. uniforms: (B, max_new_tokens) numbers in [0, 1) to sample with; None: greedy.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    module = unwrapped(model)
    device = next(module.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[codec.pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=codec.eos, pad_token_id=codec.pad, use_cache=True
    )
    processors = LogitsProcessorList()
    if uniforms is not None:
        processors.append(UniformSampling(uniforms.to(device), temperature))
    with evaluating(module):
        out = module.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=processors,
            synced_gpus=in_lockstep(model),
        )
    answers = out[:, width:].tolist()
    return [a[: a.index(codec.eos) + 1] if codec.eos in a else a for a in answers]


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
