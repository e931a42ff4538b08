"""Small nets beside Avalanche and a bare loop: permuted digits, 5 tasks x 5 epochs, an MLP of 64 - 256 - 256 - 10 by SGD.

Ours is a whole run, by the clocks of its own record: training, and five rows of five tasks as they are asked and scored;
without the row before training, without curves and with one entry of losses a task, since the others log nothing either.
They get tensors that are ready, and evaluate as often. CPU time, one thread, medians. `make speed-peers` installs Avalanche
apart.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cl_toolkit.benchmarks.digits import Digits
from cl_toolkit.models.arrays import MLP
from cl_toolkit.runs.events import Event, Scored
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

pytestmark = [
    pytest.mark.speed,
    pytest.mark.filterwarnings("ignore"),
]  # what Avalanche and what it imports say is not ours
REPEATS, EPOCHS, SIZE, RATE, AT_ONCE = 5, 5, 32, 0.05, 128
NET = MLP(hidden_size=256)


class Spent(NamedTuple):
    """CPU seconds of training and of evaluation, and the mean accuracy at the end."""

    training: float
    evaluation: float
    accuracy: float


def medians(arms: Mapping[str, Callable[[], Spent]]) -> dict[str, Spent]:
    """What arms spent, in turns, the first round dropped."""
    rounds = [{name: arm() for name, arm in arms.items()} for _ in range(REPEATS + 1)][1:]
    return {name: Spent(*map(statistics.median, zip(*(r[name] for r in rounds), strict=True))) for name in arms}


def tensors() -> dict[str, list[tuple[Tensor, Tensor]]]:
    """split -> (x, y) of each task."""
    digits = Digits(Digits.Config(protocol="permuted"))
    tasks = digits.tasks(digits.names())
    return {
        split: [
            (torch.stack([e.x for e in part]), torch.tensor([e.y for e in part]))
            for part in (getattr(t, split) for t in tasks)
        ]
        for split in ("train", "test")
    }


def by_turns(train: list[Callable[[], Any]], evaluate: Callable[[], float]) -> Spent:
    """Task after task, evaluated after each."""
    training, evaluation = 0.0, 0.0
    for learn in train:
        started = time.process_time()
        learn()
        learned = time.process_time()
        accuracy = evaluate()
        training, evaluation = training + learned - started, evaluation + time.process_time() - learned
    return Spent(training, evaluation, accuracy)


def ours(strategies: Mapping[str, Any]) -> Spent:
    """A run, by its own clocks."""
    config = {
        "stream": {"name": "digits", "protocol": "permuted"},
        "model": {"name": "mlp", "hidden_size": NET.hidden_size},
        "strategies": dict(strategies),
        "train": {"num_train_epochs": EPOCHS, "learning_rate": RATE, "optim": "sgd", "max_grad_norm": 0.0,
                  "logging_steps": 10_000},
        "evaluate": {"forgetting_curve": {"schedule": "off"}, "batch_size": AT_ONCE},
    }  # fmt: skip
    before: list[float] = []

    def scored(event: Event) -> None:
        if isinstance(event, Scored) and event.row == 0:
            before.append(run.record["cost"]["compute_seconds"]["evaluate"])

    with tempfile.TemporaryDirectory() as folder:
        run = Run(load_run(config), Path(folder), scored)
        record = run.execute()
    seconds = record["cost"]["compute_seconds"]
    return Spent(seconds["train"], seconds["evaluate"] - before[0], record["metrics"]["acc"])


def bare(data: Mapping[str, list[tuple[Tensor, Tensor]]]) -> Spent:
    """As few lines as it takes."""
    net = NET.load(0)

    def train(x: Tensor, y: Tensor) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(SIZE):
                nn.functional.cross_entropy(net(x[rows]).logits, y[rows]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate() -> float:
        net.eval()
        right = [
            sum(
                int((net(a).logits.argmax(1) == b).sum())
                for a, b in zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True)
            )
            / len(x)
            for x, y in data["test"]
        ]
        net.train()
        return statistics.fmean(right)

    return by_turns([lambda x=x, y=y: train(x, y) for x, y in data["train"]], evaluate)


class LogitsOnly(nn.Module):
    """A net as Avalanche calls it."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).logits


def theirs(kind: str, data: Mapping[str, list[tuple[Tensor, Tensor]]], **options: Any) -> Spent:
    """Avalanche's strategy of that name, as its own examples use it, without loggers."""
    import avalanche.training.supervised as peers
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    net = LogitsOnly(NET.load(0))
    strategy = getattr(peers, kind)(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=RATE),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=SIZE,
        train_epochs=EPOCHS,
        eval_mb_size=AT_ONCE,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
        **options,
    )
    stream = tensors_benchmark(data["train"], data["test"], task_labels=[0] * len(data["train"]))

    def evaluate() -> float:
        found = strategy.eval(stream.test_stream)
        return statistics.fmean(value for name, value in found.items() if name.startswith("Top1_Acc_Exp"))

    return by_turns([lambda e=e: strategy.train(e) for e in stream.train_stream], evaluate)


PAIRS = {"sequential": "Naive", "replay": "Replay", "ewc": "EWC"}
"""Our method -> theirs."""


@pytest.fixture(scope="module")
def spent() -> dict[str, Spent]:
    """What each arm spent, in one run of all."""
    pytest.importorskip("avalanche", reason="Avalanche is not installed here: make speed-peers")
    torch.set_num_threads(1)
    data = tensors()
    # EWC's terms are those of theirs (tests/peers), on all examples of a task
    ewc = {"weight": 20.0, "fisher": "batched", "fisher_examples": 10_000}
    return medians(
        {
            "bare": lambda: bare(data),
            "sequential": lambda: ours({}),
            "Naive": lambda: theirs("Naive", data),
            "replay": lambda: ours({"replay": {"replay_fraction": 0.5, "buffer_size": 500}}),
            "Replay": lambda: theirs("Replay", data, mem_size=500),
            "ewc": lambda: ours({"ewc": ewc}),
            "EWC": lambda: theirs("EWC", data, ewc_lambda=10.0),
        }
    )


@pytest.mark.parametrize(("name", "bound"), [("sequential", 1.35), ("Naive", None)])
def test_training(measured, spent, name, bound):
    what = f"MLP on digits, {'Avalanche' if name == 'Naive' else 'a run'}: accuracy {spent[name].accuracy:.2f}"
    ratio = spent[name].training / spent["bare"].training
    measured(what, ratio, f"bare loop: accuracy {spent['bare'].accuracy:.2f}", bound, REPEATS)


@pytest.mark.parametrize("name", PAIRS)
def test_methods(measured, spent, name):
    peer = PAIRS[name]
    what = f"MLP on digits, {name}: accuracy {spent[name].accuracy:.2f}"
    ratio = spent[name].training / spent[peer].training
    measured(what, ratio, f"Avalanche's {peer}: accuracy {spent[peer].accuracy:.2f}", 1.0, REPEATS)


@pytest.mark.parametrize(("name", "bound"), [("sequential", 2.0), ("Naive", None)])
def test_evaluation(measured, spent, name, bound):
    what = f"MLP on digits, evaluation{' by Avalanche' if name == 'Naive' else ''}"
    measured(what, spent[name].evaluation / spent["bare"].evaluation, "bare loop", bound, REPEATS)
