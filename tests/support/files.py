"""Small data folders and configs on disk."""

from __future__ import annotations

import gzip
import json
import random
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from cl_toolkit.cli import app as cli

SMALL = {
    "name": "tiny-lm",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """A JSONL file; a row that is text stands there as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(count: int = 4, target: str = "a") -> list[dict[str, str]]:
    """Rows that are as they should be."""
    return [{"input": f"question {i}", "target": target} for i in range(count)]


def write_case(folder: Path, train_rows: Any = None, test_rows: Any = None, **sections: Any) -> Path:
    """A task `t` and a config that runs it in a blink; sections go over it."""
    write_rows(folder / "data" / "t" / "train.jsonl", rows() if train_rows is None else train_rows)
    write_rows(folder / "data" / "t" / "test.jsonl", rows() if test_rows is None else test_rows)
    config = {
        "stream": {"name": "jsonl", "path": str(folder / "data")},
        "model": SMALL,
        "train": {"max_steps": 1, "global_batch_size": 4},
        "evaluate": {"max_new_tokens": 4, "forgetting_curve": {"schedule": "off"}},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


def llama_folder(folder: Path, seed: int = 0, shape: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """A Llama with the byte tokenizer, as a folder. shape: what is not tiny about it, by transformers' names."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cl_toolkit.models.tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    own = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **tiny, **tokens, **shape}
    LlamaForCausalLM(LlamaConfig(**own)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def call(monkeypatch, capsys, *arguments: Any) -> tuple[int, str, str]:
    """The command line: exit code, its output, its errors."""
    capsys.readouterr()  # what was said before is not its own, such as the progress of a model that the test has saved
    monkeypatch.setattr(sys, "argv", ["cl-toolkit", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_idx(
    folder: Path, sizes: Mapping[str, int] = MappingProxyType({"train": 24, "t10k": 8}), side: int = 4
) -> None:
    """Pictures of four classes as idx files, every one another; the bright corner tells the class."""
    draw = random.Random(0)
    for name, count in sizes.items():
        labels = bytes(i % 4 for i in range(count))
        images = b"".join(
            bytes(255 if place == 3 * label else draw.randrange(90) for place in range(side * side)) for label in labels
        )
        for kind, data, shape in (
            ("images-idx3-ubyte", images, (count, side, side)),
            ("labels-idx1-ubyte.gz", labels, (count,)),
        ):
            whole = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + data
            (folder / f"{name}-{kind}").write_bytes(gzip.compress(whole) if kind.endswith(".gz") else whole)
