"""Adapters: add, merge, freeze, stack, disable, snapshot. The only door to peft, with `peft_types` and `trials`.

The life cycle belongs to the model, not to a strategy: one adapter trained on and on (`continue`), merged into the
weights and started afresh after each task (`merge`), or frozen and a new one added (`stack`).
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import eval_mode, unwrapped
from cl_toolkit.errors import UserError, quoted
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.peft_types import peft_config, refused
from cl_toolkit.models.targets import adapted, adapted_part, by_weights, check_targets, stores_transposed
from cl_toolkit.seeds import seed_from

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from peft import PeftConfig
    from torch import Tensor, nn

    from cl_toolkit.models.sections import AnyAdapter
else:
    torch = LazyModule("torch")


def frozen_in_bf16(model: Any) -> None:
    """Keep the weights of linear layers under an adapter that is never merged as autocast would cast them at each forward: half
    the memory and no cast, with the same results to the last bit."""
    part = adapted(model)
    head = getattr(part, "get_output_embeddings", lambda: None)()
    names = getattr(part, "peft_config", {})
    for name, module in part.named_modules():
        linear = isinstance(module, torch.nn.Linear) and module is not head and not any(is_of(name, a) for a in names)
        if (
            linear and module.weight.is_floating_point() and not module.weight.requires_grad
        ):  # quantised ones are integers
            module.weight.data = module.weight.data.to(torch.bfloat16)


FATES = {"continue": "kept", "merge": "merged", "stack": "frozen"}
"""Life cycle -> what becomes of a task's adapter when the task is over."""


def begin_task(
    model: Any, adapter: AnyAdapter | None, index: int, seed: int, run: Callable[[], None] | None = None
) -> nn.Module:
    """Give the model the adapter that task `index` (from 0) trains. Fresh weights come from `seed` and the index, not
    from the global generator. run: sends the task's examples through the model, for an adapter that begins with what they make
    of it; None: its weights will be put in their place."""
    if adapter is None or (adapter.between_tasks == "continue" and index > 0):
        return model
    if part := adapted_part(model):
        setattr(model, part, begin_task(getattr(model, part), adapter, index, seed, run))
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(seed, "adapter", index))
        under = index if adapter.between_tasks == "stack" else 0
        model = begun(model, _config(model, adapter.of_task(index)), under, f"task{index}", run)
    _check_trains(model, adapter.of_task(index))
    return model


def begun(
    model: Any, config: PeftConfig, under: int, name: str = "", run: Callable[[], None] | None = None
) -> nn.Module:
    """The model with a fresh adapter from the global generator, the one that is trained; `under` earlier ones go on working."""
    from peft import get_peft_model

    from cl_toolkit.models.beginnings import prepare

    name = name or f"task{under}"
    with _told():
        prepare(model, config, run)
        if not under:
            return get_peft_model(model, config, adapter_name=name)
        model.add_adapter(name, config)
        model.base_model.set_adapter([f"task{i}" for i in range(under + 1)])
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad = is_of(parameter_name, name)
    return model


def _check_trains(model: nn.Module, adapter: AnyAdapter) -> None:
    """Raise UserError for an adapter without a number to train, such as one that is to keep all of each matrix."""
    if not any(parameter.numel() for parameter in model.parameters() if parameter.requires_grad):
        given = ", ".join(f"{key} {quoted(value)}" for key, value in adapter.settings().items())
        raise UserError(
            f"model.adapter: nothing is left to train of type {adapter.type} with {given or 'its defaults'}"
        )


def is_of(name: str, adapter: str) -> bool:
    """Whether a weight is one of an adapter's, by their names."""
    return f".{adapter}." in f"{name}."


def _config(model: Any, adapter: AnyAdapter) -> PeftConfig:
    """PEFT's settings of an adapter for this model."""
    first = getattr(model, "peft_config", {}).get("task0")
    if first is None:
        targets = check_targets(model, adapter)
        transposed = any(map(stores_transposed, targets.values()))
        task = ("SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM") if model.can_generate() else None
    else:
        transposed, task, targets = getattr(first, "fan_in_fan_out", False), first.task_type, first.target_modules
    chosen = {"target_modules": tuple(sorted(targets))} if by_weights(adapter.target_modules) else {}
    config = peft_config(adapter, task_type=task, **chosen)
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = transposed
    return config


def join(model: Any) -> None:
    """Have one adapter at work in the place of several: a new one of all their ranks, as PEFT adds it."""
    names = list(model.active_adapters)
    add = getattr(model.base_model, "add_weighted_adapter", None)
    if add is None or "combination_type" not in inspect.signature(add).parameters:
        raise UserError(
            "export: adapters of this type cannot be joined into one; --merge writes one model with them all"
        )
    first = model.peft_config[names[0]]
    # PEFT puts each one's scaling into its weights and copies this setting, by which the new one's would not be 1
    rooted, first.use_rslora = first.use_rslora, False
    try:
        with _told():
            add(names, [1.0] * len(names), "joined", combination_type="cat")
    finally:
        first.use_rslora = rooted
    model.set_adapter("joined")


def save(model: Any, folder: Path, base: str, revision: str | None) -> None:
    """The one adapter at work in PEFT's own format. base: the model, or its folder, that it belongs to."""
    (name,) = model.active_adapters
    model.peft_config[name].base_model_name_or_path, model.peft_config[name].revision = base, revision
    with _told():
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    for path in (folder / name).iterdir():
        path.replace(folder / path.name)
    (folder / name).rmdir()


