"""A model as an ordinary folder, which transformers and PEFT load: all weights, or an adapter beside its base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError, listed
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models import adapters
from cl_toolkit.models.kind import fingerprint_of
from cl_toolkit.models.targets import adapted, adapted_part, check_targets

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cl_toolkit.models.kind import Kind
    from cl_toolkit.models.sections import AnyAdapter
else:
    torch = LazyModule("torch")

HEADS, BASE = "heads.safetensors", "base"
MERGE = "--merge writes one model with everything in it"
LOAD = "in Python cl.load_model(RUN) gives the model as it was trained"
SLACK = 1e-4
"""What rounding may move a logit by, as a share of the largest: seen were 3e-7; what PEFT cannot do moves it by 1e-2."""


@dataclass(frozen=True)
class Written:
    """What stands in a folder. library: who loads it, `transformers` or `peft`. auto: transformers' class for it. base: what an
    adapter belongs to, `{folder}` standing for the folder; "" where all weights are there. dtype: of the weights. adapters:
    how many of the run this one does the work of. heads: weights that transformers has no place for, in a file of their own.
    quantization: what bitsandbytes made of the base, without which it is another model."""

    library: str
    auto: str
    dtype: str
    base: str = ""
    adapters: int = 0
    heads: tuple[str, ...] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)

    def code(self, folder: str) -> str:
        """The lines of Python that load it."""
        more = ", BitsAndBytesConfig" if self.quantization else ""
        lines = [f"from transformers import {self.auto}, AutoTokenizer{more}", ""]
        bits = f", quantization_config=BitsAndBytesConfig(**{dict(self.quantization)!r})" if self.quantization else ""
        whole = (
            f'{self.auto}.from_pretrained("{self.base.format(folder=folder) or folder}", dtype="{self.dtype}"{bits})'
        )
        if self.base:
            lines.insert(0, "from peft import PeftModel")
            whole = f'PeftModel.from_pretrained({whole}, "{folder}")'
        return "\n".join([*lines, f"model = {whole}.eval()", f'tokenizer = AutoTokenizer.from_pretrained("{folder}")'])

    def notes(self) -> str:
        """What else is to be said of it, in sentences."""
        said = []
        if self.adapters > 1:
            said.append(
                f"The adapter does what {self.adapters} stacked ones did together: its rank is the sum of theirs."
            )
        if self.heads:
            said.append(f"{self.auto} loads the backbone; the heads that were trained on it are in `{HEADS}`.")
        return " ".join(said)


def check_product(kind: Kind) -> None:
    """Raise UserError for a model that no other library knows."""
    if not kind.auto:
        raise UserError(
            f"model.name: {kind.name}: is a small net of this toolkit, which transformers cannot load; in Python "
            "cl.load_model(RUN) gives it with its trained weights"
        )


def prepared(
    model: Any, kind: Kind, adapter: AnyAdapter | None, start: str, inputs: Mapping[str, Tensor], merge: bool
) -> tuple[nn.Module, int]:
    """The model as it can be written, with one adapter or none, and how many it was that the one does the work of. start: the
    fingerprint of the start model. inputs: on which that must change nothing. Raises UserError where it would."""
    check_product(kind)
    if adapter is None or not hasattr(adapted(model), "peft_config"):
        return model, 0
    if merge and getattr(kind, "quantization", None):
        raise UserError(f"export: --merge: model.quantization: quantised weights are not merged into; {LOAD}")
    if merge:
        merging = replace(adapter, between_tasks="merge")
        check_targets(adapted(kind.skeleton()), merging)
        model, moved = adapters.merged_with_error(model.float(), merging, inputs)
        if not moved <= SLACK * max(1.0, float(adapters.logits_of(model, inputs).abs().max())):
            raise UserError(f"export: --merge: merging these adapters moves a logit by {moved:.1e}; {LOAD}")
        return model, 0
    beside = [n for n, _ in model.named_parameters() if adapted_part(model) and not n.startswith(adapted_part(model))]
    if beside or fingerprint_of(adapters.base_of(model)) != start:
        what = f" ({listed(beside[:3])})" if beside else ""
        raise UserError(f"export: weights beside the adapter were changed{what}, which its folder cannot hold; {MERGE}")
    count = len(model.active_adapters)
    if count > 1:
        with in_fp32(model):  # in bfloat16 another order of sums moves a logit by more than any slack
            before = adapters.logits_of(model, inputs)
            adapters.join(model)
            moved = float((adapters.logits_of(model, inputs) - before).abs().max())
        if not moved <= SLACK * max(1.0, float(before.abs().max())):
            raise UserError(f"export: these adapters cannot be joined into one (a logit moves by {moved:.1e}); {MERGE}")
    return model, count


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """With all weights in fp32; afterwards each is what it was, bit for bit, unless it was changed."""
    low = [(w, w.dtype) for w in model.parameters() if w.is_floating_point() and w.dtype.itemsize < 4]
    for weight, _ in low:
        weight.data = weight.data.float()
    try:
        yield
    finally:
        for weight, dtype in low:
            weight.data = weight.data.to(dtype)


def write_model(model: Any, kind: Kind, folder: Path, place: Path, classes: Sequence[str], count: int) -> Written:
    """Weights, config, tokenizer and what else came with the start model; of a model that is `prepared`. place: where the
    folder will lie. classes: the stream's. count: see there."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not hasattr(adapted(model), "peft_config"):
        return _whole(model, kind, folder, classes)
    base = kind.source or str(place.resolve() / BASE)  # nobody else has that one
    adapters.save(model, folder, base, getattr(kind, "revision", None))
    kind.write_beside(folder)
    home, bits = kind.source or f"{{folder}}/{BASE}", getattr(kind, "quantization", None) or {}
    written = Written("peft", kind.auto, _dtype(model), home, count, quantization=bits)
    if not kind.source:
        _whole(model.unload(), kind, folder / BASE, classes)
    return written


def _whole(model: Any, kind: Kind, folder: Path, classes: Sequence[str]) -> Written:
    part = model if hasattr(model, "save_pretrained") else adapted(model)
    prefix = "" if part is model else f"{adapted_part(model)}."
    known = kind.skeleton(classes).state_dict()
    if unknown := [name for name in part.state_dict() if name not in known]:
        raise UserError(
            f"export: {listed(unknown[:3])}: a strategy has added it, so that {kind.auto} would leave it out; {LOAD}"
        )
    part.config.use_cache = True  # training has switched it off
    part.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # made up of the config, where the start model has none
    kind.write_beside(folder)
    heads = {n: t.detach().contiguous() for n, t in model.state_dict().items() if prefix and not n.startswith(prefix)}
    if heads:
        from safetensors.torch import save_file

        save_file(heads, folder / HEADS)
    return Written("transformers", kind.auto, _dtype(part), heads=tuple(heads))


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def check_place(folder: Path) -> None:
    """Raise UserError for a folder that holds something."""
    if folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"--out {folder}: is there already; name a folder that is new or empty")


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder beside, which becomes this one when it is whole."""
    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.is_dir():
            folder.rmdir()
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
