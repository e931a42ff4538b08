"""Small nets for arrays. A trunk makes features (B, D), a linear classifier logits (B, V)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from cl_toolkit.models.arrays import MLP, SmallCNN


@dataclass
class NetOutput:
    """logits (B, V), None without a classifier; features (B, D)."""

    logits: Tensor | None
    features: Tensor


class Net(nn.Module):
    """A trunk and a linear classifier. classes: the labels that stand for the outputs."""

    def __init__(self, trunk: nn.Module, features: int, num_classes: int):
        super().__init__()
        self.trunk = trunk
        self.feature_size = features
        self.classes = [str(i) for i in range(num_classes)]
        self.classifier: nn.Module | None = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> NetOutput:
        """x (B, ...)."""
        features = self.trunk(x)
        return NetOutput(logits=None if self.classifier is None else self.classifier(features), features=features)


def mlp(settings: MLP) -> Net:
    """A perceptron on flattened arrays."""
    sizes = [settings.input_size, *[settings.hidden_size] * settings.num_hidden_layers]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return Net(nn.Sequential(nn.Flatten(), *layers), settings.hidden_size, settings.num_classes)


def small_cnn(settings: SmallCNN) -> Net:
    """Two convolutions on images (B, channels, H, W), pooled to 4 x 4 whatever H and W, and a hidden layer."""
    width = settings.width
    trunk = nn.Sequential(
        nn.Conv2d(settings.channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, settings.hidden_size),
        nn.ReLU(),
    )
    return Net(trunk, settings.hidden_size, settings.num_classes)
