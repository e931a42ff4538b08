"""What can be done with an adapter is found out by doing it, on a small model: before any other is loaded."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from cl_toolkit.errors import UserError, short
from cl_toolkit.models import adapters
from cl_toolkit.models.peft_types import check_type, peft_config, refused
from cl_toolkit.models.sections import Abilities, AnyAdapter, PeftAdapter
from cl_toolkit.models.tiny import VOCABULARY, TinyLM, build_tiny

SMALL = TinyLM(hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4)
"""Of a width that PEFT's default settings fit."""
SAVED = "norm"
"""A module of it that can be trained whole."""
NAMING = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")
"""Settings that name layers, which are checked on the model itself."""
IDS = torch.arange(7)[None]
CLOSE = 1e-4
"""What a logit may move where nothing is to change, of its largest."""


class CannotBe(Exception):
    """What an adapter cannot do; the message says why."""


def abilities(adapter: AnyAdapter) -> Abilities:
    """What can be done with an adapter; raises UserError where it cannot be trained at all. It is tried with its own settings,
    or with PEFT's defaults for its type where these do not fit a small model."""
    check_type(adapter)
    return _tried(adapter, repr(adapter.settings()))


@lru_cache(maxsize=64)
def _tried(adapter: AnyAdapter, settings: str) -> Abilities:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        begun, why = None, None
        for some in (_small(adapter), _defaults(adapter)):
            for targets in ({}, {"target_modules": "all-linear"}):
                try:
                    some = replace(some, given={**some.settings(), **targets})
                    begun = begun or (_trained(some), some)
                except Exception as error:
                    why = why or error
        if begun is None:
            raise why if isinstance(why, UserError) else refused(why or RuntimeError()) from why
        cannot = {}
        for life, attempt in (("merge", _merges), ("stack", _stacks)):
            try:
                attempt(begun[1])
            except Exception as error:
                cannot[life] = short(" ".join(str(error).split()).removeprefix("model.adapter: "), 160)
        gives = {"pairs"} if "merge" not in cannot and _is_pairs(begun[1]) else set()
        # who edits gradients by hooks sees those of its own process, not those of the whole job
        alone = any(getattr(weight, "_backward_hooks", None) for weight in begun[0].parameters())
        return Abilities(gives=frozenset(gives), cannot=cannot, alone=alone)


def _small(adapter: AnyAdapter) -> PeftAdapter:
    """The same adapter on the small model, whose layers have names of their own."""
    given = {k: v for k, v in adapter.settings().items() if k not in NAMING}
    if given.get("modules_to_save"):
        given["modules_to_save"] = (SAVED,)
    return PeftAdapter(type=adapter.type, given=given)


def _defaults(adapter: AnyAdapter) -> PeftAdapter:
    kept = _small(adapter).given
    return PeftAdapter(type=adapter.type, given={k: v for k, v in kept.items() if k in ("modules_to_save", "bias")})


def _start() -> Any:
    model: Any = build_tiny(SMALL, 0).eval()
    for weight in model.parameters():
        weight.data.mul_(4 if weight.dim() > 1 else 1)
    return model


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) > CLOSE * float(one.abs().max())


def _shaken(model: Any) -> Any:
    """The model with its trained weights moved; raises CannotBe where that changes nothing."""
    before, draw = _logits(model), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(0.05 * torch.randn(weight.shape, generator=draw))
    after = _logits(model)
    if after.shape != before.shape or not _differ(before, after):
        raise CannotBe("what is trained of it changes nothing that the model says")
    return model


def _trained(adapter: PeftAdapter) -> Any:
    """The small model under the adapter, moved. Raises CannotBe for one whose outputs do not go with its tokens."""
    start = _start()
    model = adapters.begun(start, peft_config(adapter), 0, run=lambda: start(input_ids=IDS))
    if _logits(model).shape != (*IDS.shape, VOCABULARY):
        raise CannotBe("its outputs do not go with the tokens of a row")
    if not adapters.loaded(model).get("task0"):
        raise CannotBe("none of its weights has the adapter's name, by which they are told apart")
    return _shaken(model)


def _merges(adapter: PeftAdapter) -> None:
    model = _trained(adapter)
    before, names = _logits(model), {name for name, _ in _start().named_parameters()}
    model = adapters.merged(model)
    if _differ(before, _logits(model)) or {name for name, _ in model.named_parameters()} != names:
        raise CannotBe("merged, the model says something else")


def _stacks(adapter: PeftAdapter) -> None:
    start = _logits(_start())
    model = _trained(adapter)
    with adapters.disabled(model):
        if _differ(start, _logits(model)):
            raise CannotBe("it changes the base model where it begins, and the adapters before it were trained on that")
    if beside := [n for n, p in model.named_parameters() if p.requires_grad and not adapters.is_of(n, "task0")]:
        raise CannotBe(f"it also trains {adapters.plain_name(beside[0])} of the base model, of which there is one")
    model = adapters.begun(model, peft_config(adapter), 1)
    shaken = _shaken(model)
    with adapters.disabled(shaken):
        if _differ(start, _logits(shaken)):
            raise CannotBe("a second one cannot be switched off")


def _is_pairs(adapter: PeftAdapter) -> bool:
    """Whether all that it adds to a layer is the product of its two matrices."""
    model, start = _trained(adapter), _start()
    try:
        pairs = {name: scaling * b @ a for name, a, b, scaling in adapters.pairs(model)}
    except (AttributeError, KeyError):
        return False
    merged = adapters.merged(model)
    moved = {
        n.removesuffix(".weight"): p - q
        for (n, p), q in zip(merged.named_parameters(), start.parameters(), strict=True)
    }
    changed = {name for name, change in moved.items() if change.abs().max() > 0}
    return (
        bool(pairs)
        and changed == set(pairs)
        and all(torch.allclose(moved[n], product, atol=1e-5) for n, product in pairs.items())
    )
