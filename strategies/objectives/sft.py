"""Supervised fine-tuning: cross-entropy on the answer's tokens, or on the class of an array."""

from __future__ import annotations

from cl_toolkit.lazy import LazyModule
from cl_toolkit.objective import Objective
from cl_toolkit.types import IGNORE, Outputs

torch = LazyModule("torch")


class SFT(Objective):
    """-log p(answer | prompt), averaged over the answer tokens of the whole step, the end mark included; or -log p(class | x),
    averaged over the step's arrays."""

    paper = "standard"
    is_baseline = True
    inputs = ("conversations", "arrays")
    gives = frozenset({"logits", "true_targets"})

    def encode(self, model, task, examples):
        return task.codec.batch(examples)

    def forward(self, model, part):
        logits = model(**part.inputs).logits  # (B, T, V) or (B, V)
        found, labels = (
            (logits[:, :-1].flatten(0, 1), part.labels[:, 1:].flatten()) if logits.dim() == 3 else (logits, part.labels)
        )
        total = torch.nn.functional.cross_entropy(found.float(), labels, ignore_index=IGNORE, reduction="sum")
        return Outputs(loss=total / max(part.total["tokens"], 1), logits=logits)
