"""The JSON record of a run: schema, provenance, cost.

Keys: schema_version, status (running | finished | failed), error, name, method, order, seed, regime (see
`types.Regime`), config, baseline (whether the objective is one), provenance,
tasks (T names in trained order), chance, scorers, units, higher_is_better and bounded (between 0 and 1; of each task's
score), examples_scored, matrix ((T+1) x T; row 0 is before training; a cell is a number or "not_evaluated"), anchors,
anchor_matrix, anchor_higher_is_better, metrics and undefined (metric -> reason) by `measure.metrics`,
losses (task, step, learning_rate, grad_norm, terms), adapters (per task: loaded name ->
number of weights, trained, frozen, what became of the trained one afterwards, parameters trained and in all, steps), cost,
truncated_prompts. reused: whose first training this run has gone on from, and its compute seconds, which stand in `cost` here
too; {} where it has trained everything itself. probes: name -> rows, those of the forgetting curves as `curves` (see
`measure.probes`). stages: see `types.Stage`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import scoring_dtype
from cl_toolkit.errors import UserError, listed
from cl_toolkit.measure.metrics import NOT_EVALUATED
from cl_toolkit.models.adapters import FATES
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.runs import checkpoint
from cl_toolkit.runs.cost import fresh_cost

if TYPE_CHECKING:
    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.engine.session import Session
    from cl_toolkit.measure.exam import Scored
    from cl_toolkit.models.sections import AnyAdapter
    from cl_toolkit.runs.run import Run

SCHEMA_VERSION = 3
PLACE = (
    "name",
    "checkpoint",
    "trackers",
    "train.num_threads",
    "engine.device",
    "engine.timeout_minutes",
    "evaluate.batch_size",
)
"""Settings, or sections of them, that say where and under which name a run ran, not what it is."""
PACKAGES = ("cl-toolkit", "torch", "transformers", "peft", "deepspeed", "tokenizers", "numpy")


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on, as this process has found them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the toolkit's checkout and whether it has changes, as this process has found it; null for an installed
    package."""
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
        "versions": dict(versions()),
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


def find_run(folder: Path) -> Path:
    """The folder of a run: this one, or the one run of a results folder; raises UserError where there is not just one."""
    if (folder / "record.json").is_file() or (folder / "checkpoints").is_dir():
        return folder
    inside = sorted({path.parent for path in folder.glob("runs/*/*/record.json") if ".was-" not in path.parent.name})
    if len(inside) == 1:
        return inside[0]
    if not inside:
        raise UserError(f"{folder}: no run here; expected the folder that holds its record.json")
    names = [str(path.relative_to(folder)) for path in inside]
    raise UserError(
        f"{folder}: holds {len(names)} runs; name one of them: {listed([f'{folder}/{name}' for name in names])}"
    )


def run_folder(record: Mapping[str, Any]) -> str:
    """`<order>-s<seed>`: where a record lies within its method."""
    seed = record["seed"]
    return f"{record['order']}-s{'-'.join(map(str, seed.values())) if isinstance(seed, Mapping) else seed}"


def free_name(path: Path, word: str) -> Path:
    """`<name>.<word>-1`, or the next number that is free."""
    return next(p for i in range(1, 10_000) if not (p := path.with_name(f"{path.name}.{word}-{i}")).exists())


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without clock, memory and place: two runs of the same config on the same machine agree in it bit for bit."""
    kept = {k: v for k, v in record.items() if k not in ("provenance", "reused")}
    clocks = ("compute_seconds", "wall_seconds", "peak_memory_bytes")
    kept["cost"] = {k: v for k, v in record["cost"].items() if k not in clocks}
    return kept


def answer_lines(scored: Sequence[Scored]) -> list[str]:
    """What the model said, a line of JSON per example."""
    line = json.JSONEncoder(ensure_ascii=False).encode  # `dumps` would make one for each
    return [
        line({"task": s.task, "id": s.example.id, "question": s.example.question, "target": s.example.target,
              "answer": s.answer, "score": s.score})
        for s in scored
    ]  # fmt: skip


def write_answers(folder: Path, row: int, lines: Sequence[str]) -> tuple[str, str]:
    """What was said when a row of the matrix was filled: `folder/answers/row-<row>.jsonl`. Returns its name and the checksum
    that the record keeps."""
    text = "\n".join(lines) + "\n"
    path = folder / "answers" / f"row-{row}.jsonl"
    path.parent.mkdir(exist_ok=True)
    checkpoint.write_text(path, text)
    return path.name, hashlib.sha256(text.encode()).hexdigest()


def read_answers(folder: Path, row: int, checksums: Mapping[str, str]) -> list[dict[str, Any]]:
    """What `write_answers` wrote of a run's row; [] where the record knows no such file, or another one than lies there."""
    path = folder / "answers" / f"row-{row}.jsonl"
    content = path.read_bytes() if path.name in checksums and path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != checksums.get(path.name):
        return []
    return [json.loads(line) for line in content.decode().split("\n") if line]


