"""Small nets for arrays. A trunk makes features (B, D), a linear classifier logits (B, V)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cl_toolkit.errors import UserError, short

if TYPE_CHECKING:
    from cl_toolkit.models.arrays import MLP, SmallCNN, SmallViT


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


class FirstToken(nn.Module):
    """The last hidden state of a transformer for images at its [CLS], (B, D)."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(pixel_values=x).last_hidden_state[:, 0]


def small_vit(settings: SmallViT) -> Net:
    """transformers' ViT on images (B, channels, H, W) of one size; hidden layers of its blocks are four times as wide."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        num_channels=settings.channels,
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
    )
    return Net(FirstToken(ViTModel(config, add_pooling_layer=False)), settings.hidden_size, settings.num_classes)


def begun(net: Net, path: str) -> Net:
    """The net with the weights in a file of safetensors, as a checkpoint has them; its classifier stays
    as it was drawn, since its classes are others. Raises UserError for a file that cannot be read or is of another net."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.start: {path}: cannot be read: {short(str(error))}") from error
    own = {name: weight for name, weight in net.state_dict().items() if not name.startswith("classifier.")}
    for name, weight in own.items():
        if name not in given or given[name].shape != weight.shape:
            found = tuple(given[name].shape) if name in given else "none"
            raise UserError(f"model.start: {path}: {name}: expected weights {tuple(weight.shape)}, got {found}")
    for name in given:  # a deeper net's first layers are no start
        if name.startswith("trunk.") and name not in own:
            raise UserError(f"model.start: {path}: {name}: is of another net, which this one has no place for")
    net.load_state_dict({name: given[name] for name in own}, strict=False)
    return net
