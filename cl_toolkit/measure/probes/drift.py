"""Drift: how far the model has moved from the start model, in its own words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Annotated, Any, ClassVar

from cl_toolkit.measure.probe import Moment, Probe
from cl_toolkit.models.requests import Logprobs, Reply, Request, Sample
from cl_toolkit.ranges import SEED, at_least


class Drift(Probe):
    """KL(start model || model now) per answer, in nats, on a fixed set: answers that the start model gave to test examples
    of all tasks, and in what they are likely now.

    The estimate is the mean over n answers y of sum_t (r_t - 1 - log r_t), r_t = p_now(y_t | y_<t) / p_start(y_t | y_<t): each
    term is unbiased for the KL of its token, since y_t is drawn from the start model, and never negative (k3 of Schulman,
    "Approximating KL divergence", 2020). Rows, one after each stage: step, trained, row, kl, standard_error (None for one
    answer), n, and direction, which is "start || now". That such a KL goes with forgetting: Shenfeld et al. 2025, arXiv
    2509.04259, who measure it on the new task's prompts.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """examples: of each task. max_new_tokens: of an answer. seed: of the answers."""

        examples: Annotated[int, at_least(1)] = 8
        max_new_tokens: Annotated[int, at_least(1)] = 32
        seed: Annotated[int, SEED] = 0

    needs: ClassVar[frozenset[str]] = frozenset({"outputs"})

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.start: dict[str, tuple[list[int], list[float]]] = {}
        """Example -> the tokens of the start model's answer, and their log-probabilities."""

    def due(self, moment: Moment) -> bool:
        return moment.kind != "step"

    def ask(self, moment: Moment) -> list[Request]:
        config = self.config
        exams = [moment.exams[name].part(config.examples) for name in sorted(moment.exams)]
        examples = [example for exam in exams for example in exam.examples]
        if moment.kind == "start":
            return [Sample(example, config.max_new_tokens, config.seed) for example in examples]
        return [Logprobs(e, tuple(self.start[e.id][0])) for e in examples if e.id in self.start]

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
        requests = self.ask(moment)
        if moment.kind == "start":
            found = zip(requests, replies, strict=True)
            self.start = {q.example.id: (list(r.tokens), list(r.logprobs)) for q, r in found}
            return
        moved = [kl(self.start[q.example.id][1], r.logprobs) for q, r in zip(requests, replies, strict=True)]
        yield {
            "step": moment.step,
            "trained": moment.task,
            "row": moment.row,
            "kl": fmean(moved),
            "standard_error": stdev(moved) / math.sqrt(len(moved)) if len(moved) > 1 else None,
            "n": len(moved),
            "direction": "start || now",
        }

    def state(self) -> dict[str, Any]:
        return {"start": {name: [tokens, values] for name, (tokens, values) in self.start.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.start = {name: (tokens, values) for name, (tokens, values) in state["start"].items()}


def kl(start: Sequence[float], now: Sequence[float]) -> float:
    """The estimate from one answer: log-probabilities of its tokens by the start model, which said it, and now."""
    return sum(math.expm1(b - a) - (b - a) for a, b in zip(start, now, strict=True))