# rows ---------------------------------------------------------------------------------------------------------------

CELLS = ("matrix", "chance", "cut_answers")
"""Keys with a row per row of the matrix and a column per task."""


def fresh_record(run: Run) -> dict[str, Any]:
    """The record of a run that has not begun."""
    config, stream, engine = run.config, run.stream, run.engine
    exams, columns = [run.exams[task.name] for task in stream.tasks], len(stream.tasks)

    def empty(width: int) -> list[list[Any]]:
        return [[NOT_EVALUATED] * width for _ in range(columns + 1)]

    return {
        **head(config, "running"),
        "provenance": {
            **provenance(engine.device, config.train.num_threads, engine.processes.world),
            "engine": engine.name,
            "model_hash": fingerprint(run.model),
        },
        "identity": run.identity,
        "baseline": run.objective.is_baseline,
        "scoring_dtype": str(scoring_dtype(run.model)).removeprefix("torch."),
        "tasks": [exam.name for exam in exams],
        "stages": [stage.plain() for stage in stream.stages],
        "chance": empty(columns),
        "majority": [exam.majority() for exam in exams],
        "cut_answers": empty(columns),
        "notes": run.notes,
        "answers": {},
        "scorers": [exam.task.scorer for exam in exams],
        "units": [exam.scorer.unit for exam in exams],
        "higher_is_better": [exam.scorer.higher_is_better for exam in exams],
        "bounded": [exam.scorer.bounded for exam in exams],
        "examples_scored": [len(exam.examples) for exam in exams],
        "matrix": empty(columns),
        "anchors": [task.name for task in stream.anchors],
        "anchor_matrix": empty(len(stream.anchors)),
        "anchor_higher_is_better": [run.exams[task.name].scorer.higher_is_better for task in stream.anchors],
        "metrics": {},
        "undefined": {},
        "probes": {name: [] for name in run.probes},
        "losses": [],
        "adapters": [],
        "cost": fresh_cost(engine.device),
        "truncated_prompts": 0,
        "reused": {},
    }


def add_row(record: dict[str, Any], row: int, scored: Sequence[Mapping[str, Any]]) -> None:
    """Fill the cells of a row of the matrix from `Matrix.read`."""
    for cell in scored:
        if cell["task"] in record["anchors"]:
            record["anchor_matrix"][row][record["anchors"].index(cell["task"])] = cell["score"]
            continue
        column = record["tasks"].index(cell["task"])
        record["matrix"][row][column] = cell["score"]
        record["cut_answers"][row][column] = cell["cut"]
        if cell["chance"] is not None:
            record["chance"][row][column] = cell["chance"]


def add_losses(record: dict[str, Any], task: str, session: Session) -> dict[str, Any]:
    """The losses of a session's last step; returns the row."""
    norm = session.grad_norm
    row = {
        "task": task,
        "step": session.step_number,
        "learning_rate": session.rate,
        "grad_norm": None if norm is None else float(norm),
        "terms": session.losses,
    }
    record["losses"].append(row)
    return row


def add_stage(
    record: dict[str, Any],
    task: str,
    adapter: AnyAdapter | None,
    loaded: Mapping[str, int],
    counted: Mapping[str, int],
    started: int,
    merge_error: float | None,
    told: Mapping[str, Any],
) -> None:
    """What was trained in a stage. loaded: the adapters at its beginning, with their weights. counted: parameters, trained and
    in all. started: steps of the run before it. told: what strategies have noted about it, by their names."""
    cost = record["cost"]
    cost["trainable_parameters"] = max(cost["trainable_parameters"], counted["trained_parameters"])
    record["adapters"].append(
        {
            "task": task,
            "loaded": dict(loaded),
            "trained": list(loaded)[-1] if adapter else "all weights",
            "frozen": list(loaded)[:-1],
            "afterwards": FATES[adapter.between_tasks] if adapter else "kept",
            "merge_error": merge_error,
            "told": dict(told),
            **counted,
            "steps": cost["steps"] - started,
        }
    )
