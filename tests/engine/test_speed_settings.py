"""What makes a step fast or small, under DeepSpeed in one process: the same losses as plain torch without it."""

from importlib.util import find_spec

import pytest
from tiny import trajectory

from cl_toolkit.errors import UserError
from cl_toolkit.models import logits

pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed here (it is for Linux)"),
    pytest.mark.filterwarnings("ignore"),  # inside of DeepSpeed, when it is imported and when it steps
]
METHOD = {"strategies": {"replay": {}, "lwf": {}}}
WAYS = {
    "packed": {"packing": 100, "per_device_train_batch_size": 1},
    "computed again": {"gradient_checkpointing": True, "per_device_train_batch_size": 2},
    "head in chunks": {"per_device_train_batch_size": 2},
}


def engine(stage):
    sharded = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}  # else so small a model is not sharded
    return {"name": "deepspeed", "deepspeed": {"zero_optimization": {"stage": stage, **sharded}}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trajectory(tmp_path_factory.mktemp("plain"), **METHOD, train={"learning_rate": 1e-3})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_it_follows_torch(way, stage, plain, tmp_path, monkeypatch):
    if way == "head in chunks":
        monkeypatch.setattr(logits, "CHUNK", 259 * 5)
    found = trajectory(tmp_path, **METHOD, engine=engine(stage), train={"learning_rate": 1e-3, **WAYS[way]})
    for mine, torch_s in zip(found.losses, plain.losses, strict=True):
        assert mine == pytest.approx(torch_s, abs=1e-5)


def test_compiled_blocks_are_refused_where_weights_come_and_go(tmp_path):
    with pytest.raises(UserError, match=r"train.compile: layers: ZeRO-3 gathers weights"):
        trajectory(tmp_path, engine=engine(3), train={"compile": "layers"})
