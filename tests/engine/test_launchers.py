"""The same config under every launcher: one result, nothing said but by process 0, no warning; what fails is told once."""

import json
import os
import re
import time
from functools import cache

import pytest
import yaml
from launched import SPOKEN, as_srun, ended, said, started
from longer import long_but
from tiny import tiny_config

from cl_toolkit.engine import launch
from cl_toolkit.errors import UserError

pytest.importorskip("deepspeed", reason="deepspeed is not installed here (it is for Linux)")

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2"]  # the script `deepspeed` is that module
PROGRESS = re.compile(r"\[ *\d+ s\] run/given-s0: [\w%]+(, about \d+ s left)?")
BOOM = """
import os
from cl_toolkit.strategy import Strategy


class Boom(Strategy):
    def before_task(self, model, task):
        if os.environ["RANK"] == "1":
            raise RuntimeError("it went wrong here")
        return model
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(train={"logging_steps": 1})))
    (folder / "boom.py").write_text(BOOM)
    return folder


@pytest.fixture(scope="module")
def codes(folder):
    """The exit codes of the same run under a launcher, by its name; each is started once, when it is asked for."""
    run, port = ["cl_toolkit", "run", "tiny.yaml", "--out"], 15_000 + os.getpid() % 10_000
    ways = {
        "python": lambda: [started(folder, "python", ["-m", *run, "python"])],
        "torchrun": lambda: [started(folder, "torchrun", [*TORCHRUN, "--master-port", str(port), "-m", *run, "torchrun"])],
        "deepspeed": lambda: [
            started(folder, "deepspeed", [*DEEPSPEED, "--master_port", str(port + 1), "--module", *run, "deepspeed"],
                    DS_ACCELERATOR="cpu")
        ],
        "srun": lambda: as_srun(folder, ["-m", *run, "srun"]),
    }  # fmt: skip
    return cache(lambda name: ended(ways[name](), 300))


@pytest.mark.processes
@pytest.mark.parametrize("name", long_but({"torchrun", "srun"}, ["torchrun", "deepspeed", "srun"]))
def test_each_launcher_gives_the_run_of_one_process(codes, folder, name):
    assert set(codes(name)) == set(codes("python")) == {0}
    one, found = (json.loads((folder / of / "record.json").read_text()) for of in ("python", name))
    assert found["status"] == "finished"
    losses = [[sum(row["terms"].values()) for row in record["losses"]] for record in (one, found)]
    assert len(losses[0]) == one["cost"]["steps"] > 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert found["matrix"] == one["matrix"]
    assert found["cost"]["examples"] == one["cost"]["examples"]


@pytest.mark.processes
@pytest.mark.parametrize(
    "name", long_but({"python", "torchrun", "srun-0"}, ["python", "torchrun", "deepspeed", "srun-0"])
)
def test_only_process_0_speaks_and_nobody_warns(codes, folder, name):
    assert set(codes(name.removesuffix("-0"))) == {0}
    out, err = said(folder, name)
    assert out.count("record: ") == 1
    assert err.count("finished") == 1
    lines = [line for line in err.splitlines() if line and not PROGRESS.fullmatch(line)]
    assert lines == []
    if name == "srun-0":
        assert said(folder, "srun-1") == ("", "")


@pytest.mark.processes
def test_an_error_of_one_process_is_told_once_and_ends_all(folder):
    """Process 0 waits for the other one meanwhile, where it hears no signal."""
    before = time.monotonic()
    run = ["-m", "cl_toolkit", "run", "tiny.yaml", "strategies={boom.py:Boom: {}}", "--out", "boom"]
    port = str(25_000 + os.getpid() % 5_000)
    process = started(folder, "boom", [*TORCHRUN, "--master-port", port, *run])
    assert process.wait(timeout=120) == 1  # torchrun's own for any
    assert time.monotonic() - before < 60
    _, err = said(folder, "boom")
    assert err.count("it went wrong here") == 1
    assert "error: strategies.boom.py:Boom: before_task: Boom: RuntimeError: it went wrong here (" in err
    assert "(exitcode: 2) local_rank: 1" in err
    assert "stopped; " not in err
    assert "SIGKILL" not in err


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["compare", "tiny.yaml"], "error: a comparison is made by one process; under a launcher use `run CONFIG --method"),
        pytest.param(
            ["run", "tiny.yaml", "train.max_step=1"], "error: command line: train.max_step: unknown key; did you mean",
            marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_what_all_find_wrong_is_told_once(folder, arguments, wanted):
    first, second = as_srun(folder, ["-m", "cl_toolkit", *arguments])
    assert first.wait(timeout=60) == 2
    second.terminate()  # as `srun --kill-on-bad-exit` does
    assert second.wait(timeout=60) in (0, 143)
    assert said(folder, "srun-0")[1].startswith(wanted)
    assert said(folder, "srun-1") == ("", "")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node01", "node01"),
        ("node[01-03,07]", "node01"),
        ("node[07,01-03],login", "node07"),
        ("login,node[01-03]", "login"),
        ("rack[2-3]n[10-12,14]-ib", "rack2n10-ib"),
        ("a-b-1,a-b-2", "a-b-1"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert launch.first_host(nodes) == first


SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[3-4]",
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ("5", "1", "8", "gpu3", "26043")),
        ({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}, ("5", "1", "8", "10.0.0.1", "7")),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ("0", None, "2", None, None)),  # torchrun inside a step
        ({"SLURM_STEP_NUM_TASKS": "1"}, (None, None, None, None, None)),
        ({"SLURM_STEP_NUM_TASKS": None}, (None, None, None, None, None)),  # a batch script without srun
    ],
)
def test_a_step_of_slurm(monkeypatch, changes, wanted):
    mine = dict.fromkeys(SPOKEN) | SRUN | changes
    monkeypatch.setattr(os, "environ", {k: v for k, v in mine.items() if v is not None})
    launch.join()
    assert tuple(os.environ.get(name) for name in SPOKEN) == (wanted[0], wanted[1], wanted[2], wanted[3], wanted[4])
    assert launch.world() == int(wanted[2] or 1)
    assert launch.rank() == int(wanted[0] or 0)


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "environ", {"LOCAL_RANK": "3"})
    assert launch.place(8) == 3
    with pytest.raises(UserError, match=r"this machine has 2 GPUs and process 3 of it finds none left; start as many"):
        launch.place(2)
    os.environ["SLURM_LOCALID"] = "3"  # `srun --gpus-per-task=1` shows each task its own
    assert launch.place(1) == 0
    assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.processes
def test_a_job_that_is_asked_to_end_says_once_that_it_goes_on(folder):
    """Slurm's SIGTERM before the time is over, to all processes."""
    run = ["-m", "cl_toolkit", "run", "tiny.yaml", "train.max_steps=1000000", "--out", "stopped"]
    first, second = as_srun(folder, run)
    deadline, log = time.monotonic() + 120, folder / "stopped" / "events.jsonl"
    while time.monotonic() < deadline and not (log.exists() and '"event": "step"' in log.read_text()):
        time.sleep(0.2)
    for process in (first, second):
        process.terminate()
    assert ended([first, second], 60) == [143, 143]
    assert said(folder, "srun-0")[1].count("stopped; finished tasks and runs are kept, the same command goes on") <= 1
    assert said(folder, "srun-1") == ("", "")
    assert "rror" not in said(folder, "srun-0")[1]
