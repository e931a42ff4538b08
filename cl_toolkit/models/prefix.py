"""Prompts that a model reads once: what follows goes on from its cache, for several answers to one prompt too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cl_toolkit.engine.access import evaluating, uncounted
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


RENAMED = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24)
STATES = ("cache",) if RENAMED else ("past_key_values", "cache_params")
"""What transformers calls the state in which a model remembers what it has read; it takes the old words with a warning."""
CACHE = STATES[0]
"""That of attention."""


def prompt_ends(model: Any, lengths: Tensor) -> dict[str, Tensor]:
    """What a model that makes something of prompts is told beside its rows: where these end (B,). See `models.prompted`."""
    return {"prompt_lengths": lengths} if getattr(model, "reads_prompts", False) else {}


class Prefix:
    """Rows of tokens that a model has read, padded on the left, so that the next token of each row stands in the same column
    and a sliding window sees what it would see without padding. Only for a model of which `goes_on` is true.

    logits: (B, V), of the token after each row. leaves: whether a row can be left behind when it has ended.
    """

    leaves = True

    def __init__(self, model: nn.Module, rows: Sequence[Sequence[int]], pad: int):
        device, width = next(model.parameters()).device, max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
        self.model = model
        self.state: dict[str, Any] = {}
        self.lengths = torch.tensor([len(row) for row in rows], device=device)
        self.mask = (torch.arange(width, device=device) >= width - self.lengths[:, None]).long()
        places = (torch.arange(width, device=device) - (width - self.lengths[:, None])).clamp(min=0)
        self.logits = self._forward(ids, places, 1)[:, -1]

    def _forward(self, ids: Tensor, places: Tensor, keep: int) -> Tensor:
        out: Any = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=places,
            use_cache=True,
            logits_to_keep=keep,
            **self.state,
        )
        self.state = {name: out[name] for name in STATES if name in out}
        return out.logits

    def take(self, rows: Tensor) -> Prefix:
        """The rows of these indices (N,), each as often as it is named. Neither that nor what follows changes this one."""
        other = copy.copy(self)
        other.state = {name: own(state) for name, state in self.state.items()}
        for state in other.state.values():
            state.reorder_cache(rows)
        other.logits = self.logits[rows]
        other.lengths, other.mask = self.lengths[rows], self.mask[rows]
        return other

    def on(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Read (B, T) more tokens: the logits (B, T, V) after each. lengths: (B,), how many of them are a row's own; nothing
        can follow where some are padding."""
        width = ids.shape[1]
        steps = torch.arange(width, device=ids.device)
        if lengths is not None:  # padding stands at no place that the model might not have
            steps = torch.minimum(steps, (lengths - 1).clamp(min=0)[:, None])
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), width)], 1)
        logits = self._forward(ids, self.lengths[:, None] + steps, width)
        self.logits, self.lengths = logits[:, -1], self.lengths + width
        return logits


class WholeRows:
    """The same for any causal model: it reads each row from its beginning again and again, padded on the right."""

    leaves = True

    def __init__(self, model: nn.Module, rows: Sequence[Sequence[int]], pad: int):
        device, width = next(model.parameters()).device, max(map(len, rows))
        self.model, self.pad = model, pad
        self.ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
        self.lengths = torch.tensor([len(row) for row in rows], device=device)
        self.prompts = self.lengths
        self._read()

    def _read(self) -> None:
        mask = torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]
        out: Any = self.model(input_ids=self.ids, attention_mask=mask.long(), **prompt_ends(self.model, self.prompts))
        self.logits = out.logits[torch.arange(len(self.ids), device=self.ids.device), self.lengths - 1]

    def take(self, rows: Tensor) -> WholeRows:
        """The rows of these indices (N,), each as often as it is named."""
        other = copy.copy(self)
        other.ids, other.lengths, other.logits = self.ids[rows], self.lengths[rows], self.logits[rows]
        other.prompts = self.prompts[rows]
        return other

    def on(self, ids: Tensor) -> None:
        """Read (B, 1) tokens more."""
        grown = torch.cat([self.ids, torch.full_like(ids, self.pad)], 1)
        self.ids, self.lengths = grown.scatter(1, self.lengths[:, None], ids), self.lengths + 1
        self._read()


def own(cache: Any) -> Any:
    """The same states, of which each can be put into the place of another without a trace in the given cache."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in other.layers:
        for name, states in vars(layer).items():
            if isinstance(states, dict):  # of a recurrent layer there may be several
                setattr(layer, name, dict(states))
    return other


_found: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def goes_on(model: nn.Module, pad: int) -> bool:
    """Whether a model says after a `Prefix` what it says of whole rows. It is tried once per model, on a few tokens: a
    recurrent state that cannot be shared, a forward without a cache or one that sees padding are told by what they say."""
    if model not in _found:
        with uncounted(), evaluating(model):
            try:
                _found[model] = _says_the_same(model, pad)
            except Exception:  # what is wrong with the model itself shows where it reads whole rows
                _found[model] = False
    return _found[model]


def tried_tokens(model: Any) -> Tensor:
    """Twelve tokens (12,) on which it is tried what a model can."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.get_text_config().vocab_size, (12,), generator=draw)
    return tokens.to(next(model.parameters()).device)


def _says_the_same(model: Any, pad: int) -> bool:
    """The largest difference of a logit is rounding, and less than a tenth of what another prompt makes of it."""
    tokens = tried_tokens(model)
    prompts, answers, device = (tokens[:2], tokens[6:10]), (tokens[2:6], tokens[8:]), tokens.device

    def plain(prompt: Tensor, answer: Tensor) -> Tensor:
        ids, end = torch.cat([prompt, answer])[None], torch.tensor([len(prompt)], device=device)
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt_ends(model, end))
        return out.logits[0, len(prompt) - 1 :].float()

    wanted = [[plain(prompt, answer) for answer in answers] for prompt in prompts]  # each (4, V)
    whole = Prefix(model, [prompt.tolist() for prompt in prompts], pad)
    moved = []
    for rows in ([1, 0, 1], [0, 1]):  # twice: the first may leave no trace in what the second begins with
        part = whole.take(torch.tensor(rows, device=device))
        said = [answers[i % 2] for i in range(len(rows))]
        first = part.logits
        begun = part.on(torch.stack([answer[:2] for answer in said]))
        ended = part.on(torch.stack([answer[2:] for answer in said]))
        found = torch.cat([first[:, None], begun, ended], 1).float()
        moved += [(found[i] - wanted[row][i % 2]).abs().max() for i, row in enumerate(rows)]
    sizes = [logits for of_prompt in wanted for logits in of_prompt]
    rounding = 64 * torch.finfo(first.dtype).eps * max(float(logits.abs().max()) for logits in sizes)
    differs = max(float((a - b).abs().max()) for a, b in zip(*wanted, strict=True))
    return float(torch.stack(moved).max()) <= min(rounding, 0.1 * differs)
