"""State on disk: safetensors and JSON, written beside and renamed, with checksums. Never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

TENSOR = "__tensor__"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and rename it over, so that `path` is whole at every moment."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """JSON, written beside and renamed. NaN and infinity are refused."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def to_plain(state: Any, tensors: dict[str, torch.Tensor], path: str = "state") -> Any:
    """State as JSON data, its tensors moved into `tensors`. Raises TypeError for anything that is not plain data."""
    if isinstance(state, torch.Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"  # {"a": {"b": ...}, "a.b": ...}
        # safetensors takes no two tensors with common memory
        tensors[name] = state.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    if isinstance(state, (list, tuple)):
        return [to_plain(value, tensors, f"{path}.{i}") for i, value in enumerate(state)]
    if isinstance(state, dict):
        for key in state:
            if not isinstance(key, str):
                raise TypeError(f"{path}: keys must be text, got {key!r}")
        return {key: to_plain(value, tensors, f"{path}.{key}") for key, value in state.items()}
    raise TypeError(f"{path}: {type(state).__name__} is not plain data (tensors, numbers, strings, lists, dicts)")


def from_plain(plain: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What `to_plain` was given (tuples come back as lists)."""
    if isinstance(plain, dict):
        if set(plain) == {TENSOR}:
            return tensors[plain[TENSOR]]
        return {key: from_plain(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [from_plain(value, tensors) for value in plain]
    return plain


def save(folder: Path, state: Any, weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint folder: `model.safetensors`, `state.safetensors`, `state.json`, `checksums.json`."""
    from safetensors.torch import save_file

    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    (beside / "state.json").write_text(json.dumps(to_plain(state, tensors), ensure_ascii=False), encoding="utf-8")
    save_file(tensors, beside / "state.safetensors")
    save_file(distinct(weights), beside / "model.safetensors")
    sums = {path.name: _checksum(path) for path in sorted(beside.iterdir())}
    (beside / "checksums.json").write_text(json.dumps(sums), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def load(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """(state, weights) of a checkpoint; raises UserError where a file is missing or damaged."""
    from safetensors.torch import load_file

    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        damaged = [name for name, wanted in sums.items() if _checksum(folder / name) != wanted]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: not a whole checkpoint: {error}; delete it to start anew") from error
    if damaged:
        raise UserError(
            f"{folder}: {', '.join(damaged)} is damaged (checksum differs); delete the folder to start anew"
        )
    plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return from_plain(plain, load_file(folder / "state.safetensors")), load_file(folder / "model.safetensors")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def distinct(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with tied ones under their first name only, as safetensors wants them."""
    seen: set[tuple] = set()
    kept = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor.detach().cpu().contiguous()
    return kept


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest task number in a folder of `task-<k>`."""
    found = [p for p in folder.glob("task-*") if p.name.removeprefix("task-").isdigit()]
    return max(found, key=lambda p: int(p.name.removeprefix("task-")), default=None)
