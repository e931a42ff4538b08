"""The tables of scale.md, by the arithmetic of `cl-toolkit plan`, from the settings that stand in the models' config.json.

python docs/scale.py    writes them
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.study.memory import GIB, Job, Memory, Shape, arithmetic, shape_of

PAGE = Path(__file__).with_name("scale.md")
MODELS = {  # Llama 2, as their config.json say
    "7 B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70 B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
             "num_key_value_heads": 8},
}  # fmt: skip
LORA = Adapter(r=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
ROW = Job(bf16=True, gpu=True, rows=1, tokens=2048, targets=512)
"""One row of 2,048 tokens, of which 512 are learned."""
ROOM = 80


@cache
def shape(model: str, adapter: bool, dtype: int = 4, linear: float = 2.0) -> Shape:
    """Of a model with all weights trained, or with LoRA on its attention. dtype: bytes of a frozen weight as it is loaded.
    linear: of one in a linear layer."""
    with torch.device("meta"):
        made = LlamaForCausalLM(LlamaConfig(vocab_size=32_000, tie_word_embeddings=False, **MODELS[model]))
        made = adapters.begin_task(made, LORA if adapter else None, 0, 0)
    found = shape_of(made, True, dtype, linear if adapter else None)
    return replace(found, start_bytes=found.weight_bytes) if linear < 2 else found


def stages() -> list[str]:
    """What each ZeRO stage needs, of 7 B parameters in 8 processes."""
    lines = ["| | weights | gradients | optimizer | buckets and gathered | together |", "|---|--:|--:|--:|--:|--:|"]
    for name, job in (
        ("one process, no DeepSpeed", Job()),
        *((f"ZeRO-{stage}, 8 processes", Job(stage=stage, processes=8)) for stage in range(4)),
        ("ZeRO-3, 8 processes, optimizer offloaded", Job(stage=3, processes=8, offload=frozenset({"optimizer"}))),
    ):
        found = arithmetic(replace(shape("7 B", False), cast=0), replace(job, rows=0)).device
        rest = found.get("buckets", 0) + found.get("weights gathered", 0)
        cells = [
            found.get("weights", 0),
            found.get("gradients", 0),
            found.get("optimizer", 0),
            rest,
            sum(found.values()),
        ]
        lines.append(f"| {name} | " + " | ".join(f"{size / GIB:.1f}" for size in cells) + " |")
    return lines


def cases() -> dict[str, Memory]:
    """The worked example: what one process needs for one row at a time."""
    full, lora = shape("7 B", False), shape("7 B", True)
    large, small = shape("70 B", True, 2), shape("70 B", True, 2, 0.56)
    saving = replace(ROW, checkpointing=True)
    three = replace(saving, stage=3, processes=8)
    return {
        "7 B full, one GPU": arithmetic(full, saving),
        "7 B full, 8 GPUs, ZeRO-2": arithmetic(full, replace(three, stage=2)),
        "7 B full, 8 GPUs, ZeRO-3": arithmetic(full, three),
        "7 B LoRA, one GPU": arithmetic(lora, ROW),
        "7 B LoRA, one GPU, gradient checkpointing": arithmetic(lora, saving),
        "70 B LoRA, one GPU": arithmetic(large, saving),
        "70 B LoRA, 8 GPUs, ZeRO-3": arithmetic(large, three),
        "70 B LoRA on 4 bits, one GPU": arithmetic(small, saving),
    }


def worked() -> list[str]:
    """The example as a table."""
    rest = ("weights gathered", "buckets", "weights in bf16")
    heads = [
        "weights",
        "gradients and optimizer",
        "gathered, buckets, casts",
        "activations",
        "logits",
        "in a step",
        "between tasks",
        "of 80 GiB",
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name, memory in cases().items():
        device = memory.device
        cells = [device["weights"], device["gradients"] + device["optimizer"], sum(device.get(key, 0) for key in rest)]
        cells += [device["activations"], device["logits"], sum(device.values()), memory.whole]
        fits = "fits" if memory.fits(ROOM * GIB) else "does not fit"
        lines.append(f"| {name} | " + " | ".join(f"{size / GIB:.1f}" for size in cells) + f" | {fits} |")
    return lines


TABLES = {"stages": stages, "worked": worked}


def page(text: str) -> str:
    """The page with its tables as they are now."""
    for name, make in TABLES.items():
        table = "\n".join(make())
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
