"""What the page costs over a bare PyTorch loop. Ratios of medians from one run, interleaved, one thread.

Run with `make speed`; the suite leaves these out, since a busy machine would make them fail for no reason of ours.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from timing import PROMPT, ROWS, Rows, examples_of, llama, random_rows
from torch import nn

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.engine.sections import Train
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.learn import learn
from cl_toolkit.objective import Objective
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategy import compose
from cl_toolkit.task_view import TaskView
from cl_toolkit.types import IGNORE, Batch, Example, Outputs

pytestmark = pytest.mark.speed
REPEATS = 9


def engine() -> TorchEngine:
    plain = {**base_layer()["train"], "max_grad_norm": 1.0}
    return TorchEngine(typed(Train, plain, "train", "test"), torch.device("cpu"))


def ratio(ours, bare) -> float:
    """Median of ours over median of bare, taken in turns after one warm-up each."""
    times = {ours: [], bare: []}
    for repeat in range(REPEATS + 1):
        for run in (ours, bare):
            started = time.process_time()
            run()
            if repeat:
                times[run].append(time.process_time() - started)
    medians = [statistics.median(times[run]) for run in (ours, bare)]
    return medians[0] / medians[1]


def test_a_step_of_a_tiny_llama_costs_at_most_a_fiftieth_more(measured):
    torch.set_num_threads(1)
    steps = 6
    rows = random_rows(steps * ROWS)
    examples = examples_of(rows)
    ours_model, bare_model = llama(), llama()
    assert 0.9e6 < sum(p.numel() for p in ours_model.parameters()) < 1.2e6

    def ours():
        objective = SFT()
        task = TaskView(name="t", index=0, examples=examples, objective=objective, codec=Rows(), batch_size=ROWS)
        learn(ours_model, task, objective, compose(), engine(), lambda session: None)

    def bare():
        optimizer = torch.optim.AdamW(bare_model.parameters(), lr=3e-4, weight_decay=0.0)
        order = torch.randperm(len(rows))
        for step in range(steps):
            ids = rows[order[step * ROWS : (step + 1) * ROWS]]
            mask = torch.ones_like(ids)
            labels = ids.clone()
            labels[:, :PROMPT] = IGNORE
            logits = bare_model(input_ids=ids, attention_mask=mask).logits
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE
            )
            loss.backward()
            nn.utils.clip_grad_norm_(bare_model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    measured("step of a Llama of 1 M weights, 16 x 128", ratio(ours, bare), "bare loop", 1.02, REPEATS)


class Classify(Objective):
    """Cross-entropy on arrays."""

    def encode(self, model, task, examples):
        inputs = {"input": torch.stack([e.x for e in examples])}
        return Batch(inputs, torch.tensor([e.y for e in examples]), tuple(examples))

    def forward(self, model, part):
        logits = model(**part.inputs)
        loss = nn.functional.cross_entropy(logits, part.labels, reduction="sum")
        return Outputs(loss / part.total["sequences"], logits)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def test_a_step_of_a_small_mlp_costs_at_most_half_more(measured):
    torch.set_num_threads(1)
    steps, size = 200, 32
    x = torch.randn(steps * size, 64, generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, (steps * size,), generator=torch.Generator().manual_seed(1))
    examples = [Example(id=str(i), x=x[i], y=int(y[i])) for i in range(len(x))]
    ours_model, bare_model = mlp(), mlp()

    def ours():
        objective = Classify()
        task = TaskView(name="t", index=0, examples=examples, objective=objective, batch_size=size)
        learn(ours_model, task, objective, compose(), engine(), lambda session: None)

    def bare():
        optimizer = torch.optim.AdamW(bare_model.parameters(), lr=3e-4, weight_decay=0.0)
        order = torch.randperm(len(x))
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            nn.functional.cross_entropy(bare_model(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(bare_model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    measured("step of a small MLP, batch 32", ratio(ours, bare), "bare loop", 1.5, REPEATS)
