"""What `plan` says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cl_toolkit.config.plain_yaml import to_yaml
from cl_toolkit.data.streams import build_stream
from cl_toolkit.engine.choose import pick_device
from cl_toolkit.report import budgets
from cl_toolkit.study import plan as plans
from cl_toolkit.study.memory import FULL, GIB

ORDER = (
    "train.per_device_train_batch_size: 1",
    "train.gradient_checkpointing: true",
    "more processes, or engine.deepspeed with zero_optimization.stage 3",
    "offload_optimizer",
    "model.adapter",
)
"""What to try where it does not fit, what costs least first."""


def look(study: Any, processes: int, gib: float | None, measure: bool) -> dict[str, Any]:
    """The plan as plain data: `config`, `design` and `budget` in sentences, `runs` (what each trains on, seconds, memory of a
    process in bytes), `notes`, `processes` and `room` of a device. gib: of a GPU that is not here."""
    from cl_toolkit.engine.session import in_bf16
    from cl_toolkit.report import design
    from cl_toolkit.study.measured import measured

    first = study.runs[0]
    device = pick_device(first.engine.device)
    gpu = gib is not None or device.type == "cuda"
    bf16 = first.train.bf16 is not False if gib is not None else in_bf16(first.train, device)
    bf16 = bf16 if first.train.bf16 == "auto" else bool(first.train.bf16)
    room = gib * GIB if gib is not None else plans.room(device, processes)
    rate = plans.flops_per_second(device)
    shapes: dict[str, Any] = {}
    steps: dict[str, float] = {}
    notes: dict[str, None] = {}
    runs: list[dict[str, Any]] = []
    tasks = 0
    for config in study.runs:
        stream = build_stream(config)
        tasks = len(stream.tasks)
        notes |= dict.fromkeys(plans.fitting(config, stream))
        key = json.dumps(
            [config.plain[k] for k in ("model", "objective", "strategies", "engine")] + [stream.classes], default=str
        )
        if key not in shapes:
            shapes[key] = plans.shape(config, stream, bf16, processes)
        cost = plans.forecast(config, stream, (shapes[key].total, shapes[key].trained), rate)
        memory = plans.need(config, stream, shapes[key], processes, bf16, gpu)
        if measure and config.method not in steps:
            steps[config.method] = measured(config, stream)
        seconds = cost.steps * steps[config.method] if measure else cost.seconds
        row = {
            "run": cost.run,
            "steps": cost.steps,
            "new_examples": cost.new_examples,
            "rows": cost.rows,
            "tokens": cost.tokens,
            "passes": cost.passes,
            "seconds": seconds,
            "memory": memory.plain(),
        }
        runs.append(row | {"parameters": shapes[key].total, "trained": shapes[key].trained})
        if not memory.fits(room):
            notes[
                f"{cost.run}: needs {memory.total / GIB:.1f} GiB, and {FULL * room / GIB:.1f} of {room / GIB:.1f} GiB can be "
                f"planned with; in this order: {', '.join(ORDER)} (docs/scale.md)"
            ] = None
    return {
        "config": study.plain,
        "design": list(design.told(study, tasks)),
        "budget": list(budget(study, runs)),
        "runs": runs,
        "notes": list(notes),
        "processes": processes,
        "room": room,
        "measured": measure,
    }


def budget(study: Any, runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What all methods get equally, and what they do not."""
    if equal := study.plain["budget"]["equal"]:
        yield f"Every method takes as many steps as give it equally many {equal.replace('_', ' ')}."
    counted = {"steps": "steps", "new examples": "new_examples", "rows": "rows", "tokens through the model": "tokens"}
    if equal == "passes":  # of what is sampled they would say nothing
        counted["passes"] = "passes"
    amounts = {
        c.method: {name: row[key] for name, key in counted.items()} for c, row in zip(study.runs, runs, strict=True)
    }
    if said := budgets.uneven(amounts):
        yield said


def told(found: dict[str, Any]) -> Iterator[str]:
    """The same in lines."""
    yield to_yaml(found["config"])
    heads = f"{'steps':>8} {'new':>10} {'rows':>10} {'tokens':>12}"
    yield f"{'run':32} {heads} {'about':>10} {'memory':>10}"
    for row in found["runs"]:
        size = amount(row["memory"]["device_total"])
        counts = f"{row['steps']:>8} {row['new_examples']:>10} {row['rows']:>10} {row['tokens']:>12}"
        yield f"{row['run']:32} {counts} {row['seconds']:>8.0f} s {size:>10}"
    yield ""
    largest = max(found["runs"], key=lambda row: row["memory"]["device_total"])
    each = "the process" if found["processes"] == 1 else f"each of {found['processes']} processes"
    share = f"{largest['trained']:,} of {largest['parameters']:,} parameters are trained"
    yield f"memory of {each} in {largest['run']} ({share}):"
    for where, parts in (("device", largest["memory"]["device"]), ("host", largest["memory"]["host"])):
        for name, value in parts.items():
            yield f"  {where:8}{name:18} {amount(value):>10}"
    between = amount(largest["memory"]["whole_weights"])
    yield f"  {'device':8}{'between tasks':18} {between:>10}  whole weights, at every ZeRO stage"
    minutes = sum(row["seconds"] for row in found["runs"]) / 60
    runs = f"{len(found['runs'])} runs, about {minutes:.1f} minutes of training one after the other on this machine"
    yield f"\n{runs}; scoring comes on top."
    if found["measured"]:
        yield "From the time of three real steps of each method's first task."
    else:
        yield "The time is rough: within a factor of three (--measure takes real steps)."
    yield from found["design"]
    yield from found["budget"]
    yield from (f"note: {note}" for note in found["notes"])


def amount(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
