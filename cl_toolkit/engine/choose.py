"""Which engine runs a config, on which device."""

from __future__ import annotations

import os

import torch

from cl_toolkit.config.refusals import engine_name
from cl_toolkit.config.schema import RunConfig
from cl_toolkit.engine.session import Engine
from cl_toolkit.errors import UserError


def pick_device(name: str) -> torch.device:
    """auto: cuda, then mps, then cpu. Raises UserError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    here = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if not here[name.split(":")[0]]():
        raise UserError(f"engine.device: {name}: there is no such device here; use auto or cpu")
    if name == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft imports deepspeed too, which else complains of no GPU
    return torch.device(name)


def open_engine(config: RunConfig) -> Engine:
    """The engine of a run."""
    device = pick_device(config.engine.device)
    if engine_name(config) == "torch":
        from cl_toolkit.engine.torch_engine import TorchEngine

        return TorchEngine(config.train, device)
    from cl_toolkit.engine.deepspeed_engine import DeepSpeedEngine, start_processes

    return DeepSpeedEngine(config.train, device, start_processes(device), config.engine.deepspeed)
