"""Distillation on the model's own rollouts: the student answers, and at each token a teacher says what it would have said.

    L = 1/N sum over N answer tokens y_t of D( p(. | c, x, y_<t) || q(. | x, y_<t) ),   y sampled from the student q

Who the teacher p is, what it sees besides the question x (the context c), and D are settings:

- SDFT (Shenfeld et al. 2026, arXiv 2601.19897): teacher ema, context demonstration. The paper prints the reverse KL; its
  results are said to be the forward one's. These are the defaults.
- GKD with lambda 1 (Agarwal et al. 2024, arXiv 2306.13649), or on-policy distillation: teacher a model, context none,
  divergence jsd or reverse. The model's own teachers (start, live, ema) want a context: without one they say what it says.
- SDPO (arXiv 2601.20802): teacher ema or live, context feedback, divergence reverse, num_generations 8. The teacher sees a
  rollout beside this one that was right; where there is none, how the student's own was scored.

Where we differ: whole distributions (SDFT's in TRL: the 100 likeliest tokens; SDPO's: the sampled one), the mean over all
answer tokens of the step (TRL: of each answer's mean), no dropout, rollouts alone (GKD mixes in the data's answers), no
importance weights. Prompts are TRL's for SDPO, and after the paper's for SDFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cl_toolkit.engine.access import eval_mode, evaluating, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.carried import carried, carry
from cl_toolkit.models.divergences import divergence
from cl_toolkit.models.logits import KL_TENSORS, by_rows, predicted, target_logits
from cl_toolkit.models.outside import Outside
from cl_toolkit.models.rollouts import sampled
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.objective import Objective
from cl_toolkit.ranges import above, at_least, refuse_idle
from cl_toolkit.strategy import Cost
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.sources import Source
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example

torch = LazyModule("torch")

OWN = ("start", "live", "ema")
DEMONSTRATION = "\n\nThis is an example for a response to the question:\n{}\n\nNow answer with a response of your own."
AGAIN = "\n\n\n\nCorrectly solve the original question.\n"
SOLUTION = "\nCorrect solution:\n\n{}" + AGAIN
ASKED, AT_ONCE = 32, 4
"""Examples on which a teacher is tried before a task, and how many of them at a time."""
FEEDBACK = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{}" + AGAIN


def shown(example: Example, words: str = DEMONSTRATION, answer: str | None = None) -> Example:
    """The example with an answer in its question, the right one by default."""
    return told(example, words.format(example.target if answer is None else answer))


def told(example: Example, text: str) -> Example:
    """The example with a text at the end of its last user turn."""
    turns = list(example.messages)
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    turns[last] = replace(turns[last], content=turns[last].content + text)
    return replace(example, messages=tuple(turns))


def mean_logp(model: nn.Module, task: TaskView, examples: Sequence[Example]) -> float:
    """The mean of log p over the target tokens of examples."""
    device = next(model.parameters()).device
    parts = [examples[i : i + AT_ONCE] for i in range(0, len(examples), AT_ONCE)]
    found = [predicted(model, task.codec.batch(part).to(device), logits=False).logp for part in parts]
    return float(torch.cat(found).mean())


class OnPolicy(Objective):
    """The divergence of a teacher's distributions and the model's own at each token of the model's rollouts: SDFT, GKD and
    SDPO by their settings.

    A teacher must be able to use what it is shown. One that finds the right answer less likely when it stands in the question
    (the first 32 examples of a task are tried) makes the model worse, and the record's notes say so.

    A teacher that is equal to the student gives no gradient at all. Each of the `global_batch_size` prompts gets
    `num_generations` rollouts. The teacher's prompt is the question, in whose last user turn the context follows.
    """

    paper = "Shenfeld et al. 2026, arXiv 2601.19897"
    gives = frozenset({"logits", "token_mean"})
    needs = frozenset({"logits", "generates"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """teacher: start (the model at the task's start), live (the model as it is), ema (at first the one at the task's start;
        before each step it moves by teacher_update_rate towards the model), or a model of the same vocabulary, by folder or
        Hugging Face id. context: what it sees besides the question: none, the demonstration (the target), or feedback.
        mixture: the teacher's share in the mixture of jsd. temperature: of rollouts and of both distributions."""

        teacher: str = "ema"
        teacher_update_rate: Annotated[float, above(0).up_to(1)] = 0.05
        context: Literal["none", "demonstration", "feedback"] = "demonstration"
        divergence: Literal["forward", "reverse", "jsd"] = "forward"
        mixture: Annotated[float, above(0).below(1)] = 0.5
        num_generations: Annotated[int, at_least(1)] = 1
        max_completion_length: Annotated[int, at_least(1)] = 32
        temperature: Annotated[float, above(0)] = 1.0

        def __post_init__(self) -> None:
            refuse_idle(self, self.divergence != "jsd", f"with divergence {self.divergence}", "mixture")
            refuse_idle(self, self.teacher != "ema", f"with teacher {self.teacher}", "teacher_update_rate")
            near = get_close_matches(self.teacher.lower(), OWN)
            if near and self.teacher not in OWN and not Path(self.teacher).is_dir():
                wanted = f"{', '.join(OWN)}, or a model by folder or id"
                raise ValueError(f"teacher: expected {wanted}, got {self.teacher!r}")

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.copies = self.config.num_generations
        self.teacher = Teacher()
        self.outside = None if self.config.teacher in OWN else Outside(self.config.teacher, "objective.teacher")
        self.trained: TaskView | None = None  # the task, seen as it is trained
        self.misled = ""  # what is wrong with the last task's teacher

    def cost(self) -> Cost:
        # sampling reads a row once, token by token, which takes about as long as three forwards
        return Cost(
            forwards=4.0, calls=self.config.max_completion_length, copies=float(self.config.teacher in ("start", "ema"))
        )

    @property
    def idle(self) -> str:
        if self.config.teacher not in OWN or self.config.context != "none":
            return ""
        return (
            "context: none: the model's own teacher, which sees no more than the model, says what the model says; "
            "expected demonstration or feedback, or another model as teacher"
        )

    @property
    def answer_limit(self) -> tuple[str, int] | None:
        return "max_completion_length", self.config.max_completion_length

    @property
    def extra_parameters(self) -> int:
        return self.teacher.parameters if self.outside is None else self.outside.parameters

    def sources(self) -> dict[str, Source]:
        return {} if self.outside is None else {"teacher": self.outside.source()}

    def before_task(self, model: nn.Module, task: TaskView) -> TaskView:
        if self.outside is not None:
            self.outside.load(model, task.codec)
        elif self.config.teacher != "live":
            self.teacher.take(model, moves=self.config.teacher == "ema")
        self.trained = task
        self.misled = "" if self.config.context == "none" else self.trial(model, task)
        return task

    def trial(self, model: nn.Module, task: TaskView) -> str:
        """What is to be said of a teacher to which the right answer is less likely when it is shown; "" of any other."""
        asked = task.examples[:ASKED]
        words = DEMONSTRATION if self.config.context == "demonstration" else SOLUTION
        with self.teaching(model) as teacher:
            alone, beside = (mean_logp(teacher, task, seen) for seen in (asked, [shown(e, words) for e in asked]))
        if not beside < alone:
            return ""
        return (
            f"{task.name}: the teacher finds the right answer less likely when it is shown it (log-probability of a token "
            f"{beside:.2f}, {alone:.2f} without; {len(asked)} examples): it cannot use what it sees, and teaches that"
        )

    def noticed(self) -> Sequence[str]:
        return [self.misled] if self.misled else []

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        if self.config.teacher == "ema" and task is self.trained:  # once for each step
            self.teacher.follow(model, self.config.teacher_update_rate)
        n, length = self.config.num_generations, self.config.max_completion_length
        rollouts = sampled(model, task, examples, n, length, self.config.temperature)
        answers = [answer for row in rollouts for answer in row]
        self.rollouts += len(answers)
        batch = task.codec.batch([e for e in examples for _ in range(n)], answers)
        if self.config.context != "none":
            seen = [self.seen(task, e, i, row) for e, row in zip(examples, rollouts, strict=True) for i in range(n)]
            carry(batch, "teacher", task.codec.batch(seen, answers))
        return batch

    def seen(self, task: TaskView, example: Example, i: int, rollouts: Sequence[Sequence[int]]) -> Example:
        """What the teacher of rollout i of an example sees."""
        if self.config.context == "demonstration":
            return shown(example)
        assert task.score is not None  # a run's tasks have a scorer
        said: list[Any] = [task.codec.said(answer) for answer in rollouts]
        scores = [task.score(example, text) for text in said]
        right = [text for j, text in enumerate(said) if scores[j] >= 1 and j != i]
        if right:
            return shown(example, SOLUTION, right[0])
        return example if scores[i] >= 1 else told(example, FEEDBACK.format(f"{said[i]}\n\nscore: {scores[i]:g}"))

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        asked = part if self.config.context == "none" else carried(part, "teacher")
        with self.teaching(model) as teacher:
            theirs = target_logits(teacher, asked)
        with eval_mode(unwrapped(model)):  # without dropout, as the rollouts were sampled
            own = target_logits(model, part)
        width = min(theirs.shape[1], own.shape[1])  # a model may have rows for tokens that its vocabulary lacks
        measure = partial(
            divergence,
            kind=self.config.divergence,
            mixture=self.config.mixture,
            temperature=self.config.temperature,
        )
        apart = by_rows(measure, KL_TENSORS * width, theirs[:, :width], own[:, :width])
        return Outputs(loss=part.asked.total(apart) / max(part.total["tokens"], 1), logits=own)

    @contextmanager
    def teaching(self, model: nn.Module) -> Iterator[nn.Module]:
        """The teacher, in eval mode, for forwards without gradient."""
        if self.outside is not None:
            with self.outside() as other:
                yield other
        elif self.config.teacher == "live":
            with evaluating(unwrapped(model), plain=False):
                yield model
        else:
            with self.teacher(model):
                yield model
