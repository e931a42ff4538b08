"""What a model's folder must hold, seen without loading weights."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from cl_toolkit.errors import UserError, listed

POINTER = b"version https://git-lfs.github.com/spec/"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
PARTS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")


def check_folder(name: str, revision: str | None) -> None:
    """Raise UserError where a local folder cannot be a model's; says nothing about a name of the hub."""
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or "\\" in name:
            raise UserError(f"model.name: {name}: no such folder")
        return
    if revision is not None:
        raise UserError(f"model.revision: {revision!r} does nothing: {name} is a folder; leave it out")
    for path in sorted(folder.iterdir()):
        if path.suffix in PARTS and _is_pointer(path):
            what, it = ("the weights", "them") if path.suffix == ".safetensors" else ("the file", "it")
            raise UserError(
                f"model.name: {name}: cannot be loaded: {path.name} is not {what} but a pointer to {it} (git lfs pull)"
            )
    if (folder / "adapter_config.json").exists():
        raise UserError(f"model.name: {name}: {HOLDS_ADAPTER}")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.name: {name}: holds no config.json")
    check_weight_files(name, folder)


HOLDS_ADAPTER = (
    "holds a LoRA adapter (adapter_config.json), not a whole model; merge it into its base and name the folder of that: "
    "AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)"
)


def check_weight_files(name: str, folder: Path) -> None:
    """Safetensors alone, each shard there and none cut short."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED and p.is_file())
    if not files and pickled:
        raise UserError(
            f"model.name: {name}: its weights are pickled ({listed(pickled)}), which can run code when they are read; only "
            f"safetensors are read here. {_conversion(folder, pickled)}"
        )
    if not files:
        raise UserError(f"model.name: {name}: holds no weights (*.safetensors)")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"model.name: {name}: cannot be loaded: {index.name}: not an index of shards") from error
        if lacking := sorted(shard for shard in map(str, shards) if not (folder / shard).is_file()):
            raise UserError(f"model.name: {name}: cannot be loaded: {listed(lacking)} is missing")
    for path in files:
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"model.name: {name}: cannot be loaded: {path.name} is damaged: {error}") from error


def _conversion(folder: Path, pickled: list[str]) -> str:
    """How pickled weights become safetensors beside them: by the class that config.json names, which reads tensors alone."""
    if not any(name.startswith("pytorch_model") for name in pickled):
        return "Load them by the code that wrote them, and write them anew with save_pretrained"
    try:
        cls = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        cls = "AutoModelForCausalLM"
    path = json.dumps(str(folder.resolve()))
    code = (
        f"from transformers import {cls} as M; M.from_pretrained({path}, use_safetensors=False).save_pretrained({path})"
    )
    return f"Convert them where you trust them: python -c {shlex.quote(code)}"


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False
