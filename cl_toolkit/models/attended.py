"""Encoders that read each row behind a prefix of keys and values, which is put into transformers' interface of attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cl_toolkit.engine.access import eval_mode, evaluating, uncounted
from cl_toolkit.errors import UserError, listed, short
from cl_toolkit.models.prefix import tried_tokens

Pair = tuple[Tensor, Tensor]


class Layers(Protocol):
    """What attention asks, layer by layer, in the order in which a forward comes by them."""

    def __call__(self, module: nn.Module, keys: Tensor, values: Tensor) -> Pair:
        """Keys and values (B, heads, T, width) of a layer, as they are to be seen."""


_asked: ContextVar[Layers | None] = ContextVar("asked", default=None)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> Any:
    if (layers := _asked.get()) is not None:
        width = key.shape[2]
        key, value = layers(module, key, value)
        if attention_mask is not None:  # every place sees a prefix
            seen = True if attention_mask.dtype == torch.bool else 0.0
            attention_mask = nn.functional.pad(attention_mask, (key.shape[2] - width, 0), value=seen)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)


NAME = "sdpa_behind_prefix"
AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def asking(layers: Layers) -> Iterator[None]:
    """Attention asks these layers inside."""
    token = _asked.set(layers)
    try:
        yield
    finally:
        _asked.reset(token)


class Prefixes:
    """made (layers, B, 2 P, W): P keys, then P values of each layer, W numbers wide over all heads."""

    def __init__(self, made: Tensor):
        self.left = iter(made)

    def __call__(self, module: nn.Module, keys: Tensor, values: Tensor) -> Pair:
        before = (part.unflatten(-1, (keys.shape[1], -1)).transpose(1, 2) for part in next(self.left).chunk(2, 1))
        mine, theirs = (torch.cat([made.to(own), own], 2) for made, own in zip(before, (keys, values), strict=True))
        return mine, theirs


class Noted:
    """Changes nothing and keeps what it was shown."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.causal = False

    def __call__(self, module: nn.Module, keys: Tensor, values: Tensor) -> Pair:
        self.sizes += [(keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3])]
        self.causal |= bool(getattr(module, "is_causal", False))
        return keys, values


class PromptedEncoder:
    """Beside the class of a model whose outputs are classes: it reads each row behind the prefix that its `prompter` makes of
    it. The query is the last hidden state of the encoder without a prefix at its first token, [CLS]; it has no gradient."""

    forwards_inside = 0  # of the last one
    prompter: Any

    def forward(self: Any, *args: Any, **inputs: Any) -> Any:
        plain = super().forward  # type: ignore[misc]
        self.forwards_inside = int(self.prompter.groups > 0)
        if not self.prompter.groups:
            return plain(*args, **inputs)
        seen: list[Tensor] = []
        hook = encoder_of(self).register_forward_hook(lambda *called: seen.append(called[-1].last_hidden_state))
        try:
            with torch.no_grad(), eval_mode(self):
                plain(*args, **inputs)
        finally:
            hook.remove()
        with asking(Prefixes(self.prompter(seen[0][:, 0].float()))):
            return plain(*args, **inputs)


@cache
def _prompted(kind: type) -> type:
    return type(f"Prompted{kind.__name__}", (PromptedEncoder, kind), {})


def prompt_encoder(model: Any, prompter: nn.Module) -> nn.Module:
    """Let a model read each row behind what this prompter makes. Its encoder is frozen; what stands on it goes on being
    trained. Raises UserError as `kept` does."""
    kept(model)
    encoder_of(model).requires_grad_(False)
    model.prompter = prompter.to(next(model.parameters()).device)
    kind: Any = type(model)
    model.__class__ = _prompted(kind)  # and no wrapper: whoever asks this model finds what it had
    return model


def encoder_of(model: nn.Module) -> Any:
    """The encoder in a model, one of transformers'. Raises UserError for a model that has none."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.base_model is module:
            return module
    raise UserError(
        f"{type(model).__name__}: is no transformer, and has no keys and values that could stand before a row"
    )


def kept(model: nn.Module) -> tuple[int, int, int, int]:
    """(layers, heads, width, D) of an encoder, whose attention is by `NAME` from now on. It is tried on an input.
    Raises UserError for one that does not ask transformers' interface in each layer, that reads from left to right (so that
    [CLS] sees nothing), or whose layers are unlike."""
    encoder, noted = encoder_of(model), Noted()
    name, settings = type(encoder).__name__, encoder.config
    before = settings._attn_implementation
    try:
        encoder.set_attn_implementation(NAME)
        with asking(noted), evaluating(encoder), uncounted():
            encoder(**tried(encoder))
    except Exception as error:
        encoder.set_attn_implementation(before)
        raise UserError(f"{name}: cannot have its attention asked: {short(str(error))}") from error
    if noted.causal:
        raise UserError(f"{name}: reads from left to right, so that its first token sees nothing; use an encoder")
    if len(noted.sizes) != 2 * settings.num_hidden_layers or len(set(noted.sizes)) != 1:
        raise UserError(
            f"{name}: {settings.num_hidden_layers} layers ask for keys and values of the sizes "
            f"{listed(map(str, sorted(set(noted.sizes)))) or 'none'}; expected each to ask, and one size"
        )
    heads, width = noted.sizes[0]
    return settings.num_hidden_layers, heads, width, settings.hidden_size


def tried(encoder: Any) -> Mapping[str, Tensor]:
    """The smallest input that it takes."""
    if encoder.main_input_name != "pixel_values":
        return {encoder.main_input_name: tried_tokens(encoder)[None]}
    settings, like = encoder.config, next(encoder.parameters())
    return {"pixel_values": like.new_zeros(1, settings.num_channels, settings.image_size, settings.image_size)}
