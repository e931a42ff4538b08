"""A model of the shape of Llama-3.2-1B as a folder, taken the whole way: two tasks, export, reload. Times of its parts.

    PYTHONPATH=tests/support python tests/speed/gpu/whole.py [--small] [--out FILE]

Every command is one of `cl-toolkit` in a process of its own, as a user starts it. `--small` takes a tiny model, on any device.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from files import llama_folder, write_rows
from transformers import AutoModelForCausalLM

SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192}  # fmt: skip
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 300,
}
LORA = {"model": {"adapter": {"r": 8, "between_tasks": "continue"}}}
RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, replay": {"strategies": {"replay": {}}},
    "full, ewc": {"strategies": {"ewc": {"fisher_examples": 32}}},
    "LoRA": LORA,
    "LoRA, replay": {**LORA, "strategies": {"replay": {}}},
    "LoRA, ewc": {**LORA, "strategies": {"ewc": {"fisher_examples": 32}}},
}


def prepare(folder: Path, small: bool) -> None:
    """A model with random weights, and two tasks of 512 questions and answers."""
    draw = random.Random(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        llama_folder(folder / "model", shape=SMALL if small else SHAPE)
    for task in ("one", "two"):
        for name, count in (("train", 512), ("test", 64)):
            texts = ("".join(draw.choices("abcdefgh ", k=draw.randint(100, 400))) for _ in range(2 * count))
            rows = [{"prompt": prompt, "completion": answer[:100]} for prompt, answer in zip(texts, texts, strict=True)]
            write_rows(folder / "data" / task / f"{name}.jsonl", rows)


def config(name: str, folder: Path) -> Path:
    """Of one run, as a file."""
    plain: dict[str, Any] = {
        "name": "whole",
        "stream": {"name": "jsonl", "path": str(folder / "data")},
        "model": {"name": str(folder / "model")},
        "train": {"max_steps": 32, "global_batch_size": 16, "learning_rate": 1e-5, "per_device_train_batch_size": 8},
        "evaluate": {"max_new_tokens": 32, "batch_size": 64, "forgetting_curve": {"schedule": "off"}},
    }
    for section, keys in RUNS[name].items():
        plain[section] = {**plain.get(section, {}), **keys}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def command(*arguments: Any) -> float:
    """Seconds of a command, which must succeed."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "cl_toolkit", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: code {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def reloaded(folder: Path, model: Path) -> float:
    """Seconds until plain transformers, with PEFT, has the exported model and it has said something finite."""
    started = time.perf_counter()
    adapter = (folder / "adapter_config.json").is_file()
    loaded: Any = AutoModelForCausalLM.from_pretrained(model if adapter else folder)
    if adapter:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, folder)
    with torch.no_grad():
        if not loaded(input_ids=torch.arange(8)[None]).logits.isfinite().all():
            raise SystemExit(f"{folder}: logits that are no numbers")
    return time.perf_counter() - started


def one(name: str, folder: Path) -> dict[str, Any]:
    """The parts of a run, in seconds; `peak` on the device and the size of the run's `folder` in GiB."""
    run, product = folder / f"run {name}", folder / f"product {name}"
    whole = command("run", config(name, folder), "--out", run)
    cost = json.loads((run / "record.json").read_text(encoding="utf-8"))["cost"]
    parts = {part: cost["wall_seconds"][part] for part in ("train", "evaluate")}
    other = {"all else": whole - sum(parts.values()), "export": command("export", run, "--out", product)}
    found = {"run": name, "command": whole, **parts, **other, "reload": reloaded(product, folder / "model")}
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    for gone in (run, product):  # six of them are some hundred gigabytes
        shutil.rmtree(gone)
    return {**found, "peak": cost["peak_memory_bytes"] / 2**30, "folder": size / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, on any device")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    asked, found = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        prepare(Path(place), asked.small)
        print(f"a model as a folder: {time.perf_counter() - started:.1f} s", flush=True)
        for name in asked.only:
            found.append(one(name, Path(place)))
            said = {key: round(value, 1) for key, value in found[-1].items() if key != "run"}
            print(f"{name}: {said}", flush=True)
            if asked.out:
                asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
