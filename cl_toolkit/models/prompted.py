"""Models that read each row behind a prefix of keys and values: how it is made, and causal models with it in their cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cl_toolkit.engine.access import eval_mode, evaluating
from cl_toolkit.errors import UserError, listed, short
from cl_toolkit.models import attended
from cl_toolkit.models.prefix import CACHE, tried_tokens


class Prompter(nn.Module):
    """Groups of weights (layers, m, ...) that came one after the other, and what is made of a query and of all of them.

    mix: queries (B, D), in fp32, and the weights of all groups, (layers, M, ...) each -> prefixes (layers, B, 2 P W): P keys,
    then P values, W numbers wide over all heads. A weight that all layers share has 1 in their place. length: P. groups: how
    many are at work; without any there is no prefix.
    """

    def __init__(self, mix: Callable[..., Tensor], length: int) -> None:
        super().__init__()
        self.mix, self.length, self.groups = mix, length, 0
        self.kinds: tuple[str, ...] = ()

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """One more group, the one that is trained."""
        self.requires_grad_(False)
        for name, weight in weights.items():  # the module's own, so that ZeRO-3 gathers them with it
            self.register_parameter(f"{name}_{self.groups}", nn.Parameter(weight))
        self.kinds, self.groups = tuple(weights), self.groups + 1

    def all_of(self, kind: str) -> list[Tensor]:
        """That weight of each group at work."""
        return [getattr(self, f"{kind}_{i}") for i in range(self.groups)]

    def forward(self, query: Tensor) -> Tensor:
        """Queries (B, D) as prefixes (layers, B, 2 P, W)."""
        made = self.mix(query, *(torch.cat(self.all_of(kind), 1) for kind in self.kinds))
        return made.unflatten(-1, (2 * self.length, -1))


class Prompted:
    """Beside a causal model's own class: it reads each row behind the prefix that its `prompter` makes of the prompt.

    The query is the last hidden state, at the prompt's last token, of the model without a prefix; it has no gradient. Keys of a
    prefix have no position. Where prompts end is told by `prompt_lengths` (B,) (`prompt_ends`); where it is not, a row is a
    prompt from end to end. What goes on from a cache goes on behind the prefix that is in it.
    """

    reads_prompts = True
    forwards_inside = 0  # of the last one: whether the prompt was read first
    prompter: Prompter
    prefix_heads: int  # how many keep keys

    def forward(
        self: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        **rest: Any,
    ) -> Any:
        if not self.prompter.groups:
            rest |= {"attention_mask": attention_mask, "position_ids": position_ids}
            return super().forward(input_ids=input_ids, **rest)  # type: ignore[misc]
        read, before = rest.get(CACHE), 0  # tokens that were read already
        if read is not None and read.get_seq_length():
            before = read.get_seq_length() - self.prompter.length
        width, device = before + input_ids.shape[1], input_ids.device
        if attention_mask is None:
            attention_mask = torch.ones(len(input_ids), width, dtype=torch.long, device=device)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, before:]
        self.forwards_inside = int(not before)
        if not before:
            if prompt_lengths is None:  # on whichever side it is padded, the last token that is seen ends the row
                prompt_lengths = (attention_mask * torch.arange(1, width + 1, device=device)).argmax(1) + 1
            rest[CACHE] = self._prefix(input_ids, attention_mask, position_ids, prompt_lengths)
        ahead = attention_mask.new_ones(len(input_ids), self.prompter.length)
        mask = torch.cat([ahead, attention_mask], 1)
        rest |= {"attention_mask": mask, "position_ids": position_ids}
        return super().forward(input_ids=input_ids, **rest)  # type: ignore[misc]

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of transformers, which counts a prefix as places."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        return {name: value for name, value in inputs.items() if name != "position_ids"}

    def _prefix(self: Any, ids: Tensor, mask: Tensor, places: Tensor, lengths: Tensor) -> Any:
        """A cache that holds the rows' prefixes."""
        from transformers import DynamicCache

        width, rows = int(lengths.max()), torch.arange(len(ids), device=ids.device)
        read = hidden(self, ids[:, :width], attention_mask=mask[:, :width], position_ids=places[:, :width])
        made = self.prompter(read[rows, lengths - 1].float())
        kind = made.device.type
        made = made.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype)
        cache, shape = DynamicCache(), (len(ids), self.prompter.length, self.prefix_heads, -1)
        for layer, (keys, values) in enumerate(zip(*made.chunk(2, 2), strict=True)):
            cache.update(keys.reshape(shape).transpose(1, 2), values.reshape(shape).transpose(1, 2), layer)
        return cache


