"""Caches of fixed size: the forward of one more token has one shape, so that it is compiled once, on a GPU into CUDA graphs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cl_toolkit.engine.access import evaluating, scoring_dtype, uncounted
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.prefix import CACHE, Prefix, WholeRows, tried_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers.cache_utils import Cache
else:
    torch = LazyModule("torch")

SMALLEST = 64
"""Tokens of the smallest cache."""
VARIANTS = 64
"""How often the forward may be compiled: for each shape, and where a task adds an adapter. After that it would run as it is."""


def rounded(size: int) -> int:
    """The next power of two: sizes are to be few."""
    return 1 << max(size - 1, 0).bit_length()


class Fixed:
    """The caches of a run by their shapes, kept from one call to the next, through training too: where they lie is a part of a
    CUDA graph.

    Every layer of one has room for all tokens; a window that slides is a matter of the mask.
    """

    def __init__(self) -> None:
        self._caches: dict[tuple, list[tuple[int, Cache]]] = {}

    @contextmanager
    def __call__(self, read: Prefix | WholeRows, rows: Tensor, more: int) -> Iterator[FixedRows]:
        """Go on from what was read: from each of these rows (N,), as often as it is named, by at most `more` tokens. Raises
        UserError for a model that cannot."""
        model: Any = read.model
        if not isinstance(read, Prefix) or not stands(model, read):
            raise UserError(
                f"generation.cache: static: {type(inside(model)).__name__} cannot go on from a cache of fixed size; use dynamic"
            )
        length = max(SMALLEST, rounded(read.mask.shape[1] + more))
        with as_compiled(inside(model)):
            yield FixedRows(read, rows, self._cache(read, len(rows), length))

    def _cache(self, read: Prefix, rows: int, length: int) -> Cache:
        """One that is there and has room for so many rows, or a new one."""
        layers = [layer.keys for layer in read.state[CACHE].layers]
        kind = (length, scoring_dtype(read.model), *((keys.shape[1], keys.shape[3], keys.device) for keys in layers))
        known = self._caches.setdefault(kind, [])
        for size, found in known:
            if size >= rows:
                return found
        known.append((rounded(rows), fresh_cache(read, rounded(rows), length)))
        return known[-1][1]


@cache
def layer_class() -> type:
    """transformers' layer of fixed size, in the precision in which attention reads it: under autocast what comes is wider, and
    keys are not as values."""
    from transformers.cache_utils import StaticLayer

    class Layer(StaticLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            dtype = self.keys.dtype
            return super().update(key_states.to(dtype), value_states.to(dtype), *args, **kwargs)

    return Layer


def fresh_cache(read: Prefix, rows: int, length: int) -> Cache:
    """A cache for so many rows of so many tokens, of the kind that a model has read into."""
    from transformers.cache_utils import Cache

    layers, dtype = [], scoring_dtype(read.model)
    for there in read.state[CACHE].layers:
        layers.append(layer_class()(length))
        one_row = (states[:1].to(dtype).expand(rows, -1, -1, -1) for states in (there.keys, there.values))
        layers[-1].lazy_initialization(*one_row)
    return Cache(layers=layers)


class FixedRows:
    """Rows in a cache of fixed size, the first N of it; the rest repeats the first. None leaves.

    logits: (N, V), of the token after each row.
    """

    leaves = False

    def __init__(self, read: Prefix, rows: Tensor, into: Cache):
        size, length = into.layers[0].keys.shape[0], into.layers[0].keys.shape[2]
        at, width = torch.cat([rows, rows[:1].expand(size - len(rows))]), read.mask.shape[1]
        for there, layer in zip(into.layers, read.state[CACHE].layers, strict=True):
            kept = layer.keys.shape[2]  # a layer with a window has kept the last ones
            there.keys[:, :, width - kept : width] = layer.keys[at]
            there.values[:, :, width - kept : width] = layer.values[at]
            there.cumulative_length.fill_(width)
        self.model: Any = read.model
        self.cache, self.count = into, len(rows)
        self.mask = torch.nn.functional.pad(read.mask[at], (0, length - width), value=1)
        self.lengths, self.logits = read.lengths[at], read.logits[rows]

    def on(self, ids: Tensor) -> None:
        """Read (N, 1) tokens more."""
        if ids.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # what the last step gave has been looked at
        out = self.model(
            input_ids=torch.cat([ids, ids[:1].expand(len(self.mask) - self.count, 1)]),
            attention_mask=self.mask,
            position_ids=self.lengths[:, None],
            **{CACHE: self.cache},
            use_cache=True,
            logits_to_keep=1,
        )
        self.lengths = self.lengths + 1
        self.logits = out.logits[: self.count, -1]


# the compiled forward ---------------------------------------------------------------------------------------------------


def inside(model: Any) -> Any:
    """The model under its adapters' wrapper: the wrapper's own work is done at each call as ever."""
    return getattr(model, "get_base_model", lambda: model)()


def _forward(module: nn.Module, inputs: dict[str, Any]) -> Any:
    return type(module).forward(module, **inputs)


@cache
def compiled_forward(device: str) -> Callable:
    """The forward of any model, compiled for each shape. It holds no weights: that they change is nothing to it."""
    mode = "reduce-overhead" if device == "cuda" else None
    return torch.compile(_forward, mode=mode, dynamic=False)


@contextmanager
def as_compiled(module: nn.Module) -> Iterator[None]:
    """With a compiled forward in the place of the module's own; its hooks run as ever. What a session has put around forwards
    is off meanwhile (it says what it stands around: `functools.wraps`), since each task's would be compiled anew. A forward
    that somebody else has put there stays, and nothing is compiled."""
    dressed = {m: vars(m)["forward"] for m in module.modules() if hasattr(vars(m).get("forward"), "__wrapped__")}
    for part, forward in dressed.items():
        if inspect.unwrap(forward, stop=inspect.ismethod) == type(part).forward.__get__(part):
            del part.forward
    plain = not any("forward" in vars(part) for part in module.modules())
    if plain:
        compiled = compiled_forward(next(module.parameters()).device.type)
        module.forward = lambda **inputs: compiled(module, inputs)
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    finally:
        if plain:
            del module.forward
        for part, forward in dressed.items():
            part.forward = forward


# whether a model can ----------------------------------------------------------------------------------------------------

_found: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def stands(model: nn.Module, read: Prefix) -> bool:
    """Whether a model says after `FixedRows` what it says after a `Prefix`. It is tried once per model, on a few tokens."""
    if model not in _found:
        with uncounted(), evaluating(model):
            try:
                _found[model] = _says_the_same(model)
            except Exception:  # a layer without keys and values, a forward that reads its cache in a way of its own
                _found[model] = False
    return _found[model]


def _says_the_same(model: nn.Module) -> bool:
    """The largest difference of a logit is rounding, and less than a tenth of that between two rows."""
    tokens = tried_tokens(model)
    device = tokens.device
    read = Prefix(model, [tokens[:2].tolist(), tokens[2:8].tolist()], int(tokens[0]))
    at = torch.tensor([1, 0, 1], device=device)
    plain = read.take(at)
    fixed = FixedRows(read, at, fresh_cache(read, 4, 16))
    moved, size, differs = [], 0.0, 0.0
    for token in tokens[8:]:
        for rows in (plain, fixed):
            rows.on(token.expand(3, 1))
        wanted = plain.logits.float()
        moved.append(float((fixed.logits.float() - wanted).abs().max()))
        size, differs = max(size, float(wanted.abs().max())), max(differs, float((wanted[0] - wanted[1]).abs().max()))
    return max(moved) <= min(64 * torch.finfo(plain.logits.dtype).eps * size, 0.1 * differs)
