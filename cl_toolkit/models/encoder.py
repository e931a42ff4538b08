"""A backbone that makes features, with the heads of contrastive learning: a projection, and one prototype per class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cl_toolkit.models.nets import Net


@dataclass
class EncoderOutput:
    """features h (B, D); projected z (B, E), of length 1; with C classes known: logits h.p/|p| (B, C), and `pull`, the cosine
    of prototype and detached feature (B, C), whose gradient moves prototypes only."""

    features: Tensor
    projected: Tensor
    logits: Tensor
    pull: Tensor


class Prototypes(nn.Module):
    """One weight p_c (D,) per class, added when its class is first seen. A weight's name holds its class, so that weights
    alone say which classes there are; they stand in the order of their names, whatever order they came in."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    @property
    def classes(self) -> list[str]:
        """The labels of the columns of the scores."""
        return [bytes.fromhex(name.removeprefix("class_")).decode() for name in self._parameters]

    def grow(self, labels: Sequence[str], generator: torch.Generator, like: Tensor) -> None:
        """Add those classes that are not there yet, with random prototypes of the device and type of `like`."""
        fresh = {}
        for label in labels:
            name = f"class_{label.encode().hex()}"
            if name not in self._parameters:
                fresh[name] = (torch.randn(self.size, generator=generator) / self.size**0.5).to(like)
        self._add(fresh)

    def _add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value))
        self._parameters = dict(sorted(self._parameters.items()))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(h.p/|p|, cos(p, detached h)), both (B, C)."""
        if not self._parameters:
            nothing = h.new_zeros(len(h), 0)
            return nothing, nothing
        directions = normalize(torch.stack([p for p in self._parameters.values() if p is not None]), dim=1)
        return h @ directions.T, normalize(h.detach(), dim=1) @ directions.T

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        self._add({name: value.clone() for name, value in given.items() if name not in self._parameters})
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Encoder(nn.Module):
    """Features of a language model or text encoder (its last hidden state, averaged over the tokens) or of a small net, and
    the heads on them. Prediction is by the nearest prototype in angle."""

    adapted_part = "backbone"

    def __init__(self, backbone: Any, projection_size: int, hidden_size: int, seed: int):
        super().__init__()
        self.backbone = backbone
        if isinstance(backbone, Net):
            size = backbone.feature_size
            backbone.classifier = None  # the prototypes take its place
        else:
            size = backbone.config.hidden_size
        # a language model need not say its vocabulary at every token
        self._options = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(backbone.forward).parameters else {}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = nn.Sequential(
                nn.Linear(size, hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, projection_size),
            )
        self.prototypes = Prototypes(size)

    @property
    def classes(self) -> list[str]:
        """The labels that stand for the logits."""
        return self.prototypes.classes

    def forward(self, **inputs: Tensor) -> EncoderOutput:
        """inputs: `x` (B, ...), or `input_ids` and `attention_mask` (B, T)."""
        if "x" in inputs:
            h = self.backbone(**inputs).features
        else:
            out = self.backbone(**inputs, **self._options, output_hidden_states=True)
            mask = inputs["attention_mask"][..., None].float()
            # in fp32, as the heads are, whatever a frozen backbone computes in
            h = (out.hidden_states[-1].float() * mask).sum(1) / mask.sum(1).clamp(min=1)
        logits, pull = self.prototypes(h)
        return EncoderOutput(features=h, projected=normalize(self.projection(h), dim=1), logits=logits, pull=pull)
