"""What a GPU must not change, and what it brings. `pytest -m gpu` on a machine that has one."""

import pytest
import torch
from tiny import RFT, trajectory

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # compilers and kernels warn of what they choose
]
METHODS = {
    "sequential": {},
    "replay": {"strategies": {"replay": {}}},
    "ewc": {"strategies": {"ewc": {"fisher_examples": 8}}},
    "lwf": {"strategies": {"lwf": {}}},
    "derpp": {"strategies": {"derpp": {"memory_batch_size": 4}}},
    "rft": {"objective": RFT},
}


def followed(name, folder, device=DEVICE, **train):
    settings = {"learning_rate": 1e-3, "bf16": False, **train}
    return trajectory(folder, **METHODS[name], engine={"device": device}, train=settings)


def close(mine, other, tolerance):
    for a, b in zip(mine.losses, other.losses, strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_fp32_on_the_device_follows_the_cpu(name, tmp_path):
    close(followed(name, tmp_path / "there"), followed(name, tmp_path / "here", "cpu"), 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_run_twice_is_bit_equal(name, tmp_path):
    assert followed(name, tmp_path / "a") == followed(name, tmp_path / "b")


@pytest.mark.parametrize("train", [{"packing": 128}, {"per_device_train_batch_size": 1}, {"compile": "layers"},
                                   {"gradient_checkpointing": True}])  # fmt: skip
def test_settings_of_speed_change_no_loss(train, tmp_path):
    close(followed("replay", tmp_path / "a", **train), followed("replay", tmp_path / "b"), 1e-4)


def test_bfloat16_is_the_default_and_the_record_says_so(tmp_path):
    record = followed("replay", tmp_path, bf16="auto").record
    assert record["scoring_dtype"] == record["identity"]["precision"] == "bfloat16"
