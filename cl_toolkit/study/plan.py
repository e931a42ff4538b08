"""What a comparison will do and what it will about cost, without loading a model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from cl_toolkit.config.schema import RunConfig
from cl_toolkit.data.spread import spread
from cl_toolkit.data.store import ExampleStore
from cl_toolkit.errors import UserError
from cl_toolkit.models.rollouts import AT_ONCE
from cl_toolkit.models.targets import by_weights
from cl_toolkit.registry import OBJECTIVES
from cl_toolkit.runs.fit import check_fit, codec_of
from cl_toolkit.runs.parts import build_objective, build_strategy, find_stores
from cl_toolkit.study.budget import WHOLE, passes, rehearsed
from cl_toolkit.study.compare import run_name
from cl_toolkit.study.memory import Job, Memory, Shape, arithmetic, cut, shape_of
from cl_toolkit.types import Example, Stream

LOOKED_AT = 64
"""Of each task so many examples say how long a row is."""
LONG = 50_000
"""Characters of text, after which no more documents are looked at."""
STEP_OVERHEAD = 0.012
"""Seconds per optimizer step that do not depend on the model's size; measured on a small model on one CPU core."""
PRODUCTS = 5
"""Of matrices so many are timed at least."""
SAMPLED = 0.22
"""What the call of a model for one sampled token takes of that overhead."""


@dataclass(frozen=True)
class Forecast:
    """One run: optimizer steps, new examples, rows with the rehearsed ones, tokens through the model, passes (forwards of rows,
    a backward as two, as under `budget.equal`), seconds."""

    run: str
    steps: int
    new_examples: int
    rows: int
    tokens: int
    passes: int
    seconds: float


def fitting(config: RunConfig, stream: Stream) -> list[str]:
    """What has to be said of model and examples before training; raises UserError for what cannot work."""
    config.kind.check(config.model.adapter, config.frozen_base)
    notes = check_fit(codec_of(config, stream), stream, config)
    wanted = None if config.model.adapter is None else config.model.adapter.target_modules
    unknown = f"model.adapter.target_modules: {wanted}: as many layers are counted, but which, the weights say"
    return [*notes, unknown] if by_weights(wanted) else notes


def shape(config: RunConfig, stream: Stream, bf16: bool, processes: int = 1) -> Shape:
    """Of a run's model, with its adapter and what strategies build into it for the first task, counted on one without
    memory."""
    import torch

    from cl_toolkit.models import adapters

    def bare() -> Any:
        model = config.kind.skeleton(stream.classes)
        return OBJECTIVES.get(config.objective.name, "objective.name")(config.objective.settings).equip(model, 0)

    with torch.device("meta"):
        try:
            model = adapters.begin_task(bare(), config.model.adapter, 0, 0)
        except UserError:  # some types of adapters look at the weights; these are as memory happens to be
            model = bare().to_empty(device="cpu")
            getattr(model, "tie_weights", lambda: None)()  # which has torn them apart
            with torch.device("cpu"):
                model = adapters.begin_task(model, config.model.adapter, 0, 0)
    with torch.device("cpu"):  # where what it draws is made
        model = build_strategy(config).build(model, 0)
    kind: Any = config.kind
    given, quantized = getattr(kind, "dtype", "float32"), getattr(kind, "quantization", None) or {}
    frozen = 2 if given == "bfloat16" or (given == "auto" and config.frozen_base) else 4
    linear = 0.56 if quantized.get("load_in_4bit") else 1.0 if quantized else None
    mixed = cut(config, processes)[0] != 3  # `Engine.mixes_dtypes`
    if linear is None and mixed and config.frozen_base and config.model.adapter and bf16:
        linear = 2.0
    found = shape_of(model, bf16, frozen, linear)
    return replace(found, start_bytes=found.weight_bytes) if quantized else found


def flops_per_second(device: Any) -> float:
    """Measured on the spot with small matrices, as small models see it: the fastest of many products, since what else runs on
    the machine may stop any of them for as long as all would take."""
    import torch

    a = torch.randn(512, 512, device=device)
    (a @ a).sum().item()
    times = [time.perf_counter()]
    while len(times) <= PRODUCTS or times[-1] - times[0] < 0.1:
        (a @ a).sum().item()
        times.append(time.perf_counter())
    return 2 * 512**3 / min(after - before for before, after in pairwise(times))


def looked_at(examples: Sequence[Example]) -> list[Example]:
    """A few of a task's examples, spread over it: fewer where they are long texts."""
    found, size = [], 0
    for example in spread(examples, LOOKED_AT):
        if size > LONG:
            break
        found.append(example)
        size += len(example.text or "")
    return found


