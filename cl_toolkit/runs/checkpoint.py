"""State on disk: safetensors and JSON, written beside and renamed, with checksums. Never pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.data.store import example_from_plain, example_to_plain
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.sources import file_hash
from cl_toolkit.types import Example

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

TENSOR = "__tensor__"
EXAMPLE = "__example__"
SUMS = "checksums.json"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says when there is no more room."""


@contextmanager
def room(path: Path):
    """A full disk in one sentence."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in FULL or "No space left" in str(error):
            raise UserError(
                f"the disk is full: {path} could not be written; free some room and repeat the command"
            ) from error
        raise


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before anything older is deleted."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path`, flush it and rename it over, so that `path` is whole at every moment and never a way to
    another place."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with room(path):
        try:
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Text, written beside and renamed."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """JSON, written beside and renamed. NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


CHECKSUM = "checksum"


def write_checked(path: Path, data: dict[str, Any]) -> None:
    """JSON that holds a checksum over the rest of itself."""
    write_json(path, {**data, CHECKSUM: _content_checksum(data)})


def read_checked(path: Path) -> dict[str, Any]:
    """What `write_checked` wrote; raises UserError that names the file where it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: is damaged: expected an object, got {type(data).__name__}")
    checksum = data.pop(CHECKSUM, None)
    if checksum != _content_checksum(data):
        raise UserError(f"{path}: is damaged or was edited (checksum differs)")
    return data


def _content_checksum(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def clear_litter(folder: Path) -> None:
    """Remove what a killed process left half written: temporary files, half-made or half-deleted checkpoints."""
    for path in (*folder.glob("*.tmp"), *folder.glob("answers/*.tmp")):
        path.unlink(missing_ok=True)
    for path in folder.glob("checkpoints/*"):
        whole = path.name.removeprefix("task-").isdigit() and (path / SUMS).is_file()
        if path.is_dir() and not path.is_symlink() and not whole:
            shutil.rmtree(path, ignore_errors=True)


NONE: Mapping[str, Example] = {}


def to_plain(
    state: Any, tensors: dict[str, torch.Tensor], path: str = "state", known: Mapping[str, Example] = NONE
) -> Any:
    """State as JSON data, its tensors moved into `tensors`; of the `known` examples (by id) the ids alone. Raises TypeError for
    anything that is neither plain data nor an Example."""
    if isinstance(state, torch.Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"  # {"a": {"b": ...}, "a.b": ...}
        # safetensors takes no two tensors with common memory
        tensors[name] = state.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    if isinstance(state, Example):
        if known.get(state.id) is state:
            return {EXAMPLE: state.id}
        return {EXAMPLE: to_plain(example_to_plain(state), tensors, path)}
    if isinstance(state, (list, tuple)):
        return [to_plain(value, tensors, f"{path}.{i}", known) for i, value in enumerate(state)]
    if isinstance(state, dict):
        for key in state:
            if not isinstance(key, str):
                raise TypeError(f"{path}: keys must be text, got {key!r}")
        return {key: to_plain(value, tensors, f"{path}.{key}", known) for key, value in state.items()}
    raise TypeError(f"{path}: {type(state).__name__} is not plain data (tensors, numbers, strings, lists, dicts)")


def from_plain(plain: Any, tensors: dict[str, torch.Tensor], known: Mapping[str, Example] = NONE) -> Any:
    """What `to_plain` was given (tuples come back as lists). The id of an example that is not known stays as it is: it is
    of another stream."""
    if isinstance(plain, dict):
        if plain.keys() == {TENSOR}:
            return tensors[plain[TENSOR]]
        if plain.keys() == {EXAMPLE}:
            kept = plain[EXAMPLE]
            return known.get(kept, plain) if isinstance(kept, str) else example_from_plain(from_plain(kept, tensors))
        return {key: from_plain(value, tensors, known) for key, value in plain.items()}
    if isinstance(plain, list):
        return [from_plain(value, tensors, known) for value in plain]
    return plain


def save(folder: Path, state: Any, weights: dict[str, torch.Tensor], known: Mapping[str, Example] = NONE) -> None:
    """A checkpoint folder: `model.safetensors`, `state.safetensors`, `state.json`, `checksums.json`. known: examples by id
    that the data of the run has, so that the checkpoint need not."""
    from safetensors.torch import save_file

    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    with room(folder):
        try:
            beside.mkdir(parents=True)
            tensors: dict[str, torch.Tensor] = {}
            text = json.dumps(to_plain(state, tensors, known=known), ensure_ascii=False)
            (beside / "state.json").write_text(text, encoding="utf-8")
            save_file(tensors, beside / "state.safetensors")
            save_file(distinct(weights), beside / "model.safetensors")
            sums = {path.name: file_hash(path) for path in sorted(beside.iterdir())}
            (beside / SUMS).write_text(json.dumps(sums), encoding="utf-8")
            for path in (*beside.iterdir(), beside):
                flush(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)  # half a checkpoint only fills the disk
            raise
    discard(folder)
    os.replace(beside, folder)
    flush(folder.parent)


def discard(folder: Path) -> None:
    """Delete a checkpoint; its checksums first, so that a half-deleted one is known for what it is."""
    (folder / SUMS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def load(folder: Path, known: Mapping[str, Example] = NONE) -> tuple[Any, dict[str, torch.Tensor]]:
    """(state, weights) of a checkpoint; raises UserError where a file is missing or damaged. known: as in `save`."""
    from safetensors.torch import load_file

    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        damaged = [name for name, wanted in sums.items() if file_hash(folder / name) != wanted]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: not a whole checkpoint: {error}; delete it to start anew") from error
    if damaged:
        raise UserError(
            f"{folder}: {', '.join(damaged)} is damaged (checksum differs); delete the folder to start anew"
        )
    plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    # each in memory of its own: in the file it may begin anywhere, and a sum's last bits depend on that
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "state.safetensors").items()}
    state = from_plain(plain, tensors, known)
    return state, load_file(folder / "model.safetensors")


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
    """The checkpoint with the highest task number in a folder of `task-<k>`; half-deleted ones do not count."""
    found = [p for p in folder.glob("task-*") if p.name.removeprefix("task-").isdigit() and (p / SUMS).exists()]
    return max(found, key=lambda p: int(p.name.removeprefix("task-")), default=None)
