"""What a step costs with each strategy, against sequential training with the same adapter life cycle.

A Llama of 1 M parameters with an adapter of r = 8, in its second task, so that there is a past. Two trainings take turns
step by step, on one thread; a ratio is the median over pairs of neighbouring steps, in CPU time, since other programs
disturb wall time more. What happens at the end of a task, such as a Fisher, is printed apart. Run with `make speed`.
"""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from pieces import task_view, train
from timing import ROWS, TOKENS, Rows, examples_of, llama, peak_bytes, random_rows

from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.der import DER
from cl_toolkit.strategies.ewc import EWC
from cl_toolkit.strategies.gem import AGEM
from cl_toolkit.strategies.logit_swap import LogitSwap
from cl_toolkit.strategies.lwf import LwF
from cl_toolkit.strategies.o_lora import OLoRA
from cl_toolkit.strategies.reg_lora import RegLoRA
from cl_toolkit.strategies.replay import Replay
from cl_toolkit.strategies.si import SI
from cl_toolkit.strategy import Strategy, compose

pytestmark = pytest.mark.speed
PAIRS = 24
FISHER = 16  # examples

# name -> (strategy, life cycle, most that a step may cost; None: only printed)
METHODS = {
    "reg_lora": (lambda: RegLoRA(), "merge", 1.15),
    "ewc": (lambda: EWC(EWC.Config(fisher_examples=FISHER)), "continue", 1.15),
    "logit_swap": (lambda: LogitSwap(), "continue", 1.50),
    "agem": (lambda: AGEM(AGEM.Config(memory_batch_size=ROWS)), "continue", 2.2),
    "replay": (lambda: Replay(Replay.Config(replay_fraction=0.5)), "continue", 2 * 1.05),
    "lwf": (lambda: LwF(), "merge", None),
    "lwf, teacher copied": (lambda: LwF(), "continue", None),
    "si": (lambda: SI(), "continue", None),
    "der": (lambda: DER(DER.Config(memory_batch_size=ROWS)), "continue", None),
    "o_lora": (lambda: OLoRA(), "stack", None),
}


@dataclass
class Start:
    """A model and a strategy after their first task."""

    model: torch.nn.Module
    strategy: Strategy
    adapter: Adapter

    @staticmethod
    def of(strategy: Strategy, between_tasks: str, vocab_size: int = 259) -> Start:
        adapter = Adapter(r=8, between_tasks=between_tasks)
        model = adapters.begin_task(llama(vocab_size), adapter, 0, 0)
        model = train(model, view(0, 2), strategy)
        return Start(adapters.end_task(model, adapter), strategy, adapter)

    def second_task(self, steps: int, watch) -> None:
        """Train the second task; the start stays as it is."""
        model, strategy = deepcopy((self.model, self.strategy))
        train(adapters.begin_task(model, self.adapter, 1, 0), view(1, steps), strategy, watch)


def view(index: int, steps: int):
    examples = examples_of(random_rows(steps * ROWS, index))
    return task_view(examples, index=index, codec=Rows(), batch_size=ROWS)


class Turns:
    """CPU seconds of each step of two trainings that take turns, and of what comes after the last."""

    def __init__(self, one: Start, other: Start):
        self.turn = [threading.Semaphore(1), threading.Semaphore(0)]
        self.steps: tuple[list[float], list[float]] = ([], [])
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(self.run, k, start) for k, start in enumerate((one, other))]
        self.ends = [end.result() for end in ends]

    def run(self, k: int, start: Start) -> float:
        torch.set_num_threads(1)
        self.turn[k].acquire()
        since = time.thread_time()

        def watch(session):
            nonlocal since
            self.steps[k].append(time.thread_time() - since)
            self.turn[1 - k].release()
            self.turn[k].acquire()
            since = time.thread_time()

        try:
            start.second_task(PAIRS + 1, watch)
            return time.thread_time() - since
        finally:
            self.turn[1 - k].release()


@pytest.mark.parametrize("name", METHODS)
def test_a_step(name, measured):
    make, between_tasks, most = METHODS[name]
    turns = Turns(Start.of(make(), between_tasks), Start.of(compose(), between_tasks))
    pairs = list(zip(*turns.steps, strict=True))[1:]  # the first step also makes the optimizer
    ratios = [ours / plain for ours, plain in pairs]
    step = statistics.median(plain for _, plain in pairs)
    low, ratio, high = statistics.quantiles(ratios, n=4)
    print(f"\nplain {step * 1e3:.0f} ms, half of the ratios in [{low:.3f}, {high:.3f}]; "
          f"the end of the task takes {turns.ends[0] / step:.2f} steps")  # fmt: skip
    measured(f"step with {name}, adapter {between_tasks}", ratio, "sequential training", most, PAIRS)


@pytest.mark.parametrize("vocab_size", [259, 8192])
def test_logit_swap_holds_little_beyond_the_teachers_logits(vocab_size, measured):
    teacher = ROWS * TOKENS * vocab_size * 4
    plainly, swapping = (Start.of(strategy, "continue", vocab_size) for strategy in (compose(), LogitSwap()))
    plain = peak_bytes(lambda: plainly.second_task(3, lambda session: None))
    ours = peak_bytes(lambda: swapping.second_task(3, lambda session: None))
    what = f"memory of logit_swap beyond the teacher's logits, V = {vocab_size}"
    measured(what, (ours - teacher) / plain, "sequential training", 1.15, 1)
