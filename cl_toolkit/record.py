"""The JSON record of a run: schema, provenance, cost.

Keys: schema_version, status (running | finished | failed), error, name, method, order, seed, view, config, provenance,
tasks (T names in trained order), chance, scorers, examples_scored, matrix ((T+1) x T; row 0 is before training; a cell is
a number or "not_evaluated"), anchors, anchor_matrix, metrics and undefined (metric -> reason) by `cl_toolkit.metrics`,
curves (see probes.curves), losses (task, step, learning_rate, grad_norm, terms), adapters (per task: loaded name ->
number of weights, trained, frozen, what became of the trained one afterwards, parameters trained and in all, steps), cost,
truncated_prompts.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.checkpoint import replace_file

if TYPE_CHECKING:
    from cl_toolkit.config import RunConfig
    from cl_toolkit.evaluate import Scored

SCHEMA_VERSION = 1
PLACE = ("name", "checkpoint", "train.num_threads", "engine.device", "evaluate.batch_size")
"""Settings, or sections of them, that say where and under which name a run ran, not what it is."""
PACKAGES = ("cl-toolkit", "torch", "transformers", "peft", "deepspeed", "tokenizers", "numpy")


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the toolkit's checkout and whether it has changes; null for an installed package."""
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", folder, *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def hardware(device: Any, threads: int, world: int) -> dict[str, Any]:
    """What the run ran on."""
    import psutil
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device.type}: {name}",
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": threads,
        "processes": world,
    }


def provenance(device: Any, threads: int, world: int) -> dict[str, Any]:
    """Where a record comes from."""
    return {
        **git_state(Path(__file__).resolve().parent.parent),
        "versions": versions(),
        "hardware": hardware(device, threads, world),
        "started": now(),
        "finished": None,
    }


def peak_memory(device: Any) -> int | None:
    """The largest memory use so far in bytes: of the GPU, or of this process (None where the system does not tell)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # POSIX only
    except ImportError:
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def head(config: RunConfig, status: str, error: str | None = None) -> dict[str, Any]:
    """The first keys of every record; of a failed run they are all there is."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "error": error,
        "name": config.name,
        "method": config.method,
        "order": config.order,
        "seed": config.plain["seed"],
        "view": config.stream.view or "sequential",
        "config": config.plain,
    }


def stored_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run's folder, or the one inside its newest checkpoint; None without either."""
    from cl_toolkit.checkpoint import newest

    if (folder / "record.json").is_file():
        return json.loads((folder / "record.json").read_text(encoding="utf-8"))
    path = newest(folder / "checkpoints")
    if path is None or not (path / "state.json").is_file():
        return None
    return json.loads((path / "state.json").read_text(encoding="utf-8"))["record"]


def differs(old: Any, new: Any, path: str = "") -> str | None:
    """The first difference between two plain configs, in words; None if they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if found := differs(old.get(key), new.get(key), f"{path}.{key}".strip(".")):
                return found
        return None
    if isinstance(new, tuple):
        new = list(new)
    return None if old == new else f"{path}: {old!r} there, {new!r} here"


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without clock, memory and place: two runs of the same config on the same machine agree in it bit for bit."""
    kept = {k: v for k, v in record.items() if k != "provenance"}
    kept["cost"] = {k: v for k, v in record["cost"].items() if k not in ("seconds", "peak_memory_bytes")}
    return kept


def write_answers(folder: Path, row: int, found: Mapping[str, Sequence[Scored]]) -> None:
    """What the model said when a row of the matrix was filled: `folder/answers/row-<row>.jsonl`."""
    lines = [
        json.dumps(
            {"task": s.task, "id": s.example.id, "question": s.example.question, "target": s.example.target,
             "answer": s.answer, "score": s.score},
            ensure_ascii=False,
        )
        for scored in found.values()
        for s in scored
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    path = folder / "answers" / f"row-{row}.jsonl"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
