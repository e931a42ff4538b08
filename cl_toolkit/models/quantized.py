"""Frozen weights of 4 or 8 bits under an adapter (Dettmers et al. 2023, QLoRA), by bitsandbytes through transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from cl_toolkit.errors import UserError, did_you_mean, short

KEY = "model.quantization"


def quantized(settings: Mapping[str, Any]) -> Any:
    """Transformers' settings of bitsandbytes, where it is installed. Raises UserError for what they do not take."""
    from transformers import BitsAndBytesConfig

    known = inspect.signature(BitsAndBytesConfig).parameters
    if wrong := next((name for name in settings if name not in known or name == "kwargs"), None):
        raise UserError(
            f"{KEY}.{wrong}: unknown key{did_you_mean(wrong, [name for name in known if name != 'kwargs'])}"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{KEY}: needs bitsandbytes, which is not installed; pip install 'cl-toolkit[gpu]'")
    try:
        return BitsAndBytesConfig(**settings)
    except Exception as error:
        raise UserError(f"{KEY}: {short(' '.join(str(error).split()), 200)}") from error


def check_quantized(settings: Mapping[str, Any] | None, frozen: bool) -> None:
    """Raise UserError where quantised weights would have to change, or cannot be had."""
    if not settings:
        return
    quantized(settings)
    if not frozen:
        raise UserError(
            f"{KEY}: quantised weights are neither trained nor merged into; use an adapter with between_tasks: "
            "continue or stack"
        )


def keep_differentiable(model: Any) -> None:
    """On processors with bf16 instructions bitsandbytes packs a layer's weights when it is first asked without gradient, and
    from then on no gradient passes through it: what is below such a layer would learn from a part of the loss. It packs none
    of these (seen in 0.50)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
