"""The JSON record of a run: schema, provenance, cost.

Keys: schema_version, status (running | finished | failed), error, name, method, order, seed, regime (see
`types.Regime`), config, baseline (whether the objective is one), provenance,
tasks (T names in trained order), chance, scorers, units
and higher_is_better (of each task's score), examples_scored, matrix ((T+1) x T; row 0 is before training; a cell is
a number or "not_evaluated"), anchors, anchor_matrix, metrics and undefined (metric -> reason) by `measure.metrics`,
curves (see probes.curves), losses (task, step, learning_rate, grad_norm, terms), adapters (per task: loaded name ->
number of weights, trained, frozen, what became of the trained one afterwards, parameters trained and in all, steps), cost,
truncated_prompts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError
from cl_toolkit.runs import checkpoint

if TYPE_CHECKING:
    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.measure.evaluate import Scored

SCHEMA_VERSION = 3
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
        **git_state(Path(__file__).resolve().parents[2]),
        "versions": versions(),
        "hardware": hardware(device, threads, world),
        "started": now(),
        "finished": None,
    }


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
        "regime": config.regime.plain(),
        "config": config.plain,
    }


def stored_record(
    folder: Path, say: Callable[[str], None] = lambda text: None, first: bool = True
) -> dict[str, Any] | None:
    """The record in a run's folder, or the one inside its newest checkpoint; None without either.

    A damaged record is named by `say`, set aside (by the first of several processes) and treated as absent; that of a failed
    run counts as no record.
    """
    path = folder / "record.json"
    if path.exists() or path.is_symlink():
        try:
            record = read_record(path)
        except UserError as error:
            if first:
                aside = free_name(path, "damaged")
                path.rename(aside)
                say(f"{error}; it is set aside as {aside.name} and treated as absent")
        else:
            if record["status"] != "failed":
                return record
    newest = checkpoint.newest(folder / "checkpoints")
    return None if newest is None else checkpoint.load(newest)[0]["record"]


def read_record(path: Path) -> dict[str, Any]:
    """A record, whole and of this schema; raises UserError that names the file."""
    record = checkpoint.read_checked(path)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: has schema {record.get('schema_version')!r}; this toolkit reads {SCHEMA_VERSION}")
    return record


def run_folder(record: Mapping[str, Any]) -> str:
    """`<order>-s<seed>`: where a record lies within its method."""
    seed = record["seed"]
    return f"{record['order']}-s{'-'.join(map(str, seed.values())) if isinstance(seed, Mapping) else seed}"


def free_name(path: Path, word: str) -> Path:
    """`<name>.<word>-1`, or the next number that is free."""
    return next(p for i in range(1, 10_000) if not (p := path.with_name(f"{path.name}.{word}-{i}")).exists())


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without clock, memory and place: two runs of the same config on the same machine agree in it bit for bit."""
    kept = {k: v for k, v in record.items() if k != "provenance"}
    clocks = ("compute_seconds", "wall_seconds", "peak_memory_bytes")
    kept["cost"] = {k: v for k, v in record["cost"].items() if k not in clocks}
    return kept


def write_answers(folder: Path, row: int, found: Mapping[str, Sequence[Scored]]) -> tuple[str, str]:
    """What the model said when a row of the matrix was filled: `folder/answers/row-<row>.jsonl`. Returns its name and the
    checksum that the record keeps."""
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
    checkpoint.write_text(path, text)
    return path.name, hashlib.sha256(text.encode()).hexdigest()
