"""Blocks as CUDA graphs, as far as it can be seen without a GPU: what is asked of the compiler, that no gradient is written
over, and where a part begins. What they must not change is asked by `pytest -m gpu`."""

from dataclasses import replace

import pytest
import torch
from pieces import ask, task_view, tiny_model, train_settings
from tiny import tiny_run_config, trajectory

from cl_toolkit.engine import blocks
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.errors import UserError
from cl_toolkit.learn import learn
from cl_toolkit.strategies.gem import AGEM
from cl_toolkit.strategy import compose

EXAMPLES = [ask(f"question {i}", "an answer"[: 3 + i], str(i)) for i in range(6)]


class Recorded:
    """Stands for the compiler: each gradient of a block's weights lies where it lay the last time, as in a CUDA graph."""

    def __init__(self, monkeypatch):
        self.modes, self.marks, self.hooks = [], 0, []
        monkeypatch.setattr(torch.nn.Module, "compile", self.compile)
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", self.mark)

    def compile(self, mode=None):
        self.modes.append(mode)

    def mark(self):
        self.marks += 1

    def one_place(self, model):
        for weight in model.model.layers.parameters():
            place = torch.empty_like(weight)
            self.hooks.append(weight.register_hook(lambda grad, place=place: place.copy_(grad).detach()))


@pytest.fixture
def recorded(monkeypatch):
    return Recorded(monkeypatch)


@pytest.mark.parametrize(("how", "mode"), [("layers", None), ("graphs", "reduce-overhead")])
def test_the_mode_is_passed_to_each_block(how, mode, recorded):
    model = tiny_model()
    with blocks.compiled(model, how):
        assert recorded.modes == [mode] * len(model.model.layers)
        assert all(bool(w._backward_hooks) == (how == "graphs") for w in model.model.layers.parameters())
    assert not any(w._backward_hooks for w in model.parameters())


def losses(how, recorded, monkeypatch, strategy=None, size=2):
    """Of two tasks in parts of two rows, by an engine that believes its device to record graphs."""
    model, found = tiny_model(), []
    if how == "graphs":
        recorded.one_place(model)
    for index in range(2):
        view = task_view(EXAMPLES, index=index, batch_size=6, epochs=3)
        engine = TorchEngine(train_settings(per_device_train_batch_size=size, learning_rate=1e-2), torch.device("cpu"))
        engine.train = replace(engine.train, compile=how)
        model = learn(model, view, view.objective, strategy or compose(), engine, lambda s: found.append(s.losses))
    return found


def test_gradients_of_several_parts_are_added_up(recorded, monkeypatch):
    assert losses("graphs", recorded, monkeypatch) == losses("none", recorded, monkeypatch)
    assert recorded.marks == 2 * 3 * 3


def test_so_are_those_of_a_memory_in_parts_of_its_own(recorded, monkeypatch):
    agem = lambda: AGEM(AGEM.Config(memory_batch_size=4))  # noqa: E731
    assert losses("graphs", recorded, monkeypatch, agem()) == losses("none", recorded, monkeypatch, agem())
    assert recorded.marks == 2 * 3 * 3 + 3 * 2  # of the second task's steps, the memory in two parts


def test_what_is_not_recorded_marks_nothing(recorded, monkeypatch):
    losses("layers", recorded, monkeypatch)
    assert recorded.marks == 0


def test_without_a_gpu_it_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(
        UserError, match=r"^train\.compile: graphs: are CUDA graphs, and engine\.device is cpu; use layers$"
    ):
        trajectory(tmp_path, train={"compile": "graphs"})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"engine": {"name": "deepspeed"}}, "is for one process without DeepSpeed, which moves gradients; use layers"),
        ({"train": {"per_device_train_batch_size": "auto"}}, "auto has yet to find it; write a number"),
    ],
)
def test_what_cannot_be_recorded_is_refused(changes, why):
    changes = {**changes, "train": {"compile": "graphs", **changes.get("train", {})}}
    with pytest.raises(UserError, match=rf"train\.compile: .*{why}"):
        tiny_run_config(**changes)
