"""Agreement with Avalanche where both define the same thing: the same losses, step by step.

Both sides get the same data, initial weights and order of examples. Where their definitions differ, a named option makes
them agree, and a second test shows that without this option they do not. Run with `make peers`.

DER, DER++ and replay are not here. Avalanche's DER stores the logits after a task instead of during it, in a buffer balanced
by class, and takes both terms of DER++ on one batch of memory. Its replay has our rule, the mean over a batch of new data
and one of memory, but another draw of the memory; on the same batches nothing would be left to compare but `Naive`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("avalanche", reason="Avalanche is not installed; `make peers` installs it beside the product")

import avalanche.training.supervised as peers
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import SupervisedPlugin
from pieces import array_view, train

from cl_toolkit.benchmarks.digits import Digits
from cl_toolkit.models.arrays import MLP, ArrayCodec
from cl_toolkit.strategies.ewc import EWC
from cl_toolkit.strategies.gem import AGEM
from cl_toolkit.strategies.lwf import LwF
from cl_toolkit.strategy import compose
from cl_toolkit.task_view import TaskView

SIZE, EPOCHS, TASKS = 16, 2, 3
ALL = 10_000  # more than there are examples
CLOSE, FAR = 1e-5, 1e-4  # of `gap`
SGD = {"optim": "sgd", "learning_rate": 0.2, "weight_decay": 0.0}
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.01}
SETTINGS = [
    pytest.param("permuted", SGD, id="permuted-sgd"),
    pytest.param("permuted", ADAMW, id="permuted-adamw"),
    # at 0.2 training is unstable here, which magnifies the last bits, in which any two programs differ
    pytest.param("split", {**SGD, "learning_rate": 0.1}, id="split-sgd"),
]


class LogitsOnly(nn.Module):
    """A net as Avalanche calls it."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).logits


class Losses(SupervisedPlugin):
    """Keeps what `ours` gives."""

    def __init__(self):
        super().__init__()
        self.found = []

    def after_backward(self, strategy, **_):
        self.found.append((strategy.criterion().item(), strategy.loss.item()))


def stream(protocol: str) -> list[TaskView]:
    """Three tasks of the digits, some 200 examples each, so that the last batch of an epoch is a short one."""
    digits = Digits(Digits.Config(protocol=protocol))
    every = {"split": 1, "permuted": 6}[protocol]
    return [
        array_view(task.train[::every], index=i, batch_size=SIZE, epochs=EPOCHS)
        for i, task in enumerate(digits.tasks(digits.names()[:TASKS]))
    ]


