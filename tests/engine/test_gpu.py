"""What a GPU must not change, and what it brings. `pytest -m gpu` on a machine that has one."""

import pytest
import torch
from tiny import RFT, trajectory
from torch._dynamo.utils import counters

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
    "agem": {"strategies": {"agem": {"memory_batch_size": 4}}},
    "rft": {"objective": RFT},
}


@pytest.fixture
def skips():
    """What the compiler counts, anew: among it what it could not record as a CUDA graph."""
    torch.compiler.reset()
    counters.clear()
    return counters["inductor"]


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


CUT = [{"per_device_train_batch_size": 2}, {"packing": 128}]


@pytest.mark.parametrize(
    ("name", "train"),
    [*((name, {}) for name in METHODS), *((name, cut) for name in ("lwf", "agem", "rft") for cut in CUT)],
)
def test_cuda_graphs_change_no_loss(name, train, skips, tmp_path):
    """In one part and several, with a teacher's forward before a backward, with gradients of a memory, with rollouts."""
    close(followed(name, tmp_path / "a", compile="graphs", **train), followed(name, tmp_path / "b", **train), 1e-4)
    assert skips["cudagraph_skips"] == 0


def test_a_compiled_forward_in_a_cache_of_one_size_says_the_same(skips, tmp_path):
    settings = {"engine": {"device": DEVICE}, "train": {"learning_rate": 1e-3, "bf16": False}, "objective": RFT}
    mine = trajectory(tmp_path / "a", **settings, generation={"cache": "static"})
    plain = trajectory(tmp_path / "b", **settings)
    close(mine, plain, 1e-3)
    assert mine.record["matrix"] == plain.record["matrix"]
    assert skips["cudagraph_skips"] == 0


def test_bfloat16_is_the_default_and_the_record_says_so(tmp_path):
    record = followed("replay", tmp_path, bf16="auto").record
    assert record["scoring_dtype"] == record["identity"]["precision"] == "bfloat16"