def hidden(model: Any, ids: Tensor, **inputs: Tensor) -> Tensor:
    """Last hidden states (B, T, D) of ids (B, T), of the model without a prefix; in eval mode and without gradient."""
    with torch.no_grad(), eval_mode(model.base_model):
        return model.base_model(input_ids=ids, use_cache=False, **inputs).last_hidden_state


@cache
def _prompted(kind: type) -> type:
    return type(f"Prompted{kind.__name__}", (Prompted, kind), {})


def prompted(model: Any, prompter: Prompter) -> nn.Module:
    """Let a model read each row behind what this prompter makes. All else is frozen but what gives classes. Raises UserError as
    `kept` does, here or in `attended`."""
    if hasattr(model, "classes"):  # it writes nothing, so that no cache has to hold the prefix
        return attended.prompt_encoder(model, prompter)
    _, model.prefix_heads, _ = kept(model)
    model.requires_grad_(False)
    model.prompter = prompter.to(next(model.parameters()).device)
    model.generation_config.use_cache = True  # by it `generate` of transformers goes on behind the prefix
    kind: Any = type(model)
    model.__class__ = _prompted(kind)  # and no wrapper: whoever asks this model finds what it had
    return model


def size_of(model: Any) -> tuple[int, int, int]:
    """(layers, D, W): how wide are hidden states, and the keys of all heads together, as they are kept. Raises UserError as
    `prompted` does."""
    if hasattr(model, "classes"):
        layers, heads, width, hidden_size = attended.kept(model)
        return layers, hidden_size, heads * width
    layers, heads, width = kept(model)
    return layers, model.config.get_text_config().hidden_size, heads * width


def kept(model: Any) -> tuple[int, int, int]:
    """(layers, heads, width) of the keys that a causal model keeps. It is tried on a few tokens, since settings have many names
    for how many heads have keys of their own, and some keep them for all. Raises UserError for a model whose layers do not all
    see all that came before, or do not all keep keys and values of one size."""
    from transformers import DynamicCache

    name, settings = type(model).__name__, model.config.get_text_config()
    kinds = set(getattr(settings, "layer_types", None) or ()) - {"full_attention"}
    if kinds or getattr(settings, "sliding_window", None):
        seen = " and ".join(sorted(kinds)) or "a sliding window"
        raise UserError(f"{name}: has layers of {seen}, which do not see what stands before a row")
    cache = DynamicCache()
    try:
        with evaluating(model):
            model.base_model(input_ids=tried_tokens(model)[None], use_cache=True, **{CACHE: cache})
    except Exception as error:  # it has a cache of its own, say
        raise UserError(f"{name}: cannot keep keys and values where it is told to: {short(str(error))}") from error
    states = [state for layer in cache.layers for state in (layer.keys, layer.values) if state is not None]
    if len(states) != 2 * settings.num_hidden_layers:
        raise UserError(
            f"{name}: has no attention in some layers, and so no keys and values that could stand before a row"
        )
    if len(shapes := {tuple(state.shape) for state in states}) != 1:
        raise UserError(
            f"{name}: has keys and values of unlike sizes, {listed(map(str, sorted(shapes)))}; expected one"
        )
    _, heads, _, width = states[0].shape
    return len(cache.layers), heads, width