def need(config: RunConfig, stream: Stream, model: Shape, processes: int, bf16: bool, gpu: bool) -> Memory:
    """What one of so many processes needs at its fullest, by the task whose rows are longest."""
    train, strategy = config.train, build_strategy(config)
    codec, stage = codec_of(config, stream), cut(config, processes)
    found = []
    for task in {id(s.task): s.task for s in stream.stages}.values():
        objective = build_objective(task.objective or config.objective)
        cost = objective.cost() + strategy.cost(train.global_batch_size)
        rows = math.ceil(train.global_batch_size * objective.copies * (1 + cost.rows) / processes)
        if isinstance(train.per_device_train_batch_size, int):
            rows = min(rows, train.per_device_train_batch_size)
        some = [codec.batch([e]) for e in spread(objective.units(codec, looked_at(task.train)), LOOKED_AT)]
        stores = list(find_stores(strategy))
        kept = sum(len(t.train) for t in stream.tasks)
        sample = ExampleStore(None, "ring")
        sample.items = [(0, example) for example in looked_at(task.train)]
        job = Job(
            stage=stage[0],
            processes=processes,
            offload=stage[1],
            optimizer=2 if train.optim == "adamw_torch" else 0,
            bf16=bf16,
            gpu=gpu,
            checkpointing=train.gradient_checkpointing,
            rows=rows,
            tokens=max(int(row.lengths) if row.along_tokens else 1 for row in some),
            targets=max(len(row.asked.places) for row in some),
            logits="logits" in strategy.needs,
            cost=cost,
            past=max(0, len(stream.stages) - 1),
            reads=2 * (strategy.uses("penalty") or strategy.uses("before_step")),
            stored=sample.nbytes()
            / len(sample)
            * sum(kept if store.size is None else min(store.size, kept) for store in stores),
        )
        found.append(arithmetic(model, job))
    return max(found, key=lambda memory: memory.total)


def forecast(config: RunConfig, stream: Stream, counted: tuple[int, int], rate: float) -> Forecast:
    """About what one run costs: per parameter and token 2 floating-point operations of a forward and 4 of a backward, and an
    overhead per step, of what the objective and the strategies say that they do."""
    train, total = config.train, counted[0]
    strategy = build_strategy(config)
    kept = strategy.cost(train.global_batch_size)
    codec = codec_of(config, stream)
    steps, new_examples, trained, tokens, over, passed, calls = 0, 0, 0.0, 0, 0.0, 0.0, 0.0
    for i, stage in enumerate(stream.stages):
        task, objective = stage.task, build_objective(stage.task.objective or config.objective)
        cost = replace(objective.cost() + kept, rows=rehearsed(strategy, train.global_batch_size, i, stream))
        some = looked_at(task.train)
        units = objective.units(codec, some)
        count = math.ceil(len(units) * len(task.train) / len(some))
        per_epoch = math.ceil(count / train.global_batch_size)
        batched = round(per_epoch * train.num_train_epochs)
        if train.max_steps > 0:
            batched = train.max_steps * stage.tasks_at_once // objective.updates
        here = max(1, batched) * objective.updates
        rows = [codec.batch([e]) for e in spread(units, LOOKED_AT)]
        length = fmean(int(row.lengths) if row.along_tokens else 1 for row in rows)
        afterwards, read = (min(n, len(task.train)) for n in (cost.after_task, cost.read_after))
        written = cost.written * len(task.train)
        epochs, batches = divmod(here // objective.updates, per_epoch)
        examples = epochs * count + batches * train.global_batch_size  # the last batch of an epoch is what is left
        new = examples * objective.updates * objective.copies * length
        steps += here
        new_examples += examples
        trained += examples * (1 + cost.rows)
        tokens += round(new * (1 + cost.rows))
        passed += new * (6 * (1 + cost.rows) + 2 * cost.forwards + 4 * cost.backwards) + 6 * afterwards * length
        passed += 2 * (written + read * length)
        each = passes(objective.cost(), strategy, train.global_batch_size, i, stream)
        over += examples * objective.updates * objective.copies * each + WHOLE * afterwards + read
        calls += (
            here * (1 + SAMPLED * cost.calls)
            + afterwards
            + read / train.global_batch_size
            + SAMPLED * written / AT_ONCE
        )
    seconds = passed * config.kind.places * total / rate + calls * STEP_OVERHEAD
    return Forecast(run_name(config), steps, new_examples, round(trained), tokens, round(over), seconds)


def room(device: Any, processes: int) -> float:
    """Bytes that a process can have of a device: all of a GPU, its share of the host's memory."""
    import psutil
    import torch

    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return psutil.virtual_memory().total / processes
