"""Which engine runs a config, on which device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cl_toolkit.engine import launch
from cl_toolkit.engine.deepspeed_config import final_config, zero_stage
from cl_toolkit.errors import UserError, quoted
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch

    from cl_toolkit.engine.sections import EngineSection, Train
    from cl_toolkit.engine.session import Engine
else:
    torch = LazyModule("torch")


def pick_device(name: str) -> torch.device:
    """auto: cuda, then mps, then cpu. Raises UserError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    here: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if not here[name.split(":")[0]]():
        raise UserError(f"engine.device: {name}: there is no such device here; use auto or cpu")
    if name == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft imports deepspeed too, which else complains of no GPU
    return torch.device(name)


def engine_name(section: EngineSection, processes: int | None = None) -> str:
    """`torch` for one process; `deepspeed` for several, or when its config is given. processes: of a job that is planned."""
    if section.name != "auto":
        return section.name
    several = (processes or launch.world()) > 1
    return "deepspeed" if several or section.deepspeed is not None else "torch"


@dataclass(frozen=True)
class EngineKind:
    """open: an engine on a device. check: raises UserError for settings that cannot work; returns the ZeRO stage, None where
    nothing is sharded. shards: whether a DeepSpeed config says what is. Imports nothing heavy."""

    open: Callable[[EngineSection, Train, torch.device], Engine]
    check: Callable[[EngineSection, Train], int | None]
    shards: bool = False


def open_torch(section: EngineSection, train: Train, device: torch.device) -> Engine:
    """PyTorch alone, in one process."""
    from cl_toolkit.engine.torch_engine import TorchEngine

    return TorchEngine(train, device)


def check_torch(section: EngineSection, train: Train) -> None:
    if launch.world() > 1:
        raise UserError("engine.name: torch is for one process; use deepspeed for several")
    if section.deepspeed is not None:
        raise UserError("engine.deepspeed: is given but engine.name is torch; leave one of them out")
    if train.compile == "graphs" and train.per_device_train_batch_size == "auto":
        raise UserError(
            "train.compile: graphs: are of parts of one size, and train.per_device_train_batch_size: auto has yet to find it; "
            "write a number"
        )


def open_deepspeed(section: EngineSection, train: Train, device: torch.device) -> Engine:
    """DeepSpeed, in one process or several."""
    from cl_toolkit.engine.deepspeed_engine import DeepSpeedEngine, start_processes

    return DeepSpeedEngine(train, device, start_processes(device, section.timeout_minutes), section.deepspeed)


def check_deepspeed(section: EngineSection, train: Train) -> int:
    if find_spec("deepspeed") is None:
        raise UserError("engine.name: deepspeed is not installed here (it is for Linux); use torch")
    if train.per_device_train_batch_size == "auto":
        raise UserError(
            "train.per_device_train_batch_size: auto is for one process without DeepSpeed; processes that wait for each other "
            "cannot begin a step again: write a number"
        )
    if train.compile == "graphs":
        raise UserError(
            "train.compile: graphs: is for one process without DeepSpeed, which moves gradients; use layers"
        )
    stage = zero_stage(final_config(section.deepspeed, train))
    if stage == 3 and train.compile != "none":
        raise UserError(
            f"train.compile: {train.compile}: ZeRO-3 gathers weights layer by layer as it goes; use ZeRO 0 to 2"
        )
    return stage


ENGINES = {
    "torch": EngineKind(open_torch, check_torch),
    "deepspeed": EngineKind(open_deepspeed, check_deepspeed, shards=True),
}


def check_engine(section: EngineSection, train: Train) -> int | None:
    """Raise UserError for a device or an engine that cannot be; returns the ZeRO stage, None where nothing is sharded."""
    if section.device.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"engine.device: expected auto | cpu | cuda | mps, got {quoted(section.device)}")
    return ENGINES[engine_name(section)].check(section, train)


def open_engine(section: EngineSection, train: Train) -> Engine:
    """The engine of a run."""
    return ENGINES[engine_name(section)].open(section, train, pick_device(section.device))
