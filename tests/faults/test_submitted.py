"""Runs as jobs, by submitit's stand-in for Slurm: the same records, a job that died is submitted again, none is left."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import execute
from cl_toolkit.study import compare as study
from cl_toolkit.study.cells import load_study

pytest.importorskip("submitit", reason="submitit is not installed here")
pytestmark = pytest.mark.processes

GUESTS = """
import os, time
from pathlib import Path
from cl_toolkit import Strategy

class DiesOnce(Strategy):
    def before_task(self, model, task):
        if task.index == 1 and not Path("died").exists():
            Path("died").write_text("yes")
            os._exit(3)
        return model

class Slow(Strategy):
    def before_task(self, model, task):
        Path(f"working-{os.getpid()}").write_text("")
        time.sleep(60)
        return model
"""


def config(**changes):
    return tiny_config(train={"max_steps": 1}, launcher={"name": "local", "parameters": {}}, **changes)


def test_records_are_those_of_runs_alone_and_a_job_that_died_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guests.py").write_text(GUESTS)
    asked, told = (
        load_study(
            config(methods={"replay": {"strategies": {"replay": {}}}, "once": {"strategies": ["guests.py:DiesOnce"]}})
        ),
        [],
    )
    found, failures = study.compare(asked, tmp_path / "out", jobs=2, say=told.append)
    assert not failures
    assert len(found.records) == 2
    (again,) = [what for what in told if "submitted once more" in what]
    assert "ended without a result" in again
    assert found.records[1]["provenance"]["resumed"]
    alone = execute(asked.runs[0], tmp_path / "alone")
    assert comparable(alone) == comparable(found.records[0])


def test_jobs_end_with_the_command(tmp_path):
    (tmp_path / "guests.py").write_text(GUESTS)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config(methods={"slow": {"strategies": ["guests.py:Slow"]}})))
    command = [sys.executable, "-m", "cl_toolkit", "compare", "tiny.yaml", "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while not (begun := list(tmp_path.glob("working-*"))):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
    worker = psutil.Process(int(begun[0].name.removeprefix("working-")))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert psutil.wait_procs([worker], timeout=15)[1] == []


@pytest.mark.parametrize(
    ("launcher", "told"),
    [
        ({"name": "slurmm"}, r"launcher\.name: expected processes \| slurm \| local \| ray, got 'slurmm'"),
        ({"name": "slurm"}, "launcher: .*srun"),
        ({"name": "local", "parameters": {"partitions": "gpu"}}, "launcher: .*partition"),
    ],
)
def test_what_cannot_be_is_told(launcher, told, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))  # no Slurm
    with pytest.raises(UserError, match=told):
        study.compare(load_study({**config(), "launcher": {"parameters": {}, **launcher}}), tmp_path / "out")
