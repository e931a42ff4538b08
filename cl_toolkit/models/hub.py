"""Models from a folder, from the local Hugging Face cache, or from the hub: loaded whole, or refused in one line."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cl_toolkit.errors import UserError, short
from cl_toolkit.models.folders import HOLDS_ADAPTER, check_folder
from cl_toolkit.models.kind import Kind
from cl_toolkit.models.quantized import check_quantized, keep_differentiable, quantized
from cl_toolkit.models.soundness import check_end, check_finite, check_kind, check_rows
from cl_toolkit.models.targets import adapted, check_targets
from cl_toolkit.sources import file_hash

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from cl_toolkit.models.sections import AnyAdapter, Prompt
    from cl_toolkit.models.text import TextCodec


@contextmanager
def told(name: str) -> Iterator[None]:
    """Whatever loading raises, in one line that names the model; without transformers' own tables and warnings."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, (OSError, ValueError)) and lines[0] else f"{type(error).__name__}: "
        raise UserError(f"model.name: {name}: cannot be loaded: {kind}{short(lines[0], 300)}") from error
    finally:
        logging.set_verbosity(before)


@dataclass(frozen=True, kw_only=True)
class HubKind(Kind):
    """What models from a folder or the hub have in common. Weights are safetensors. dtype: below float32 for frozen weights
    alone, under an adapter that is not merged; `train.bf16` is the way to compute in bfloat16.

    quantization: of bitsandbytes, by its own names (`load_in_4bit`, ...).
    """

    auto: ClassVar[str] = "AutoModel"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    quantization: dict[str, Any] | None = field(default=None, hash=False)

    def load(self, seed: int, frozen: bool = False, classes: Sequence[str] = ()) -> nn.Module:
        import torch

        with torch.random.fork_rng(devices=[]):  # what a folder lacks, transformers draws, if only to be put aside
            return load_hub(self, frozen, classes)[0]

    def skeleton(self, classes: Sequence[str] = ()) -> nn.Module:
        import torch

        config = hub_config(self, classes)
        with told(self.name), torch.device("meta"):
            return auto_class(self).from_config(config, trust_remote_code=self.trust_remote_code)

    def codec(self, prompt: Prompt, classes: Sequence[str] = ()) -> TextCodec:
        from cl_toolkit.models.text import TextCodec

        tokenizer, config = hub_tokenizer(self), hub_config(self).get_text_config()
        return TextCodec(
            tokenizer, prompt, hub_stops(self), self.positions(config), getattr(config, "vocab_size", None)
        )

    def positions(self, config: PretrainedConfig) -> int | None:
        """How many tokens the model has places for; None: any number. config: that of its text part."""
        return getattr(config, "max_position_embeddings", None)

    @property
    def source(self) -> str:
        return str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name

    def write_beside(self, folder: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import cached_file

        from_hub(AutoTokenizer, self).save_pretrained(folder)
        with suppress(UserError), told(self.name):  # not every model has one
            name = "generation_config.json"
            shutil.copyfile(cached_file(self.name, name, revision=self.revision or "main"), folder / name)

    def identity(self) -> dict[str, str]:
        """The content of its folder, or the commit of a hub's model."""
        if Path(self.name).is_dir():
            return {path.name: _file_digest(path, path.stat().st_mtime_ns) for path in model_files(Path(self.name))}
        return {"commit": str(getattr(hub_config(self), "_commit_hash", None))}

    def check(self, adapter: AnyAdapter | None, frozen: bool) -> None:
        """The same question is answered once."""
        folder = Path(self.name)
        changed = max((p.stat().st_mtime_ns for p in folder.glob("*")), default=0) if folder.is_dir() else 0
        _check_start(self, adapter, frozen, changed)

    def check_config(self, config: PretrainedConfig) -> None:
        """Raise UserError for an architecture that is not the kind's."""
        check_kind(self.name, config)

    def finish_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """What a kind changes of a tokenizer."""

    def check_weights(self, model: nn.Module, report: Mapping[str, Collection[Any]], rows: int) -> None:
        """Raise UserError for a model that is not what the kind says. report: what transformers says of the loading. rows: of
        the embedding."""

    def config_changes(self, classes: Sequence[str]) -> dict[str, Any]:
        """What a kind sets in the model's own config."""
        return {}


def auto_class(kind: HubKind) -> Any:
    """Transformers' class for a kind."""
    import transformers

    return getattr(transformers, kind.auto)


def from_hub(cls: Any, kind: HubKind, options: dict[str, Any] | None = None) -> Any:
    """`cls.from_pretrained`, with what goes wrong in one line."""
    check_folder(kind.name, kind.revision)
    common = {"revision": kind.revision or "main", "trust_remote_code": kind.trust_remote_code}
    with told(kind.name):
        return cls.from_pretrained(kind.name, **common, **(options or {}))


def hub_config(kind: HubKind, classes: Sequence[str] = ()) -> PretrainedConfig:
    """The settings of a model, of an architecture that can be trained here."""
    from transformers import AutoConfig

    config = from_hub(AutoConfig, kind)
    kind.check_config(config)
    for key, value in kind.config_changes(classes).items():
        setattr(config, key, value)
    return config


def hub_stops(kind: HubKind) -> list[int]:
    """The ids that end an answer, by the model's own settings."""
    from transformers import GenerationConfig

    try:
        ends = from_hub(GenerationConfig, kind).eos_token_id
    except UserError:  # a folder need not have such a file
        ends = hub_config(kind).get_text_config().eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def hub_tokenizer(kind: HubKind) -> PreTrainedTokenizerBase:
    """A model's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = from_hub(AutoTokenizer, kind)
    kind.finish_tokenizer(tokenizer)
    check_end(kind.name, tokenizer)
    return tokenizer


def hub_processor(kind: HubKind) -> Any:
    """What makes tokens and tensors of a model's texts and images."""
    from transformers import AutoProcessor

    return from_hub(AutoProcessor, kind)


def load_hub(
    kind: HubKind, frozen: bool = False, classes: Sequence[str] = ()
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A model from a folder, from the local Hugging Face cache, or from the hub, and its tokenizer.

    frozen: its weights will neither be trained nor merged into, only then may they be of less than fp32.
    """
    options = {
        "config": hub_config(kind, classes),
        "dtype": kind.dtype,
        "attn_implementation": kind.attn_implementation,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # they are refused by name below
        "output_loading_info": True,
    }
    if kind.quantization:
        options["quantization_config"] = quantized(kind.quantization)
    model, report = from_hub(auto_class(kind), kind, options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"model.name: {kind.name}: {HOLDS_ADAPTER}")
    if not frozen:
        refuse_low_precision(kind.name, {weight.dtype for weight in model.parameters()})
    if kind.quantization:
        keep_differentiable(model)
    check_finite(kind.name, model)
    rows = model.get_input_embeddings().weight.shape[0]
    with told(kind.name):
        kind.check_weights(model, report, rows)
    tokenizer = hub_tokenizer(kind)
    check_rows(kind.name, tokenizer, rows)
    model.config.use_cache = False  # no training forward needs one; generation asks for it
    return model, tokenizer


def refuse_low_precision(name: str, dtypes: set[torch.dtype]) -> None:
    """Weights that are trained or merged into are fp32: in less, small steps are rounded away."""
    import torch

    if low := [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype in (torch.bfloat16, torch.float16)]:
        raise UserError(
            f"model.dtype: {name} would be trained or merged in {low[0]}, in which small steps are lost; use "
            "model.dtype: float32 with train.bf16: true (or an adapter with between_tasks: continue or stack)"
        )


@lru_cache(maxsize=64)
def _check_start(kind: HubKind, adapter: AnyAdapter | None, frozen: bool, changed: int) -> None:
    import torch

    check_quantized(kind.quantization, frozen)
    config = hub_config(kind)
    dtype: Any = getattr(config, "dtype", None) if kind.dtype == "auto" else getattr(torch, kind.dtype)
    if not frozen:
        refuse_low_precision(kind.name, {dtype})
    tokenizer = hub_tokenizer(kind)
    if rows := getattr(config.get_text_config(), "vocab_size", None):
        check_rows(kind.name, tokenizer, rows)
    if adapter is not None:
        check_targets(adapted(kind.skeleton()), adapter)


MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder: weights, settings, tokenizer, templates."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in MODEL_FILES)


@cache
def _file_digest(path: Path, changed: int) -> str:
    return file_hash(path)[:16]
