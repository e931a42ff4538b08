"""Arithmetic on logits: which position predicts which target, and how likely each target is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import IGNORE

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


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
