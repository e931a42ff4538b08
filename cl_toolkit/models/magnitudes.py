"""The past adapters of a stack as magnitudes, which can be trained, and directions, which stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cl_toolkit.models.adapters import layers, past_at_work


class Magnitude(nn.Module):
    """B as a magnitude (1,) times a direction, B / (|A| |B|) by Frobenius norms, so that B A / (|A| |B|) is what the magnitude
    multiplies. A pair that adds nothing has magnitude and direction 0."""

    def __init__(self, a: Tensor):
        super().__init__()
        self.size = a.norm()

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        return magnitude * direction

    def right_inverse(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The magnitude and the direction of b (d_out, r)."""
        magnitude = (self.size * b.norm())[None]
        return magnitude, torch.where(magnitude > 0, b / magnitude, 0.0)


def split(model: nn.Module) -> None:
    """Give each past adapter of a stack a magnitude in each layer, which is trained; the model says what it has said, up to
    rounding."""
    for _, layer in layers(model):
        for name in past_at_work(layer):
            b = layer.lora_B[name]
            if not parametrize.is_parametrized(b):
                parametrize.register_parametrization(b, "weight", Magnitude(layer.lora_A[name].weight.detach()))
            b.parametrizations.weight.original0.requires_grad = True  # each new adapter freezes all else
