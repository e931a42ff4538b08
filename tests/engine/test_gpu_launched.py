"""DeepSpeed and torchrun on a GPU with NCCL: the losses of a plain process at every ZeRO stage, and no warning."""

import socket
from functools import cache

import pytest
import torch
from launched import ran, said
from tiny import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.processes,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port"],
    "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--master_port"],
}
ADAPTER = {"r": 4, "between_tasks": "continue"}
CASES = {
    "sequential": {},
    "ewc": {"strategies": {"ewc": {"fisher_examples": 8}}},
    "replay": {"strategies": {"replay": {}}},
    "logit_swap": {"strategies": {"logit_swap": {}}, "model": {"adapter": ADAPTER}},
}


def losses(folder, name, command, config):
    """Of a run as a user starts it; what it wrote to stderr."""
    record = ran(folder, name, command, config)
    assert record["status"] == "finished"
    return [sum(row["terms"].values()) for row in record["losses"]], said(folder, name)[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Losses of a case in one process without DeepSpeed; each is run once."""

    def of(case):
        return losses(tmp_path_factory.mktemp("plain"), "plain", ["-m", "cl_toolkit"], config_of(case))[0]

    return cache(of)


def config_of(case, **engine):
    train = {"bf16": False, "logging_steps": 1, "learning_rate": 1e-3, "max_grad_norm": 0.0}
    return tiny_config(engine={"device": "cuda", **engine}, train=train, **CASES[case])


def launched(launcher, folder, case, deepspeed):
    module = ["-m" if launcher == "torchrun" else "--module", "cl_toolkit"]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    return losses(folder, launcher, [*LAUNCHERS[launcher], port, *module], config_of(case, deepspeed=deepspeed))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_launched_run_is_the_plain_one(stage, case, plain, tmp_path):
    found, err = launched("deepspeed", tmp_path, case, {"zero_optimization": {"stage": stage}})
    assert len(found) == 8
    assert found == pytest.approx(plain(case), abs=1e-4)
    assert [line for line in err.splitlines() if "arn" in line] == []


def test_torchrun_starts_it_too(plain, tmp_path):
    found, err = launched("torchrun", tmp_path, "sequential", {"zero_optimization": {"stage": 2}})
    assert found == pytest.approx(plain("sequential"), abs=1e-4)
    assert [line for line in err.splitlines() if "arn" in line] == []


def test_offloaded_weights_and_optimizer_change_no_loss(plain, tmp_path):
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    found, _ = launched("deepspeed", tmp_path, "sequential", {"zero_optimization": zero})
    assert found == pytest.approx(plain("sequential"), abs=1e-4)