def ours(protocol: str, strategy=None, optimizer=SGD) -> torch.Tensor:
    """(loss of the task, loss with all terms) at every step."""
    net, found = MLP().load(0), []
    settings = {**optimizer, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    for task in stream(protocol):
        train(
            net,
            task,
            strategy or compose(),
            lambda session: found.append((session.losses["sft"], sum(session.losses.values()))),
            **settings,
        )
    return torch.tensor(found)


def theirs(protocol: str, kind: str, optimizer=SGD, reset_optimizer_state=True, **options) -> torch.Tensor:
    """The same of an Avalanche strategy."""
    tasks, codec = stream(protocol), ArrayCodec()

    class InOurOrder(getattr(peers, kind)):
        def make_train_dataloader(self, **_):
            batches = map(codec.batch, tasks[self.experience.current_experience].batches())
            self.dataloader = [[b.inputs["x"], b.labels, torch.zeros_like(b.labels)] for b in batches]

    model, losses = LogitsOnly(MLP().load(0)), Losses()
    make = {"sgd": torch.optim.SGD, "adamw_torch": torch.optim.AdamW}[optimizer["optim"]]
    strategy = InOurOrder(
        model=model,
        optimizer=make(model.parameters(), lr=optimizer["learning_rate"], weight_decay=optimizer["weight_decay"]),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=SIZE,
        evaluator=None,
        plugins=[losses],
        **options,
    )
    whole = [codec.batch(task.examples) for task in tasks]
    tensors = [(batch.inputs["x"], batch.labels) for batch in whole]
    for experience in tensors_benchmark(tensors, tensors, task_labels=[0] * TASKS).train_stream:
        strategy.train(experience, reset_optimizer_state=reset_optimizer_state)
    return torch.tensor(losses.found)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference between two lists of losses, relative to the loss; below 0.1 relative to 0.1."""
    assert a.shape == b.shape
    assert len(a) > 75
    return float(((a - b).abs() / b.abs().clamp(min=0.1)).max())


# name -> (our strategy, our settings, Avalanche's strategy, its settings)
AS_AVALANCHE = {
    "ewc": (EWC, EWC.Config(weight=20.0, fisher="batched", fisher_examples=ALL), "EWC", {"ewc_lambda": 10.0}),
    "ewc_online": (
        EWC,
        EWC.Config(weight=40.0, mode="online", gamma=0.5, fisher="batched", fisher_examples=ALL),
        "EWC",
        {"ewc_lambda": 10.0, "mode": "online", "decay_factor": 0.5},
    ),
    "lwf": (LwF, LwF.Config(weight=1.0, temperature=2.0), "LwF", {"alpha": 1.0, "temperature": 2.0}),
    # all of the memory in every step: whole tasks are kept, and the batch of memory has room for them
    "agem": (AGEM, AGEM.Config(memory_batch_size=ALL), "AGEM", {"patterns_per_exp": ALL, "sample_size": ALL}),
}

# name -> (what of our settings is changed, why they no longer agree)
OTHERWISE = {
    "ewc": {
        "weight": (10.0, "our penalty has the factor 1/2, theirs has not"),
        "fisher": ("empirical", "theirs squares the gradient of a batch's mean loss"),
        "fisher_examples": (100, "theirs takes all examples"),
    },
    "ewc_online": {
        "weight": (20.0, "our gamma also stands before the running Fisher, theirs only inside it"),
        "mode": ("separate", "a term per task is another penalty from the third task on"),
    },
    "lwf": {"weight": (2.0, "our weight is their alpha"), "temperature": (1.0, "both have it")},
    "agem": {
        "memory_batch_size": (
            64,
            "a part of the memory is another reference gradient, and each library draws its own part",
        )
    },
}


@pytest.mark.parametrize(("protocol", "optimizer"), SETTINGS)
def test_sequential_training_is_naive(protocol, optimizer):
    assert gap(ours(protocol, optimizer=optimizer), theirs(protocol, "Naive", optimizer)) < CLOSE


def test_avalanche_keeps_the_optimizer_between_tasks_unless_told_not_to():
    kept = theirs("permuted", "Naive", ADAMW, reset_optimizer_state=False)
    assert gap(ours("permuted", optimizer=ADAMW), kept) > FAR


@pytest.mark.parametrize(("protocol", "optimizer"), SETTINGS)
@pytest.mark.parametrize("name", AS_AVALANCHE)
def test_the_losses_are_avalanches(name, protocol, optimizer):
    strategy, config, kind, options = AS_AVALANCHE[name]
    found = ours(protocol, strategy(config), optimizer)
    assert gap(found, theirs(protocol, kind, optimizer, **options)) < CLOSE
    assert gap(found, ours(protocol, optimizer=optimizer)) > FAR  # the method does something


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in OTHERWISE.items() for key in keys])
def test_the_named_option_is_the_reason(name, key):
    strategy, config, kind, options = AS_AVALANCHE[name]
    value, why = OTHERWISE[name][key]
    idle = {"gamma": EWC.Config.gamma} if value == "separate" else {}  # a term per task has no decay
    changed = strategy(replace(config, **{key: value, **idle}))
    assert gap(ours("permuted", changed), theirs("permuted", kind, **options)) > FAR, why
