"""How far a student's distribution is from a teacher's, at each of N positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) of log-probabilities (N, V), (N,): the sum of a log(a / b) - a + b. The last two cancel out, as both sum to 1;
    but each summand is at least 0 so, and where a equals b its gradient is exactly 0."""
    p = a.exp()
    return (p * (a - b) - p + b.exp()).sum(-1)


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """log(share e^a + (1 - share) e^b) of log-probabilities (N, V); exactly a where both agree."""
    lower = torch.where(a > b, 1 - share, share)  # the share of the less likely one
    return torch.maximum(a, b) + torch.log1p(lower * torch.expm1(-(a - b).abs()))


def divergence(teacher: Tensor, student: Tensor, kind: str, mixture: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Of logits (N, V), (N,); the gradient goes to the student. p the teacher, q the student, b = `mixture`:

    forward: KL(p || q), which wants all that the teacher may say. reverse: KL(q || p), which wants nothing that it would not.
    jsd: b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q (Agarwal et al. 2024, arXiv 2306.13649, eq. 1). The m that
    stands there is the one that makes the sum least, so that there is no gradient through it.
    """
    p, q = (torch.log_softmax(logits.float() / temperature, -1) for logits in (teacher, student))
    if kind == "forward":
        return kl(p, q)
    if kind == "reverse":
        return kl(q, p)
    m = mixed(p, q.detach(), mixture)
    return mixture * kl(p, m) + (1 - mixture) * kl(q, m)
