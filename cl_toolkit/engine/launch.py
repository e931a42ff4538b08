"""Which process of which job this is. What a launcher has said stands in the environment and is read here alone."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
import warnings
from typing import Any

from cl_toolkit.errors import UserError

GRACE = 3.0
"""Seconds in which a launcher ends the other processes of a job whose first one has failed."""
PORTS = range(15_000, 30_000)
"""Ports for the jobs of Slurm: below those that systems give to outgoing connections."""


def world() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def join() -> None:
    """Take what Slurm says of the tasks of an `srun` for what `torchrun` and `deepspeed` say of processes. To be called before
    anything asks; changes nothing elsewhere, nor where another launcher has spoken."""
    said = os.environ
    if "RANK" in said or "SLURM_PROCID" not in said or int(said.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    job, step = (int(said.get(f"SLURM_{name}_ID", "0")) for name in ("JOB", "STEP"))
    said.setdefault("MASTER_ADDR", first_host(said["SLURM_STEP_NODELIST"]))
    said.setdefault("MASTER_PORT", str(PORTS[(job * 31 + step) % len(PORTS)]))
    said.update(RANK=said["SLURM_PROCID"], LOCAL_RANK=said["SLURM_LOCALID"], WORLD_SIZE=said["SLURM_STEP_NUM_TASKS"])


def first_host(nodes: str) -> str:
    """The first of a list of nodes as Slurm writes it: `node[01-03,07],login` -> `node01`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")


def be_one() -> None:
    """Say of a process that no launcher has started that it is the only one of its job."""
    if "RANK" not in os.environ:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        one = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in one.items()})


def be_quiet() -> None:
    """What libraries warn of is told by process 0. To be called before torch is imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def place(devices: int) -> int:
    """Which of the machine's devices is this process's. Where Slurm shows each task one of its own (`--gpus-per-task`), that
    one. Raises UserError where there are fewer devices than processes."""
    mine = int(os.environ["LOCAL_RANK"])
    if devices == 1 and "SLURM_LOCALID" in os.environ:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed takes the device of that number
        return 0
    if mine >= devices:
        raise UserError(
            f"engine.device: this machine has {devices} GPU{'s' * (devices != 1)} and process {mine} of it finds none left; "
            "start as many processes as it has GPUs"
        )
    return mine


def refuse_several(what: str) -> None:
    """Raise UserError for what one process does."""
    if world() > 1:
        raise UserError(
            f"{what} is made by one process; under a launcher use `run CONFIG --method NAME --order NAME seed=0` for each run, "
            "then `report results/<name>`"
        )


def _group() -> Any:
    """torch.distributed where the processes of this job have met; None elsewhere."""
    dist: Any = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def leave(together: bool = False) -> None:
    """Take leave of the other processes, if there are any. together: after all have come so far, since some of them would
    complain of one that is gone."""
    if (dist := _group()) is not None:
        if together:
            dist.barrier()
        dist.destroy_process_group()


def speaks() -> bool:
    """Whether an error is this process's to tell: each is told once. Those that have met agree on who was the first; before
    that process 0 tells what went wrong everywhere, and another one what a launcher leaves it the time for."""
    if world() == 1:
        return True
    if (dist := _group()) is not None:
        with contextlib.suppress(Exception):  # process 0, which keeps the store, may be gone
            return dist.distributed_c10d._get_default_store().add("cl-toolkit: errors", 1) == 1
    if rank() > 0:
        time.sleep(GRACE)
    return True
