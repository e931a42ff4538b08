"""Models from a folder, from the local Hugging Face cache, or from the hub: loaded whole, or refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError, short
from cl_toolkit.models.folders import HOLDS_ADAPTER, check_folder
from cl_toolkit.models.soundness import check_causal, check_complete, check_end, check_finite, check_kind, check_rows
from cl_toolkit.models.targets import check_targets

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from cl_toolkit.config.schema import Adapter
    from cl_toolkit.models.kind import HubModel


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


def from_hub(cls: type, name: str, settings: HubModel, options: dict[str, Any] | None = None) -> Any:
    """`cls.from_pretrained`, with what goes wrong in one line."""
    check_folder(name, settings)
    common = {"revision": settings.revision or "main", "trust_remote_code": settings.trust_remote_code}
    with told(name):
        return cls.from_pretrained(name, **common, **(options or {}))


def hub_config(name: str, settings: HubModel) -> PretrainedConfig:
    """The settings of a model, of a kind that can be trained here."""
    from transformers import AutoConfig

    config = from_hub(AutoConfig, name, settings)
    check_kind(name, config)
    return config


def hub_tokenizer(name: str, settings: HubModel) -> PreTrainedTokenizerBase:
    """A model's tokenizer. An encoder's need not have an end mark: nothing is generated, its separator stands for it."""
    from transformers import AutoTokenizer

    tokenizer = from_hub(AutoTokenizer, name, settings)
    if settings.head == "none" and tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token
    check_end(name, tokenizer)
    return tokenizer


def load_hub(name: str, settings: HubModel, frozen: bool = False) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A model from a folder, from the local Hugging Face cache, or from the hub.

    frozen: its weights will neither be trained nor merged into, only then may they be of less than fp32.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    hub_config(name, settings)
    options = {
        "dtype": settings.dtype,
        "attn_implementation": settings.attn_implementation,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # they are refused by name below
        "output_loading_info": True,
    }
    language_model = settings.head == "lm"
    cls = AutoModelForCausalLM if language_model else AutoModel
    model, report = from_hub(cls, name, settings, options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"model.name: {name}: {HOLDS_ADAPTER}")
    if not frozen:
        refuse_low_precision(name, {weight.dtype for weight in model.parameters()})
    check_finite(name, model)
    rows = model.get_input_embeddings().weight.shape[0]
    with told(name):
        if language_model:
            check_causal(name, model, rows)
        check_complete(name, model, settings.head, report)
    tokenizer = hub_tokenizer(name, settings)
    check_rows(name, tokenizer, rows)
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


def skeleton(name: str, settings: HubModel) -> nn.Module:
    """The structure of a model, without memory and without weights."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    config = hub_config(name, settings)
    with told(name), torch.device("meta"):
        return (AutoModelForCausalLM if settings.head == "lm" else AutoModel).from_config(
            config, trust_remote_code=settings.trust_remote_code
        )


def check_start(name: str, settings: HubModel, adapter: Adapter | None, frozen: bool) -> None:
    """What can be seen of a model and its adapter without weights; the same question is answered once. frozen: as in
    `load_hub`."""
    changed = max((p.stat().st_mtime_ns for p in Path(name).glob("*")), default=0) if Path(name).is_dir() else 0
    _check_start(name, settings, adapter, frozen, changed)


@lru_cache(maxsize=64)
def _check_start(name: str, settings: HubModel, adapter: Adapter | None, frozen: bool, changed: int) -> None:
    import torch

    config = hub_config(name, settings)
    dtype = getattr(config, "dtype", None) if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if not frozen:
        refuse_low_precision(name, {dtype})
    tokenizer = hub_tokenizer(name, settings)
    if rows := getattr(config.get_text_config(), "vocab_size", None):
        check_rows(name, tokenizer, rows)
    if adapter is not None:
        check_targets(skeleton(name, settings), adapter)