@contextmanager
def _told() -> Iterator[None]:
    """What PEFT raises, in one line; without the warnings about which no user can do anything."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads a deprecated attribute of transformers 5 here
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # where both kinds of layers are there, PEFT turns the setting for each of them
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        # harmless where nothing is merged; `check_targets` refuses the rest
        warnings.filterwarnings("ignore", ".*tied|Model has `tie_word_embeddings", UserWarning)
        # said of every norm but one, by the type that is for norms
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise refused(error) from error


def end_task(model: Any, adapter: AnyAdapter | None) -> nn.Module:
    """What the life cycle does when a task is over: `merge` folds the adapter into the weights and gives the plain model,
    with all that was hung on the adapted one."""
    if adapter is None or adapter.between_tasks != "merge":
        return model
    if part := adapted_part(model):
        setattr(model, part, end_task(getattr(model, part), adapter))
        return model
    return merged(model)


def merged(model: Any) -> nn.Module:
    """The plain model with the adapter in its weights, and with all that was hung on the adapted one."""
    own_modules = {name: module for name, module in model.named_children() if name != "base_model"}
    own_weights = dict(model.named_parameters(recurse=False))
    with _told():
        plain = model.merge_and_unload()
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    for name, value in {**own_modules, **own_weights}.items():
        setattr(plain, name, value)
    return plain


def merged_with_error(model: nn.Module, adapter: AnyAdapter, inputs: Mapping[str, Tensor]) -> tuple[nn.Module, float]:
    """`end_task`, and the largest change of a logit on `inputs` that it made."""
    before = logits_of(model, inputs)
    model = end_task(model, adapter)
    return model, float((logits_of(model, inputs) - before).abs().max())


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a model says, in fp32."""
    with torch.no_grad(), eval_mode(model):
        return model(**inputs).logits.float()


def base_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are not an adapter's, by their names without one."""
    mine = weights(model)
    return {plain_name(name): tensor for name, tensor in model.state_dict().items() if name not in mine}


def plain_name(name: str) -> str:
    """A weight's name as it is without an adapter."""
    plain = name.replace("base_model.model.", "", 1)
    return plain.replace(".base_layer.", ".").replace(".original_module.", ".")


def layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every layer with LoRA, by a name that survives merging."""
    if "peft" not in sys.modules:  # then nothing has one, and a small net need not wait seconds for the import
        return
    from peft.tuners.lora import LoraLayer

    for name, module in unwrapped(model).named_modules():
        if isinstance(module, LoraLayer):
            yield name.replace("base_model.model.", "", 1), module


def at_work(layer: Any) -> list[str]:
    """The adapters at work that a layer has: a stack may put each on layers of its own (`per_task`)."""
    return [adapter for adapter in layer.active_adapters if adapter in layer.r]


def past_at_work(layer: Any) -> list[str]:
    """Those of them that are no longer trained, oldest first."""
    return [adapter for adapter in at_work(layer) if adapter != layer.active_adapters[-1]]


def pairs(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """(layer name, A (r, d_in), B (d_out, r), scaling) of the adapter that is being trained, on the layers that have it."""
    for name, layer in layers(model):
        if (adapter := layer.active_adapters[-1]) in layer.r:
            yield name, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]


def pair_names(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Layer name -> names of the weights (A, B) of the adapter that is being trained, as `penalty` gets to see them."""
    names = {id(p): name for name, p in unwrapped(model).named_parameters()}
    return {name: (names[id(a)], names[id(b)]) for name, a, b, _ in pairs(model)}


def frozen_pairs(model: nn.Module) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
    """(layer name, [(A, B) of each earlier adapter of a stack, oldest first])."""
    for name, layer in layers(model):
        yield name, [(layer.lora_A[a].weight, layer.lora_B[a].weight) for a in past_at_work(layer)]


def loaded(model: nn.Module) -> dict[str, int]:
    """Name -> number of weights of each adapter that is active in the forward, the one that is trained last; {} without."""
    sizes = [(name, weight.numel()) for name, weight in unwrapped(model).named_parameters()]
    return {a: sum(size for name, size in sizes if is_of(name, a)) for a in active(model)}


def active(model: nn.Module) -> list[str]:
    """The names of the adapters that are at work, the one that is trained last."""
    part = adapted(unwrapped(model))
    return list(part.active_adapters) if hasattr(part, "peft_config") else []


@contextmanager
def only(model: nn.Module, names: list[str]) -> Iterator[None]:
    """With these adapters of a stack at work, and none else. What is trained stays as it is."""
    if active(model) == names:
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [(m, m.active_adapter) for m in unwrapped(model).modules() if isinstance(m, BaseTunerLayer)]
    try:
        for layer, _ in tuned:
            layer._active_adapter = names
        yield
    finally:
        for layer, before in tuned:
            layer._active_adapter = before


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All adapter weights by name, frozen ones too, and the weights of heads that stand beside the adapted model."""
    module = unwrapped(model)
    part, names = adapted_part(module), getattr(adapted(module), "peft_config", {})
    return {
        n: p
        for n, p in module.named_parameters()
        if any(is_of(n, name) for name in names) or (part and not n.startswith(f"{part}."))
    }


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name without an adapter, with what the active adapters add to it. The model stays as it is, to the
    last bit: sums are new tensors, one at a time."""
    added = {f"{name}.weight": layer for name, layer in layers(model)}
    for name, weight in unwrapped(model).named_parameters():
        if ".lora_" in name:
            continue
        layer = added.get(plain := plain_name(name))
        deltas = [layer.get_delta_weight(adapter) for adapter in at_work(layer)] if layer else []
        yield plain, sum(deltas, weight.detach().to(deltas[0].dtype)) if deltas else weight.detach()


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its adapters. PEFT switches `requires_grad` on for every active adapter afterwards, which would
    train the frozen ones of a stack; it is put back here."""
    module = unwrapped(model)
    before = {p: p.requires_grad for p in module.parameters()}
    try:
        with adapted(module).disable_adapter():
            yield model
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad = flag
