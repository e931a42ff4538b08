"""Processes as launchers start them."""

import json
import os
import subprocess
import sys

import yaml

SPOKEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher says."""


def environment(**variables):
    """Of a process that no launcher has started."""
    env = {k: v for k, v in os.environ.items() if k not in SPOKEN and not k.startswith("SLURM")}
    return env | {"OMP_NUM_THREADS": "1", **variables}


def started(folder, name, arguments, **variables):
    """A process of its own in a folder, what it says in two files."""
    with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment(**variables), stdout=out, stderr=err
        )


def as_srun(folder, arguments):
    """Two processes with the variables that srun gives to two tasks of a step, `srun-0` and `srun-1`."""
    job = str(int.from_bytes(os.urandom(3)))
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    ids = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    return [started(folder, f"srun-{i}", arguments, **step, **ids[i]) for i in range(2)]


def said(folder, name):
    """What a process has written to stdout and to stderr."""
    return (folder / f"{name}.out").read_text(), (folder / f"{name}.err").read_text()


def ended(processes, limit):
    """Their exit codes. limit: seconds for each; all are gone ."""
    codes = []
    try:
        for process in processes:
            codes.append(process.wait(timeout=limit))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return codes


def ran(folder, name, command, config, limit=300):
    """The record of a run as a user starts it, of a config, in `folder/name`. command: what starts `cl_toolkit`."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    process = started(folder, name, [*command, "run", f"{name}.yaml", "--out", name])
    assert ended([process], limit) == [0], said(folder, name)[1][-2000:]
    return json.loads((folder / name / "record.json").read_text())
