"""Supervised fine-tuning: next-token cross-entropy on the answer's tokens."""

from __future__ import annotations

from cl_toolkit.lazy import LazyModule
from cl_toolkit.objective import Objective
from cl_toolkit.types import IGNORE, Outputs

torch = LazyModule("torch")


class SFT(Objective):
    """-log p(answer | prompt), averaged over the answer tokens of the whole step, the end mark included."""

    paper = "standard"

    def encode(self, model, task, examples):
        return task.codec.batch(examples)

    def forward(self, model, part):
        logits = model(**part.inputs, use_cache=False).logits  # (B, T, V)
        total = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), part.labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return Outputs(loss=total / max(part.total["tokens"], 1), logits=logits)
