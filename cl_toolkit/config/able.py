"""What the engine, and who writes answers, must be able to: refused in one sentence, before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.parts import strategy_class, tags_of
from cl_toolkit.engine import choose
from cl_toolkit.engine.deepspeed_config import final_config, offloaded
from cl_toolkit.errors import UserError
from cl_toolkit.models import writers
from cl_toolkit.registry import OBJECTIVES
from cl_toolkit.strategy import Strategy

if TYPE_CHECKING:
    from cl_toolkit.config.schema import RunConfig


def check_prefixes(config: RunConfig, where: str) -> None:
    """What would lose, or does not know, the keys and values that a strategy puts before each row."""
    train, generation = config.train, config.generation
    wrong = {
        f"train.packing: {train.packing}": train.packing is not None,
        "train.gradient_checkpointing: true": train.gradient_checkpointing,
        f"generation.engine: {generation.engine}": generation.engine != "own",
        f"generation.cache: {generation.cache}": generation.cache != "dynamic",
    }
    users = [c.name for c in config.strategies if "prefixes" in tags_of(c).of_model]
    for setting in [setting for setting, holds in wrong.items() if holds and users]:
        raise UserError(
            f"{where}: {setting}: cannot be where strategies.{users[0]} puts prompts before each row; leave it out"
        )


def check_generation(config: RunConfig, stage: int | None, where: str) -> None:
    """What writes answers must be able to here, at a ZeRO stage; None: nothing is sharded."""
    if config.plain["generation"] != base_layer()["generation"] and "generates" not in config.kind.gives:
        raise UserError(
            f"{where}: generation: is for models that write text; {config.model.name} does not; leave it out"
        )
    try:
        writers.check_generation(config.generation, stage)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_engine(config: RunConfig, where: str) -> int | None:
    """Device and engine must be able to what is asked. Returns the ZeRO stage; None: nothing is sharded."""
    try:
        stage = choose.check_engine(config.engine, config.train)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if stage is None:
        return None
    objective = OBJECTIVES.get(config.objective.name, f"{where}: objective.name")
    parts = [(f"objective {config.objective.name}", objective.zero_stages)]
    parts += [(f"strategy {c.name}", tags_of(c).zero_stages) for c in config.strategies]
    for name, stages in parts:
        if stage not in stages:
            raise UserError(
                f"{where}: engine.deepspeed: {name} does not work at ZeRO-{stage}; use stage {max(stages)} instead"
            )
    if config.train.max_grad_norm and "optimizer" in offloaded(final_config(config.engine.deepspeed, config.train)):
        for component in config.strategies:
            if changes_gradients(strategy_class(component)):
                raise UserError(
                    f"{where}: engine.deepspeed: with offload_optimizer DeepSpeed clips by the gradient's norm before strategy "
                    f"{component.name} has changed it; use train.max_grad_norm: 0, or leave offload_optimizer out"
                )
    return stage


def changes_gradients(strategy: type[Strategy]) -> bool:
    """Whether a step's gradient is another one after its last backward."""
    return strategy.tags.edits_gradient or strategy.penalty is not Strategy.penalty
