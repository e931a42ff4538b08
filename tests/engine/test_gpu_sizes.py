"""What a model of some 276 million weights takes on a GPU, beside what `plan` says that it takes."""

import random

import pytest
import torch
from files import llama_folder, write_rows
from launched import ran

from cl_toolkit.cli import planned
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.memory import GIB

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.processes,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WITHIN = 1.3
SHAPE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
         "num_key_value_heads": 4, "vocab_size": 32_000, "tie_word_embeddings": True}  # fmt: skip
LORA = {"r": 8, "between_tasks": "continue"}
CASES = {
    "full": {},
    "full, fp32": {"train": {"bf16": False}},
    "checkpointed": {"train": {"gradient_checkpointing": True}},
    "lora": {"model": {"adapter": LORA}},
    "lora, bf16 weights, checkpointed": {
        "model": {"adapter": LORA, "dtype": "bfloat16"}, "train": {"gradient_checkpointing": True}},
    "4 bits": {"model": {"adapter": LORA, "dtype": "bfloat16",
                         "quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}}},
    "ewc": {"strategies": {"ewc": {"fisher_examples": 4}}},
    "logit_swap": {"strategies": {"logit_swap": {}}},
    "lwf": {"strategies": {"lwf": {}}},
    "zero 1": {"engine": {"deepspeed": {"zero_optimization": {"stage": 1}}}},
    "zero 2": {"engine": {"deepspeed": {"zero_optimization": {"stage": 2}}}},
    "zero 3": {"engine": {"deepspeed": {"zero_optimization": {"stage": 3}}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("sizes"), random.Random(0)
    llama_folder(folder / "model", shape=SHAPE)
    for task in ("a", "b"):
        for name, count in (("train", 32), ("test", 4)):
            rows = [{"prompt": "".join(draw.choices("abcdefgh ", k=250)), "completion": "".join(draw.choices("xyz ", k=250))}
                    for _ in range(count)]  # fmt: skip
            write_rows(folder / "data" / task / f"{name}.jsonl", rows)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_plan_says(case, folder):
    if case == "4 bits":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here (extra gpu)")
    name = case.replace(" ", "-").replace(",", "")
    config = {
        "name": name, "stream": {"name": "jsonl", "path": str(folder / "data")},
        "model": {"name": str(folder / "model")}, "engine": {"device": "cuda"},
        "train": {"max_steps": 3, "global_batch_size": 8, "learning_rate": 1e-4, "bf16": True},
        "evaluate": {"max_new_tokens": 4, "batch_size": 4, "forgetting_curve": {"schedule": "off"}},
    }  # fmt: skip
    for section, keys in CASES[case].items():
        config[section] = {**config.get(section, {}), **keys}
    cost = ran(folder, name, ["-m", "cl_toolkit"], config, 400)["cost"]
    row = planned.look(load_study(config), 1, None, measure=False)["runs"][0]
    told, found = row["memory"]["device_total"], cost["peak_memory_bytes"]
    parts = {key: round(value / GIB, 2) for key, value in row["memory"]["device"].items()}
    print(f"\n{case}: plan {told / GIB:.2f} GiB {parts}, found {found / GIB:.2f}; seconds {cost['wall_seconds']}")
    assert told / WITHIN < found < told * WITHIN
