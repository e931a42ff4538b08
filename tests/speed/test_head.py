"""SFT at a vocabulary of real size against a bare loop, which projects all positions: time, and the most memory at once.

A Llama of 1 M parameters and its embeddings of 32,000 words, rows that are half prompt. CPU time, interleaved, one thread.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from pieces import task_view, train
from timing import PROMPT, ROWS, Rows, examples_of, llama, peak_bytes, random_rows
from torch import nn

from cl_toolkit.models.logits import says_logits
from cl_toolkit.types import IGNORE

pytestmark = pytest.mark.speed
WORDS, STEPS, REPEATS = 32_000, 2, 5


def ours(model, rows):
    """The same steps by the page, as a run without a strategy that needs logits."""
    train(model, task_view(examples_of(rows), codec=Rows(), batch_size=ROWS, wants_logits=False), max_grad_norm=0.0)


def bare(model, rows):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    for ids in rows.split(ROWS):
        labels = ids.clone()
        labels[:, :PROMPT] = IGNORE
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE
        ).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_targets_alone_take_half_of_the_time_and_of_the_memory(measured):
    torch.set_num_threads(1)
    model, rows = llama(WORDS), random_rows(STEPS * ROWS)
    model.says_logits = says_logits(model)
    assert model.says_logits
    times = {ours: [], bare: []}
    for repeat in range(REPEATS + 1):
        for way in times:
            started = time.process_time()
            way(model, rows)
            if repeat:
                times[way].append((time.process_time() - started) / STEPS)
    mine, theirs = (statistics.median(times[way]) for way in (ours, bare))
    held = [peak_bytes(lambda way=way: way(model, rows)) for way in (ours, bare)]
    measured(
        f"SFT step at V = {WORDS:,}, half prompt: time", mine / theirs, "bare loop over all positions", 0.55, REPEATS
    )
    measured("the same: most memory at once", held[0] / held[1], "bare loop over all positions", 0.55, 1)
