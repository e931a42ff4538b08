"""Logit-swap self-distillation: learn the right token, and leave the rest of the distribution as the start model had it.

Jiang et al. 2024 (Mix-CPT), arXiv 2407.10804. At a position with true next token y, z the logits of the original model and
m = argmax z: exchange entries m and y of z to get z' (nothing to exchange where m = y or the two are equal), and
    L = L_new + alpha * KL( softmax(z') || softmax(student) ).
No official code was found. The swap is confirmed; the direction of the KL, alpha, and that the plain loss is kept beside it
could not be: the choices here are an open re-implementation's (alpha = 0.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import target_logits
from cl_toolkit.ranges import above, at_least
from cl_toolkit.strategy import Strategy, Tags

torch = LazyModule("torch")


def swap(logits, labels):
    """z': logits (N, V) with the entries of the largest and of the label (N,) exchanged. The largest afterwards is the
    label; the multiset of entries, and so the entropy, stays. A tie with the label counts as the label."""
    best, top = logits.max(-1, keepdim=True)
    label = labels[:, None]
    own = logits.gather(1, label)
    tie = own == best
    top = torch.where(tie, label, top)
    return logits.scatter(1, top, own).scatter(1, label, best)


class LogitSwap(Strategy):
    """Distillation from the original model with the right answer put on top, averaged over the step's target tokens.

    The original model is the one before the first task: with an adapter that is never merged, the model without it; else a
    copy of the trained weights (`extra_parameters`) that is swapped in for a forward without gradient. Nothing the
    size of the vocabulary is stored.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: alpha. temperature: divides the logits of both."""

        weight: Annotated[float, at_least(0)] = 0.3
        temperature: Annotated[float, above(0)] = 1.0

    tags = Tags(
        paper="Jiang et al. 2024 (Mix-CPT), arXiv 2407.10804",
        off={"weight": 0.0},
        extra_passes="a forward without gradient per step",
        extra_memory="a copy of the trained weights; with an adapter none",
        life_cycles=("continue", "stack"),
        objectives=("sft", "lm"),  # the swap puts the true token on top; a rollout's tokens are not true
        exceptions={1: "the start model teaches from the first task on"},
    )

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.started = False
        self.original: dict = {}  # trained weights of the original model; empty where switching the adapter off gives it

    @property
    def extra_parameters(self) -> int:
        return sum(value.numel() for value in self.original.values())

    def before_task(self, model, task):
        from cl_toolkit.models.adapters import layers

        if not self.started and self.config.weight:
            self.started = True
            if next(layers(model), None) is None:
                self.original = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        device = next(model.parameters()).device
        self.original = {name: value.to(device) for name, value in self.original.items()}
        return model

    def loss(self, model, part, out):
        if not self.config.weight:
            return {}
        from cl_toolkit.engine.access import evaluating, swapped, unwrapped
        from cl_toolkit.models.adapters import disabled

        change = swapped(model, self.original) if self.original else disabled(model)
        temperature = self.config.temperature
        with (
            change,
            evaluating(unwrapped(model)),
        ):  # no variable keeps all logits: a vocabulary per token takes much memory
            teacher, labels = target_logits(model(**part.inputs).logits, part.labels)
            teacher = torch.log_softmax(swap(teacher, labels) / temperature, -1)
        student = torch.log_softmax(target_logits(out.logits, part.labels)[0] / temperature, -1)
        kl = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="sum")
        return {self.name: self.config.weight * kl / max(part.total["tokens"], 1)}

    def state(self):
        return {"started": self.started, "original": self.original}

    def load_state(self, state):
        self.started, self.original = state["started"], state["original"]
