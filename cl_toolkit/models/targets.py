"""Which layers an adapter goes to: they exist, they are linear, and merging into them changes nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError, did_you_mean, listed, quoted
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.models.sections import AnyAdapter

nn_ = LazyModule("torch.nn")
KEY = "model.adapter.target_modules"
WORDS = {"all-linear", "kappa"}
"""Settings that name no layers themselves."""


def adapted_part(model: nn.Module) -> str:
    """The name of the child that adapters are put on, as the model says it (`adapted_part`): the heads beside that child are
    trained whole. "" where the model is adapted as it is."""
    return getattr(model, "adapted_part", "")


def adapted(model: nn.Module) -> Any:
    """The module that adapters are put on."""
    return getattr(model, adapted_part(model)) if adapted_part(model) else model


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter's update of a layer is one matrix B A."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn_.Linear, Conv1D))


def stores_transposed(module: nn.Module) -> bool:
    """Whether a linear layer's weight is (in, out), as PEFT's `fan_in_fan_out` says."""
    return is_linear(module) and not isinstance(module, nn_.Linear)


def named(model: nn.Module, wanted: tuple[str, ...] | str, key: str = KEY) -> dict[str, nn.Module]:
    """The layers that a setting names, as PEFT reads it: whole names or their ends; a text is a pattern of whole names."""
    if wanted == "all-linear":
        return _all_linear(model)
    if by_weights(wanted):
        return _well_conditioned(model, str(wanted), key)
    found: dict[str, nn.Module] = {}
    for entry in [wanted] if isinstance(wanted, str) else wanted:
        here = {
            name: m
            for name, m in model.named_modules()
            if name and _is_named(entry, name, isinstance(wanted, str), key)
        }
        if not here:
            known = {n.rpartition(".")[2] for n, m in model.named_modules() if is_linear(m)}
            known |= WORDS if isinstance(wanted, str) else set()
            raise UserError(f"{key}: no layer {_shown(entry, wanted)}{did_you_mean(entry, known).replace(chr(39), '')}")
        found |= here
    if not found:
        raise UserError(f"{key}: is empty; expected names of layers, or all-linear")
    return found


def _all_linear(model: Any) -> dict[str, nn.Module]:
    head = model.get_output_embeddings()  # transformers' models say which layer is their head
    return {name: m for name, m in model.named_modules() if is_linear(m) and m is not head}


def by_weights(wanted: tuple[str, ...] | str | None) -> bool:
    """Whether a setting chooses the layers by their weights, so that PEFT must be told their names."""
    return isinstance(wanted, str) and wanted.split("(")[0] == "kappa"


def _well_conditioned(model: nn.Module, wanted: str, key: str) -> dict[str, nn.Module]:
    """The share of the linear layers whose condition numbers, largest singular value by smallest, are the lowest: `kappa`,
    with PEFT's share of a fifth, or `kappa(0.5)`. KappaTune, arXiv 2506.16289, by PEFT's own function, but without the head.
    Where a model has no weights, as many layers as it will be."""
    from cl_toolkit.models.peft_types import by_condition

    told = re.fullmatch(r"kappa(?:\((0?\.\d+|1(?:\.0*)?)\))?", wanted)
    share = float(told[1] or 0.2) if told else 0.0
    if not share:
        raise UserError(
            f"{key}: expected kappa, or with the share of the layers, above 0 and up to 1, kappa(0.5); got {wanted!r}"
        )
    found = {name: m for name, m in _all_linear(model).items() if not stores_transposed(m)}
    if not found:
        raise UserError(f"{key}: {wanted}: the model has no linear layers of torch")
    names = list(found)
    if not any(weight.is_meta for weight in model.parameters()):
        names = [name for name in by_condition(model) if name in found]
    return {name: found[name] for name in names[: max(1, int(len(names) * share))]}


def _check_linear(model: nn.Module, found: dict[str, nn.Module]) -> None:
    for name, module in found.items():
        if not is_linear(module):
            linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if is_linear(m)})
            raise UserError(
                f"{KEY}: {name} is a {type(module).__name__}; expected linear layers: {listed(linear)}, or all-linear"
            )


def _default_targets(model: Any, adapter: AnyAdapter) -> dict[str, nn.Module]:
    """The layers that PEFT itself takes for a type and an architecture."""
    from cl_toolkit.models.peft_types import default_targets

    names = default_targets(adapter, model.config.model_type)
    return named(model, names) if names else {}


def _is_named(entry: str, name: str, pattern: bool, key: str) -> bool:
    return _fits(entry, name, key) if pattern else name == entry or name.endswith(f".{entry}")


def _fits(pattern: str, name: str, key: str, read: str = "{}") -> bool:
    """Whether a pattern is of a whole name. read: what PEFT makes of the pattern."""
    try:
        return re.fullmatch(read.format(pattern), name) is not None
    except re.error as error:
        raise UserError(f"{key}: {quoted(pattern)} is no pattern: {error.msg}") from None


def _shown(entry: str, wanted: tuple[str, ...] | str) -> str:
    return entry if not isinstance(wanted, str) else f"matches {quoted(entry)} (a text is a pattern; names: a list)"


def _check_patterns(model: nn.Module, adapter: AnyAdapter, found: list[str]) -> None:
    """What has a rank or an alpha of its own must be adapted. found: the names of the adapted layers."""
    settings = adapter.settings()
    weights = [name for name, _ in model.named_parameters()]
    entries = settings.get("target_parameters") or ()  # single weights, such as those of experts
    found = found + [name for name in weights if any(_is_named(entry, name, False, KEY) for entry in entries)]
    for key in (f"model.adapter.{part}" for part in ("rank_pattern", "alpha_pattern")):
        for entry in settings.get(key.rpartition(".")[2]) or ():
            if not any(_fits(entry, name, key, r"(.*\.)?({})") for name in found):
                known = {name.rpartition(".")[2] for name in found}
                raise UserError(f"{key}: no adapted layer {entry}{did_you_mean(entry, known)}")


def check_targets(model: nn.Module, adapter: AnyAdapter) -> dict[str, nn.Module]:
    """The layers of a model that gets its first adapter; raises UserError for one that cannot have it."""
    if saved := adapter.settings().get("modules_to_save"):
        named(model, tuple(saved), "model.adapter.modules_to_save")
    if left_out := adapter.settings().get("exclude_modules"):
        named(model, left_out, "model.adapter.exclude_modules")
    wanted = adapter.target_modules
    found = _default_targets(model, adapter) if wanted is None else named(model, wanted)
    if adapter.type == "lora":
        _check_linear(model, found)
    _check_patterns(model, adapter, list(found))
    if adapter.between_tasks == "merge":
        for name, module in found.items():
            for other, owner in model.named_modules():
                if owner is not module and any(w is module.weight for w in owner.parameters(recurse=False)):
                    raise UserError(
                        f"{KEY}: {name} shares its weight with {other}, so that merging would change that too; leave it out, "
                        "or use between_tasks: continue or stack"
                    )
    return found
