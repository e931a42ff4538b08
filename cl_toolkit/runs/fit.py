"""Whether model, adapter and examples fit together. Looked at before training, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cl_toolkit.data.facts import facts_of, overlap_lines
from cl_toolkit.errors import UserError, listed
from cl_toolkit.measure.scorers import as_scorer
from cl_toolkit.models.writers import make_writer
from cl_toolkit.registry import OBJECTIVES, SCORERS
from cl_toolkit.runs.parts import build_strategy, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.engine.session import Engine
    from cl_toolkit.models.kind import Codec
    from cl_toolkit.models.writers import Writer
    from cl_toolkit.strategy import Strategy
    from cl_toolkit.types import Stream, Task


def check_fit(codec: Codec, stream: Stream, config: RunConfig) -> list[str]:
    """What has to be said before training, in sentences. Raises UserError for what cannot work."""
    config.kind.check(config.model.adapter, config.frozen_base)
    check_choices(stream, config)
    parts = parts_of(build_strategy(config))
    check_anchors(stream, parts)
    written = [(part.name, part.answer_limit) for part in parts]

    def limits(task: Task) -> dict[str, int]:
        component, found = task.objective or config.objective, {}
        objective = OBJECTIVES.get(component.name, "objective.name")(component.settings)
        if objective.answer_limit is not None and task.train:
            found[f"objective.{objective.answer_limit[0]}"] = objective.answer_limit[1]
        found |= {f"strategies.{name}.{limit[0]}": limit[1] for name, limit in written if limit and task.train}
        if as_scorer(SCORERS.get(task.scorer, "scorer")).reads == "answer":
            found["evaluate.max_new_tokens"] = config.evaluate.max_new_tokens
        return found

    shared = [f"task {line}" for line in overlap_lines(stream.all_tasks, config.evaluate.split)]
    return [
        *codec.check(stream.all_tasks, config.evaluate.split, limits),
        *shared,
        *passed_over(stream, config),
        *beyond_the_end(stream, config, parts),
    ]


def passed_over(stream: Stream, config: RunConfig) -> list[str]:
    """What rows have and their objective does not learn from, a sentence for each; a task's first row speaks for all."""
    found: dict[str, list[str]] = {}
    for task in stream.tasks:
        name = (task.objective or config.objective).name
        if set(task.train[0].extra if task.train else ()) & {"rejected"} - OBJECTIVES.get(name, "objective.name").reads:
            found.setdefault(name, []).append(task.name)
    return [
        f"task{'s' * (len(tasks) > 1)} {listed(sorted(tasks))}: rows have a rejected answer, which objective {name} passes over"
        for name, tasks in found.items()
    ]


def beyond_the_end(stream: Stream, config: RunConfig, parts: Sequence[Strategy]) -> list[str]:
    """What is said of tasks that the stream has not got, in sentences. It may grow."""
    if not stream.regime.trained:
        return []
    last, rates, adapter = len(stream.stages), config.train.lr_per_stage, config.model.adapter
    given = {"train.lr_per_stage": len(rates) if isinstance(rates, tuple) else 0}
    given["model.adapter.per_task"] = len(adapter.tasks) if adapter is not None else 0
    begins = {f"strategies.{part.name}": part.as_set.begins for part in parts}
    late = [(name, f"does nothing: it begins in task {task}") for name, task in begins.items() if task > last]
    long = [(name, f"is for {many} tasks") for name, many in given.items() if many > last]
    return [f"{name} {words}, and the last one is task {last}" for name, words in (*late, *long)]


def check_choices(stream: Stream, config: RunConfig) -> None:
    """Who chooses must have something to choose from."""
    for task in stream.all_tasks:
        chooses = as_scorer(SCORERS.get(task.scorer, f"task {task.name}: scorer")).reads == "choices"
        closed = all((facts_of(task, split).choices >= 0).all() for split in ("train", config.evaluate.split))
        if chooses and not closed:
            raise UserError(f"task {task.name}: the scorer {task.scorer} needs choices, and an example has none")
        if config.stream.scenario == "class" and not (chooses and closed):
            raise UserError(
                f"task {task.name}: stream.scenario: class: needs choices in every example and a scorer that chooses "
                f"(choices or class_accuracy), got {task.scorer}"
            )


def check_anchors(stream: Stream, parts: Sequence[Strategy]) -> None:
    """Who rehearses anchors alone must have something to rehearse: an anchor needs no training examples to be scored."""
    for part in parts:
        if part.as_set.anchored and stream.anchors and not any(anchor.train for anchor in stream.anchors):
            raise UserError(
                f"stream.anchors: strategies.{part.name} does nothing, as it is set, without training examples of an anchor; "
                "expected some, got none"
            )


def check_weights(model: nn.Module, task: Task) -> None:
    """Nothing is scored or kept that is no longer a number."""
    from cl_toolkit.engine.session import LOWER

    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"task {task.name}: after its last step the weight {name} is no longer finite; {LOWER}")


def ready(model: Any, engine: Engine) -> Any:
    """A model on the engine's device, which knows how it is scored and what it does to its logits."""
    import torch

    from cl_toolkit.models.logits import says_logits

    model = model.to(engine.device)
    model.scoring_dtype = torch.bfloat16 if engine.train.bf16 else None
    model.says_logits = says_logits(model)
    return model


def codec_of(config: RunConfig, stream: Stream, writer: Writer | None = None) -> Codec:
    """How the examples of a run become tensors, and its model's outputs answers. writer: who writes them, in place of the
    codec's own."""
    codec: Any = config.kind.codec(config.prompt, stream.classes)
    if writer is not None:
        codec.writer = writer
    users = (part for part in parts_of(build_strategy(config)) if "prefixes" in part.as_set.of_model)
    if "logits" in config.kind.gives and any(users):  # where an answer follows its prompt
        codec.tells_prompts = True
    return codec.by_class() if "classes" in OBJECTIVES.get(config.objective.name, "objective.name").gives else codec


PROBED, LOOKED_AT = 4, 64
"""Each merge is measured on the first training prompts of its task: so many of them, so many tokens of each."""


def first_inputs(codec: Any, task: Task, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """What the model gets of these prompts."""
    batch = codec.prompts(task.train[:PROBED]).to(device)
    whole = not batch.along_tokens.issuperset(batch.inputs)  # what goes with all of its tokens cannot be cut
    return {name: tensor if whole else tensor[:, :LOOKED_AT] for name, tensor in batch.inputs.items()}


def writer_of(config: RunConfig, device: torch.device) -> Writer:
    """Who writes the answers of a run on a device."""
    answers = [config.evaluate.max_new_tokens]
    answers += [getattr(probe.settings, "max_new_tokens", 0) for probe in config.probes]
    for part in (config, *config.then):
        limit = OBJECTIVES.get(part.objective.name, "objective.name")(part.objective.settings).answer_limit
        answers.append(limit[1] if limit is not None else 0)
    return make_writer(config.generation, device, config.prompt.max_prompt_length + max(answers))


def found_to_fit(engine: Engine, told: Sequence[str]) -> list[str]:
    """What `per_device_train_batch_size: auto` has found, where it has not been told yet."""
    rows = engine.fitting
    note = (
        f"train.per_device_train_batch_size: auto: {rows} row{'s' * (rows != 1)} at a time fit into the device's memory"
    )
    return [] if rows is None or note in told else [note]
