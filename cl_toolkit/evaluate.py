"""Score a model on tasks: answers by greedy generation, the likeliest of the allowed answers, or the likelihood of the target.
Leaves no trace in the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from cl_toolkit.engine.processes import Processes
from cl_toolkit.generate import evaluating, generate, in_lockstep, token_logprobs, unwrapped
from cl_toolkit.registry import SCORERS
from cl_toolkit.scorers import Scorer, as_scorer, score
from cl_toolkit.types import IGNORE, Example, Task, spread

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.codec import Codec


@dataclass(frozen=True)
class Scored:
    """One example, answered and scored. chance: the score of pure guessing, 1 / number of allowed answers where the answer
    was chosen, None where it is not known. cut: a generated answer that did not end within `max_new_tokens`. weight: what the
    scorer's aggregate weighs the score by."""

    task: str
    example: Example
    answer: str
    score: float
    chance: float | None = 0.0
    cut: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Reply:
    """What a model said to one example, or how likely the target was to it (log-probability, over `weight` tokens)."""

    text: str = ""
    chance: float | None = 0.0
    cut: bool = False
    likelihood: float | None = None
    weight: float = 1.0


class Evaluator:
    """Scores tasks on one split.

    Examples of all tasks are sorted by length and batched together; with several processes each takes every n-th batch. A
    model with `classes` answers with the class of its largest output, whatever the scorer; a language model generates, or
    chooses the likeliest answer. `choices`: what every example is chosen from instead of its own choices, in a
    class-incremental stream; None: its own.
    """

    choices: tuple[str, ...] | None = None

    def __init__(
        self, codec: Codec, *, split: str, batch_size: int, max_new_tokens: int, processes: Processes | None = None
    ):
        self.codec, self.split = codec, split
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.processes = processes or Processes()

    def examples(self, task: Task, limit: int | None = None) -> Sequence[Example]:
        """The examples that a task is scored on; a limit takes some of the whole split."""
        return spread(getattr(task, self.split), limit)

    def __call__(self, model: nn.Module, tasks: Sequence[Task], limit: int | None = None) -> dict[str, list[Scored]]:
        """Per task the scored examples, in the split's order. limit: at most so many per task, spread over it."""
        work = [(task, i, e) for task in tasks for i, e in enumerate(self.examples(task, limit))]
        work.sort(key=lambda item: (self.codec.length(item[2]), item[0].name, item[1]))
        scorers = {task.name: scorer_of(task) for task in tasks}
        found: list[tuple[str, int, Reply]] = []
        ways = {task.name: self._way(model, scorers[task.name]) for task in tasks}
        for answer in dict.fromkeys(ways.values()):
            rows = [w for w in work if ways[w[0].name] == answer]
            batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            for batch in self._mine(model, batches):
                answers = answer(model, [e for _, _, e in batch])
                found += [(task.name, i, a) for (task, i, _), a in zip(batch, answers, strict=True)]
        if not in_lockstep(model):
            found = self.processes.gather(found)
        replies = {(name, i): reply for name, i, reply in found}
        result: dict[str, list[Scored]] = {}
        for task in tasks:
            result[task.name] = []
            for i, e in enumerate(self.examples(task, limit)):
                reply = replies[task.name, i]
                read = reply.text if reply.likelihood is None else reply.likelihood
                value = score(task.name, task.scorer, scorers[task.name], e, read)
                scored = Scored(task.name, e, reply.text, value, reply.chance, reply.cut, reply.weight)
                result[task.name].append(scored)
        return result

    def _way(self, model: nn.Module, scorer: Scorer) -> Callable[[nn.Module, Sequence[Example]], list[Reply]]:
        """How a model answers for a scorer."""
        if hasattr(unwrapped(model), "classes"):
            return self._classify
        choose = self._choose_per_byte if scorer.per_byte else self._choose
        return {"answer": self._generate, "choices": choose, "likelihood": self._weigh}[scorer.reads]

    def _mine(self, model: nn.Module, batches: list) -> list:
        return batches if in_lockstep(model) else batches[self.processes.rank :: self.processes.world]

    def _generate(self, model: nn.Module, examples: Sequence[Example]) -> list[Reply]:
        prompts = [self.codec.ids(e)[0] for e in examples]
        answers = generate(model, prompts, self.codec, self.max_new_tokens)
        return [Reply(self.codec.said(a), cut=not self.codec.ended(a)) for a in answers]

    def _allowed(self, example: Example) -> Sequence[str] | None:
        return self.choices if self.choices is not None else example.choices

    def _choose(self, model: nn.Module, examples: Sequence[Example]) -> list[Reply]:
        scores = self.choice_scores(model, examples)
        allowed = [self._allowed(e) for e in examples]
        return [Reply(a[int(s.argmax())], chance=1 / len(a)) for a, s in zip(allowed, scores, strict=True)]

    def _choose_per_byte(self, model: nn.Module, examples: Sequence[Example]) -> list[Reply]:
        allowed = [self._allowed(e) for e in examples]
        lengths = [torch.tensor([max(1, len(c.encode())) for c in a]) for a in allowed]
        scores = [s / n for s, n in zip(self.choice_scores(model, examples), lengths, strict=True)]
        return [Reply(a[int(s.argmax())], chance=1 / len(a)) for a, s in zip(allowed, scores, strict=True)]

    def _weigh(self, model: nn.Module, examples: Sequence[Example]) -> list[Reply]:
        module = unwrapped(model)
        batch = self.codec.batch(examples).to(next(module.parameters()).device)
        with evaluating(module):
            found = token_logprobs(module(**batch.inputs).logits, batch.labels).sum(1).tolist()
        counts = (batch.labels != IGNORE).sum(1).tolist()
        return [Reply(chance=None, likelihood=value, weight=n) for value, n in zip(found, counts, strict=True)]

    def _classify(self, model: nn.Module, examples: Sequence[Example]) -> list[Reply]:
        module = unwrapped(model)
        batch = self.codec.prompts(examples).to(next(module.parameters()).device)
        with evaluating(module):
            logits = module(**batch.inputs).logits
        classes, answers = unwrapped(model).classes, []
        for example, row in zip(examples, logits, strict=True):
            allowed = self._allowed(example)
            known = [i for i, label in enumerate(classes) if allowed is None or label in allowed]
            # a class that was never seen has no output
            text = classes[known[int(row[known].argmax())]] if known else ""
            answers.append(Reply(text, chance=1 / max(1, len(allowed or classes))))
        return answers

    def choice_scores(self, model: nn.Module, examples: Sequence[Example]) -> list[torch.Tensor]:
        """Per example log p(choice | prompt), summed over the choice's tokens as they are trained, end mark included."""
        module = unwrapped(model)
        device = next(module.parameters()).device
        rows = [(e, choice) for e in examples for choice in self._allowed(e)]
        scores = []
        with evaluating(module):
            for start in range(0, len(rows), self.batch_size):
                some = rows[start : start + self.batch_size]
                batch = self.codec.batch([e for e, _ in some], [self.codec.answer(e, c) for e, c in some]).to(device)
                logits = module(**batch.inputs).logits
                scores.append(token_logprobs(logits, batch.labels).sum(1).cpu())
        return list(torch.cat(scores).split([len(self._allowed(e)) for e in examples]))


def scorer_of(task: Task) -> Scorer:
    """The scorer behind a task's name of it."""
    return as_scorer(SCORERS.get(task.scorer, f"task {task.name}: scorer"))


def score_of(task: Task, scored: Sequence[Scored]) -> float:
    """What the scores of a task's examples come to."""
    return scorer_of(task).aggregate([s.score for s in scored], [s.weight for s in scored])


def chance_of(scored: Sequence[Scored]) -> float | None:
    """The score of pure guessing among the allowed answers, mean over a task's examples; 0 for free answers, None where it is
    not known."""
    levels = [s.chance for s in scored]
    return None if None in levels else fmean(levels)


def majority(examples: Sequence[Example]) -> float:
    """The share of the most frequent target: what always saying the same would reach by exact match."""
    return max(Counter(e.target for e in examples).values()) / len(examples)
