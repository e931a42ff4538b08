"""DeepSpeed and torchrun on a GPU with NCCL: the losses of a plain process at every ZeRO stage, and no warning."""

import json
import os

import pytest
import torch
import yaml
from launched import ended, said, started
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
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    process = started(folder, name, [*command, "run", f"{name}.yaml", "--out", name])
    assert ended([process], 300) == [0], said(folder, name)[1][-2000:]
    record = json.loads((folder / name / "record.json").read_text())
    assert record["status"] == "finished"
    return [sum(row["terms"].values()) for row in record["losses"]], said(folder, name)[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launched_run_is_the_plain_one(launcher, stage, case, tmp_path):
    if launcher == "torchrun" and (stage, case) != (2, "sequential"):
        pytest.skip("torchrun differs from deepspeed in how a process is started alone")
    config = tiny_config(engine={"device": "cuda"}, train={"bf16": False, "logging_steps": 1}, **CASES[case])
    plain, _ = losses(tmp_path, "plain", ["-m", "cl_toolkit"], config)
    config["engine"]["deepspeed"] = {"zero_optimization": {"stage": stage}}
    module = ["-m" if launcher == "torchrun" else "--module", "cl_toolkit"]
    port = str(20_000 + (os.getpid() + 7 * stage) % 10_000)
    found, err = losses(tmp_path, launcher, [*LAUNCHERS[launcher], port, *module], config)
    assert len(found) == 8
    assert found == pytest.approx(plain, abs=1e-4)
    assert "barrier()" not in err
    assert "destroy_process_group" not in err


def test_offloaded_weights_and_optimizer_change_no_loss(tmp_path):
    config = tiny_config(engine={"device": "cuda"}, train={"bf16": False, "logging_steps": 1, "max_grad_norm": 0.0})
    plain, _ = losses(tmp_path, "plain", ["-m", "cl_toolkit"], config)
    on_host = {"device": "cpu"}
    config["engine"]["deepspeed"] = {
        "zero_optimization": {"stage": 3, "offload_optimizer": on_host, "offload_param": on_host}
    }
    found, _ = losses(tmp_path, "offloaded", [*LAUNCHERS["deepspeed"], "31077", "--module", "cl_toolkit"], config)
    assert found == pytest.approx(plain, abs=1e-4)
