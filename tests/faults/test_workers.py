"""Several processes: guests are imported by each, a lost one is told of, nobody outlives the command, one folder is of one
process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from longer import long_but
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit import Strategy, UserError
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.runs.lock import locked
from cl_toolkit.study import compare as study
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.workers import gpus

pytestmark = pytest.mark.processes

GUESTS = '''
import os, time
from dataclasses import dataclass
from pathlib import Path
from cl_toolkit import Strategy

class Pull(Strategy):
    """With a Config of its own, which lives in no module that another process knows."""
    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float = 0.1
    def penalty(self, weights):
        return {self.name: self.config.weight * sum((w**2).sum() for w in weights.values())}

class DiesOnce(Strategy):
    def before_task(self, model, task):
        mark = Path("died")
        if task.index == 1 and not mark.exists():
            mark.write_text("yes")
            os._exit(3)
        return model

class Dies(Strategy):
    def before_task(self, model, task):
        import sys
        print("out of cheese", file=sys.stderr, flush=True)
        os._exit(7)

class Slow(Strategy):
    def before_task(self, model, task):
        Path(f"working-{os.getpid()}").write_text("")
        time.sleep(60)
        return model
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guests.py").write_text(GUESTS)
    return tmp_path


def write(folder, **changes):
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(tiny_config(**{"train": {"max_steps": 1}, "methods": {"sequential": {}}, **changes}))
    )
    return path


def compare(folder, methods, jobs=2):
    told, said = {}, []
    found, failures = study.compare(
        load_study(tiny_config(train={"max_steps": 1}, methods=methods)),
        folder / "out",
        jobs=jobs,
        update=lambda run, f, what: told.setdefault(run, []).append(what),
        say=said.append,
    )
    return found.records, failures, told, said


def started(folder, *extra):
    command = [sys.executable, "-m", "cl_toolkit", "compare", str(write(folder)), "--out", "out", *extra]
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """One comparison by two processes, of methods that die once, die always, and live: (records by method, failures, what was
    told of each run, what was said)."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "guests.py").write_text(GUESTS)
    methods = {
        "once": {"strategies": ["guests.py:DiesOnce"]},
        "dies": {"strategies": ["guests.py:Dies"]},
        "sequential": {},
        "mine": {"strategies": ["guests.py:Pull"]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        records, *rest = compare(folder, methods)
    return {r["method"]: r for r in records}, *rest


def test_a_class_with_settings_of_its_own_works_in_other_processes(told):
    records = told[0]
    assert records["mine"]["config"]["strategies"]["guests.py:Pull"] == {}
    assert set(records["mine"]["losses"][0]["terms"]) == {"sft", "Pull"}


def test_a_lost_worker_is_said_and_its_run_tried_again_alone(told):
    records, _, told, said = told
    assert {name: r["status"] for name, r in records.items() if name != "dies"} == dict.fromkeys(
        ("once", "sequential", "mine"), "finished"
    )
    assert any(
        re.search(r"once/given-s0: .*ended with exit code 3; it is tried again at the end, alone", text)
        for text in said
    )
    assert "failed" not in told["sequential/given-s0"] + told["mine/given-s0"]


def test_a_worker_that_dies_again_has_its_last_words_in_the_error(told):
    records, failures, *_ = told
    assert [(f.run, f.error) for f in failures] == [
        ("dies/given-s0", "its process ended with exit code 7; its last words: out of cheese")
    ]
    assert records["dies"]["status"] == "failed"


@pytest.mark.parametrize("number", long_but({signal.SIGKILL}, [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
def test_nobody_outlives_the_command_and_nothing_new_is_begun(here, number):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    process = started(here, "--add", "a=guests.py:Slow", "--add", "b=guests.py:Slow", "--add", "c=guests.py:Slow",
                      "--jobs", "2")  # fmt: skip
    wait_for(lambda: len(list(here.glob("working-*"))) >= 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    begun = {p.name for p in here.glob("working-*")}
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}.get(number, 128 + number)
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert {p.name for p in here.glob("working-*")} == begun
    assert ("the same command goes on" in err) == (number != signal.SIGKILL)


def test_one_folder_is_of_one_process(here):
    process = started(here, "--add", "a=guests.py:Slow", "--methods", "a")
    try:
        wait_for(lambda: list(here.glob("working-*")))
        with pytest.raises(UserError, match=r"out: another process is at work here \(process \d+ on "):
            compare(here, {"sequential": {}}, jobs=1)
        with pytest.raises(UserError, match=r"given-s0: another process is at work here"):
            cl.run(str(here / "tiny.yaml"), out=here / "out/runs/a/given-s0")
    finally:
        process.kill()
        process.communicate()
    with locked(here / "out"):  # it died with its owner
        pass


def test_what_only_this_process_knows_is_refused(here):
    class Nothing(Strategy):
        pass

    try:
        cl.register("only-here", Nothing)
        with pytest.raises(UserError, match=r"'only_here' was registered in this process alone"):
            compare(here, {"mine": {"strategies": ["only_here"]}})
        with pytest.raises(UserError, match="works with jobs = 1 only"):
            compare(here, {"mine": {"strategies": {"mine": Nothing()}}})
    finally:
        del STRATEGIES._sources["only_here"]
    assert not Path("out").exists()


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus("auto") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert gpus("cuda") == ["3", "5"]
    assert gpus("cpu") == gpus("cuda:1") == []


def test_litter_of_a_killed_process_is_cleared(here):
    cl.run(tiny_config(train={"max_steps": 1}), out="r")
    place = Path("r")
    record = (place / "record.json").read_bytes()
    (place / "record.json").unlink()
    litter = [place / "record.json.123.tmp", place / "answers" / "row-1.jsonl.9.tmp"]
    for path in litter:
        path.write_text("half")
    half = place / "checkpoints" / "task-1"
    half.mkdir()
    (half / "model.safetensors").write_text("half deleted")
    again = cl.run(tiny_config(train={"max_steps": 1}), out="r")
    assert not any(path.exists() for path in (*litter, half))
    assert again["matrix"] == yaml.safe_load(record)["matrix"]
