"""The runs of a comparison as tasks of Ray (Moritz et al. 2018, 1712.05889), on a cluster that stands or on a Ray of this
machine that begins and ends with the command. The only door to ray, which the extra `ray` installs."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cl_toolkit.config.schema import Launcher
from cl_toolkit.config.typed import typed
from cl_toolkit.errors import UserError, listed, short
from cl_toolkit.ranges import at_least
from cl_toolkit.study.submitted import Ending, run_all
from cl_toolkit.study.worker import work
from cl_toolkit.study.workers import Job, RunAll, Say, Update

OBJECTS = 100 * 2**20
"""Bytes of the store that tasks share, in /dev/shm: ours put nothing there, and Ray would take 30 % of the memory."""
PATIENCE = 10.0
"""Seconds in which a cluster must answer."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
"""No statistics are sent, and what Ray says of its workers is not printed on our standard output."""
NONE_SEEN = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""A task that has asked for no GPU sees none; without this it sees all of them, those of other runs too."""
KIND = "accelerator_type:"
"""Before the name of a kind of accelerator, where Ray counts it."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """env_vars: what is added to the environment of a run, which is its node's, not that of the command."""

    env_vars: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Config:
    """`launcher.parameters`, by Ray's names. address: host:port of a cluster that this machine is a node of, or auto; null:
    RAY_ADDRESS, and where that is not set a Ray of this machine. The others are what each run asks for; memory: bytes, by which
    Ray counts how many runs fit and to which it holds none; a run that asks for no GPU sees none."""

    address: str | None = None
    num_cpus: Annotated[float, at_least(0)] = 1.0
    num_gpus: Annotated[float, at_least(0)] = 0.0
    memory: Annotated[int, at_least(1)] | None = None
    resources: dict[str, Annotated[float, at_least(0)]] = field(default_factory=dict)
    accelerator_type: str | None = None
    runtime_env: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if "://" in (self.address or ""):
            raise ValueError(
                f"address: expected host:port of a cluster that this machine is a node of, got {self.address!r}"
            )
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(f"num_gpus: expected a part of one, or a whole number, got {self.num_gpus:g}")

    @property
    def asked(self) -> dict[str, float]:
        """What a run takes of a node, by the names that Ray counts it under."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory or 0, **self.resources}


def runner(launcher: Launcher, folder: Path, jobs: int) -> RunAll:
    """Each run as a task; what it and its libraries print lies in `folder`. Raises UserError where Ray is not installed."""
    settings = typed(Config, launcher.parameters, "launcher.parameters", "the config")
    with environment(QUIET):
        imported()
    return partial(run_tasks, settings, folder)


def run_tasks(
    settings: Config, folder: Path, jobs: list[Job], number: int, update: Update, say: Say
) -> Iterator[tuple[Job, str | None, bool]]:
    """As `submitted.run_all` has it. Raises UserError where there is no such cluster, or it cannot give what is asked for."""
    if not jobs:
        return
    ray = imported()
    with connected(settings):
        remote = task(settings)

        def submit(job: Job) -> Task:
            log = (folder / f"{job.name}.log").absolute()
            log.parent.mkdir(parents=True, exist_ok=True)
            return Task(ray, remote.remote(job.line(), os.getcwd(), str(log)), log)

        yield from run_all(submit, jobs, number, update, say)


def told(line: str, here: str, log: str) -> str | None:
    """What a task does: one run, from where the command was given. The reason in one line if it failed."""
    os.chdir(here)
    with open(log, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    return work(json.loads(line))


def imported() -> Any:
    """The library."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "launcher.name: ray: needs Ray, which is not installed: pip install 'cl-toolkit[ray]'"
        ) from error
    return ray


def task(settings: Config) -> Any:
    """Ray's function of a run: a process of its own each time (`max_calls`), not tried again by Ray, whose tries nobody sees.
    Raises UserError for what Ray does not take."""
    asked = {
        name: getattr(settings, name) for name in ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type")
    }
    asked["runtime_env"] = {"env_vars": NONE_SEEN | settings.runtime_env.env_vars}
    try:
        return imported().remote(max_calls=1, max_retries=0, **asked)(told)
    except (ValueError, TypeError) as error:
        raise UserError(f"launcher.parameters: {short(str(error), 200)}") from error


@contextmanager
def connected(settings: Config) -> Iterator[None]:
    """Inside, this process speaks with a cluster: the one it speaks with already, the named one, or one of this machine, which
    ends here. Raises UserError where there is none, or where this machine has less than a run asks for."""
    ray = imported()
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    where = "launcher.parameters.address" if settings.address else "RAY_ADDRESS"
    if address:
        refuse_silence(address, where)
    own = {} if address else {"include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        with environment(QUIET), heeding_as_before():
            try:
                ray.init(address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                place = f"{where}: {address}" if address else "launcher.name: ray"
                hint = "; does it want a token (RAY_AUTH_MODE=token)?" if isinstance(error, ConnectionError) else ""
                raise UserError(f"{place}: {short(str(error), 200)}{hint}") from error
        if not address:
            refuse_too_much(settings, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def refuse_silence(address: str, where: str) -> None:
    """Raise UserError where nobody listens: Ray would try for minutes. Of `auto`, what was begun last on this machine, it
    knows at once. where: who names it."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"{where}: expected host:port of a Ray cluster, nobody answers at {short(address)} ({error})"
        ) from error


def refuse_too_much(settings: Config, has: Mapping[str, float]) -> None:
    """A Ray of one machine grows no further: for what it lacks a run would wait without end."""
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    for key, number in settings.asked.items():
        if number > has.get(key, 0):
            name = names.get(key, f"resources.{key}")
            raise UserError(
                f"launcher.parameters.{name}: a run asks for {number:,.15g}, this machine has {has.get(key, 0):,.15g}"
            )
    kinds = [key.removeprefix(KIND) for key in has if key.startswith(KIND)]
    if settings.accelerator_type not in (None, *kinds):
        raise UserError(
            f"launcher.parameters.accelerator_type: expected one of this machine's ({listed(kinds) or 'none'}), "
            f"got {settings.accelerator_type!r}"
        )


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """With these variables, for this process and what it begins inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def heeding_as_before() -> Iterator[None]:
    """`ray.init` puts a handler of its own in the place of ours for SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@dataclass(frozen=True)
class Task:
    """A task of Ray as the queue asks it."""

    ray: Any
    reference: Any
    log: Path

    def over(self) -> bool:
        """Whether it has a result, or will have none."""
        return bool(self.ray.wait([self.reference], timeout=0)[0])

    def ending(self) -> Ending:
        """What it gave back. An exception that it raised is its own fault; without one its process, its node or Ray's memory
        monitor ended it."""
        try:
            return Ending(self.ray.get(self.reference), recorded=True)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {short(str(error.cause), 200)}"
            return Ending(f"its task failed ({reason}); its log: {self.log}")
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = short(lines[0], 200) if lines else type(error).__name__
            return Ending(f"its task ended without a result ({said}); its log: {self.log}", again=True)

    def cancel(self) -> None:
        """By ending its process."""
        self.ray.cancel(self.reference, force=True)
