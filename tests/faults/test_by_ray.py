"""Runs as tasks of Ray: the same records, a task whose process was killed is submitted again, one that failed is not, none is
left, and what cannot be is told in one line."""

import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from typing import get_args

import psutil
import pytest
import yaml
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.config.schema import LauncherName
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import execute
from cl_toolkit.study import by_ray
from cl_toolkit.study import compare as study
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.launchers import KINDS, kind_of

pytestmark = pytest.mark.processes

GUESTS = """
import os, signal, time
from pathlib import Path
from cl_toolkit import Strategy

class KilledOnce(Strategy):
    def before_task(self, model, task):
        print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
        if task.index == 1 and not Path("died").exists():
            Path("died").write_text("yes")
            os.kill(os.getpid(), signal.SIGKILL)
        return model

class Fails(Strategy):
    def before_task(self, model, task):
        with open("tries", "a") as file:
            file.write(f"sees {os.environ['CUDA_VISIBLE_DEVICES']!r}")
        raise ValueError("out of cheese")

class Slow(Strategy):
    def before_task(self, model, task):
        Path(f"working-{os.getpid()}").write_text("")
        time.sleep(60)
        return model
"""


def config(parameters, **changes):
    return tiny_config(train={"max_steps": 1}, launcher={"name": "ray", "parameters": parameters}, **changes)


def methods(**guests):
    return {name: {"strategies": [f"guests.py:{cls}"]} for name, cls in guests.items()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guests.py").write_text(GUESTS)
    return tmp_path


@pytest.fixture(scope="module")
def cluster():
    """A Ray of this machine that believes in two GPUs; a comparison takes the one that its process speaks with."""
    with by_ray.environment(by_ray.QUIET):
        ray = pytest.importorskip("ray", reason="ray is not installed here; the extra `ray` has it")
        ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False,
                 logging_level=logging.CRITICAL, object_store_memory=by_ray.OBJECTS)  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.mark.long
def test_records_are_those_of_runs_alone_and_a_killed_task_goes_on(here, cluster):
    told = []
    chosen = {"replay": {"strategies": {"replay": {}}}, **methods(once="KilledOnce")}
    asked = load_study(config({"num_gpus": 1}, methods=chosen))
    found, failures = study.compare(asked, here / "out", jobs=2, say=told.append)
    assert not failures
    (again,) = [what for what in told if "submitted once more" in what]
    assert "its task ended without a result (The worker died" in again
    assert found.records[1]["provenance"]["resumed"]
    alone = [comparable(execute(run, here / f"alone-{i}")) for i, run in enumerate(asked.runs)]
    assert [comparable(record) for record in found.records] == alone
    assert re.fullmatch(
        "(sees [01]\n){3}", (here / "out" / "jobs" / "once" / "given-s0.log").read_text()
    )  # one GPU each


@pytest.mark.long
def test_a_run_that_fails_is_told_once_and_the_others_go_on(here, cluster):
    asked = load_study(config({}, methods={**methods(fails="Fails"), "replay": {"strategies": {"replay": {}}}}))
    found, (failure,) = study.compare(asked, here / "out", jobs=1)
    assert failure.run == "fails/given-s0"
    assert "ValueError: out of cheese" in failure.error
    assert (here / "tries").read_text() == "sees ''"  # one try; it has asked for no GPU and sees neither of the two
    assert [record["status"] for record in found.records] == ["failed", "finished"]
    assert "out of cheese" in (here / "out" / "runs" / "fails" / "given-s0" / "traceback.txt").read_text()


@pytest.mark.long
def test_a_task_that_cannot_begin_its_run_has_failed_by_its_own_fault(here, cluster):
    remote = by_ray.task(by_ray.Config())
    reference = remote.remote(json.dumps({}), str(here / "nowhere"), str(here / "log"))
    task = by_ray.Task(cluster, reference, here / "log")
    cluster.wait([reference])
    ending = task.ending()
    assert ending.error.startswith("its task failed (FileNotFoundError: ")
    assert (ending.recorded, ending.again) == (False, False)
    with pytest.raises(UserError, match=r"^launcher\.parameters: Use the 'num_cpus'"):
        by_ray.task(by_ray.Config(resources={"CPU": 1.0}))


@pytest.mark.long
def test_nothing_is_left_of_a_command_that_is_ended(here):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed here; the extra `ray` has it")
    (here / "tiny.yaml").write_text(yaml.safe_dump(config({}, methods=methods(slow="Slow"))))
    command = [sys.executable, "-m", "cl_toolkit", "compare", "tiny.yaml", "--out", "out"]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, cwd=here, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(here.glob("working-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
    begun = psutil.Process(process.pid).children(recursive=True)
    assert any("ray::" in child.name() for child in begun)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert psutil.wait_procs(begun, timeout=30)[1] == []
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    assert err.splitlines()[-1].startswith("stopped; ")
    assert "ray" not in err.lower()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"num_gpu": 1}, r"launcher\.parameters\.num_gpu: unknown key; did you mean 'num_gpus'\?"),
        ({"num_cpus": -1}, r"launcher\.parameters\.num_cpus: expected 0 or more, got -1"),
        ({"num_gpus": 1.5}, r"launcher\.parameters\.num_gpus: expected a part of one, or a whole number, got 1\.5"),
        ({"runtime_env": {"pip": []}}, r"launcher\.parameters\.runtime_env\.pip: unknown key"),
        (
            {"address": "ray://head:10001"},
            r"launcher\.parameters\.address: expected host:port .*, got 'ray://head:10001'",
        ),
    ],
)
def test_wrong_parameters_are_told_when_the_config_is_read(parameters, told):
    with pytest.raises(UserError, match=told):
        load_study(config(parameters))


def test_every_launcher_has_a_line_and_a_file():
    assert tuple(KINDS) == get_args(LauncherName)
    for name in KINDS:
        assert callable(kind_of(load_study(tiny_config(launcher={"name": name, "parameters": {}})).launcher).runner)


def test_without_ray_it_is_said_what_to_install(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"launcher\.name: ray: needs Ray, .*: pip install 'cl-toolkit\[ray\]'"):
        study.compare(load_study(config({})), here / "out")
    assert not (here / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "head"])
def test_a_cluster_that_does_not_answer_is_told(address):
    with pytest.raises(UserError, match=rf"expected host:port of a Ray cluster, nobody answers at {address}"):
        by_ray.refuse_silence(address, "launcher.parameters.address")


def test_an_address_of_the_environment_is_told_as_its_own(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS: expected host:port"), by_ray.connected(by_ray.Config()):
        pass


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"num_gpus": 1.0}, r"num_gpus: a run asks for 1, this machine has 0$"),
        ({"memory": 10**13}, r"memory: a run asks for 10,000,000,000,000, this machine has 1,000$"),
        ({"resources": {"tpu": 1.0}}, r"resources\.tpu: a run asks for 1, this machine has 0$"),
        ({"accelerator_type": "H100"}, r"accelerator_type: expected one of this machine's \(none\), got 'H100'$"),
    ],
)
def test_what_this_machine_never_has_is_not_waited_for(parameters, told):
    by_ray.refuse_too_much(by_ray.Config(), {"CPU": 2.0, "memory": 1000.0})
    with pytest.raises(UserError, match=rf"^launcher\.parameters\.{told}"):
        by_ray.refuse_too_much(by_ray.Config(**parameters), {"CPU": 2.0, "memory": 1000.0})
