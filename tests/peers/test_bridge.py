"""Benchmarks of Avalanche as streams, and its plugins on the same benchmark as a control. Run with `make peers`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("avalanche", reason="Avalanche is not installed; `make peers` installs it beside the product")

from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import Naive

from cl_toolkit.check import check
from cl_toolkit.data.facts import Facts
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.registry import load_reference
from cl_toolkit.runs.run import execute
from cl_toolkit.study.cells import load_run

MADE = '''
import torch
from avalanche.benchmarks import tensors_benchmark


def make(tasks=2, size=120):
    """The class is the place of the largest of four numbers; each task has the classes of two places."""
    torch.manual_seed(0)
    train, test = [], []
    for task in range(tasks):
        for split, count in ((train, size), (test, 40)):
            y = torch.randint(2, (count,)) + 2 * task
            x = torch.rand(count, 4) * 0.5 + nn_one_hot(y)
            split.append((x, y))
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=[0] * tasks)


def nn_one_hot(y):
    return torch.nn.functional.one_hot(y % 4, 4).float()


def broken():
    return 1 / 0
'''


@pytest.fixture
def reference(tmp_path):
    (tmp_path / "made.py").write_text(MADE)
    return f"{tmp_path / 'made.py'}:make"


def config_of(reference, **changes):
    return load_run({
        "stream": {"name": "avalanche", "benchmark": reference, "valid_from_train": 20, **changes.pop("stream", {})},
        "model": {"name": "mlp", "input_size": 4, "num_classes": 4, "hidden_size": 16},
        "train": {"num_train_epochs": 6, "global_batch_size": 20, "learning_rate": 0.02},
        **changes,
    })  # fmt: skip


def test_an_experience_is_a_task(reference):
    first, second = build_stream(config_of(reference)).tasks
    assert (first.name, second.name) == ("experience_1", "experience_2")
    assert [len(split) for split in (first.train, first.valid, first.test)] == [100, 20, 40]
    x, y = (data for data in load_reference(reference, "here")().train_stream[1].dataset[3][:2])
    (example,) = (e for e in second.train if e.id.endswith("/3"))
    assert torch.equal(example.x, x)
    assert (example.y, example.target, example.choices) == (int(y), str(int(y)), ("2", "3"))
    assert second.train.facts.hash() == Facts.of(tuple(second.train)).hash()


def test_it_keeps_the_laws_of_streams(reference):
    results = check("avalanche", settings={"benchmark": reference})
    assert {r.law.number: r.seen for r in results if r.passed is False} == {}


@pytest.mark.filterwarnings("ignore:Call to deprecated function update")  # Avalanche's own call
def test_ours_and_a_plugin_of_theirs_on_one_benchmark(reference, tmp_path):
    def ours(name, **strategies):
        return execute(config_of(reference, strategies=strategies), tmp_path / name)["matrix"][2][0]

    def theirs(*plugins):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        benchmark = load_reference(reference, "here")()
        trainer = Naive(
            model=net,
            optimizer=torch.optim.Adam(net.parameters(), 0.02),
            train_mb_size=20,
            train_epochs=6,
            plugins=list(plugins),
        )
        for experience in benchmark.train_stream:
            trainer.train(experience)
        x, y = (torch.stack([torch.as_tensor(row[k]) for row in benchmark.test_stream[0].dataset]) for k in (0, 1))
        allowed = net(x)[:, :2].argmax(1)  # as ours: among the task's own classes
        return float((allowed == y).float().mean())

    found = {
        "ours": ours("plain"),
        "ours, replay": ours("replay", replay={"buffer_size": 40}),
        "theirs": theirs(),
        "theirs, replay": theirs(ReplayPlugin(mem_size=40)),
    }
    print(found)
    assert found["ours, replay"] >= 0.95
    assert found["theirs, replay"] >= 0.95


def test_what_cannot_be_is_said(reference):
    with pytest.raises(
        UserError, match=r"stream\.benchmark: avalanche\.benchmarks has no 'SplitMNST'; did you mean 'SplitMNIST'"
    ):
        build_stream(config_of("SplitMNST"))
    with pytest.raises(UserError, match=r"stream\.benchmark: .*broken: ZeroDivisionError: division by zero"):
        build_stream(config_of(reference.replace(":make", ":broken")))
    with pytest.raises(UserError, match=r"stream\.valid_from_train: 120, and experience_1 has 120 training examples"):
        build_stream(config_of(reference, stream={"valid_from_train": 120}))
