"""Law 13 for the methods that touch rows and logits: how rows are cut, grouped, packed, padded, chunked, compiled or computed
again changes no loss beyond the rounding of fp32, over two tasks."""

import os

import pytest
import torch
from tiny import RFT, trajectory

from cl_toolkit.check import runs
from cl_toolkit.engine import session
from cl_toolkit.models import logits

ADAPTED = {"adapter": {"r": 2, "lora_alpha": 4, "between_tasks": "merge"}}
METHODS = {
    "sft": {},
    "lm": {"stream": {"name": f"{runs.__name__}:EasyDocuments"}, "objective": {"name": "lm", "block_size": 48}},
    "replay": {"strategies": {"replay": {}}},
    "ewc": {"strategies": {"ewc": {"fisher_examples": 8}}},
    "reg_lora": {"strategies": {"reg_lora": {}}, "model": ADAPTED},
    "logit_swap": {"strategies": {"logit_swap": {}}},
    "lwf": {"strategies": {"lwf": {}}},
    "derpp": {"strategies": {"derpp": {"memory_batch_size": 4}}},
    "agem": {"strategies": {"agem": {"memory_batch_size": 4}}},
    "rft": {"objective": {**RFT, "num_iterations": 2}},
    "dft": {"objective": {"name": "dft"}},
    "eaft": {"objective": {"name": "eaft"}},
    "asft": {"objective": {"name": "asft", "weight": 10.0}},
}


def followed(name, folder, **train):
    changes = METHODS[name]
    # small steps: what rounding moves must not decide what is sampled
    return trajectory(folder, **changes, train={"learning_rate": 1e-3, **train})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    found = {}

    def of(name):
        if name not in found:
            found[name] = followed(name, tmp_path_factory.mktemp(name))
        return found[name]

    return of


def close(mine, other):
    assert len(mine.losses) == len(other.losses) >= 8
    for a, b in zip(mine.losses, other.losses, strict=True):
        assert a == pytest.approx(b, abs=1e-5, rel=1e-5)


@pytest.fixture
def seen(monkeypatch):
    """The shapes of the rows that go through the model, and how many examples they hold."""
    found, cut = [], session.cut

    def watched(*given):
        parts = cut(*given)
        found.extend((tuple(part.labels.shape), len(part.examples)) for part in parts)
        return parts

    monkeypatch.setattr(session, "cut", watched)
    return found


# that parts, packing and recomputation change no loss is asked of each method by laws 9 and 13; here, that they happen


@pytest.mark.parametrize("name", ["sft", "lm", "derpp", "rft"])
def test_packed_and_cut(name, plain, tmp_path, seen):
    whole, _ = plain(name), seen.clear()
    close(followed(name, tmp_path, packing=100, per_device_train_batch_size=1), whole)
    assert all(shape[0] == 1 and shape[1] >= 100 for shape, _ in seen)
    assert any(examples > 1 for _, examples in seen)


@pytest.mark.parametrize("name", METHODS)
def test_padded_to_a_few_widths(name, plain, tmp_path, monkeypatch, seen):
    monkeypatch.setitem(session.WIDTHS, "cpu", 16)
    close(followed(name, tmp_path, per_device_train_batch_size=3), plain(name))
    assert {shape[1] % 16 for shape, _ in seen} == {0}


@pytest.mark.parametrize("name", METHODS)
def test_the_head_in_chunks_of_rows(name, plain, tmp_path, monkeypatch):
    whole = plain(name)
    monkeypatch.setattr(logits, "CHUNK", 259 * 5)
    close(followed(name, tmp_path), whole)


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ, reason="torch's compiler builds for this processor, not for that one"
)
@pytest.mark.filterwarnings("ignore")  # the compiler looks at tensors in ways of which torch warns
@pytest.mark.parametrize("name", ["replay", pytest.param("rft", marks=pytest.mark.grid)])
def test_compiled(name, plain, tmp_path):
    """To fp32's rounding as well, since what is fused is added up in another order."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    mine = followed(name, tmp_path, compile="layers")
    assert counters["stats"]["unique_graphs"] > 0
    close(mine, plain(name))
    assert not any(getattr(module, "_compiled_call_impl", None) for module in mine.run.model.modules())
