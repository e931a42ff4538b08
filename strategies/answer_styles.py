"""Answer style diversification: some of a task's questions ask for other styles of answer.

Chen et al. 2025 (SEFE), arXiv 2505.02486. A model that has only ever answered in one format loses the others, and then looks
as if it had lost the knowledge. Five styles: yes/no, multiple choice, short answer, brief explanation, detailed
explanation. A task keeps its own style for most of its data; `share` of it is spread evenly over the other four, each with
a format prompt in the question. The authors have a model write many of these; here all of them come from our own rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import SHARE
from cl_toolkit.strategy import Strategy, Tags
from cl_toolkit.types import Batches, Example, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")

STYLES = ("yes_no", "multiple_choice", "short", "brief", "detailed")
LETTERS = "ABCD"
PROMPTS = {
    "yes_no": "Is the answer {shown}? Answer yes or no.",
    "multiple_choice": "{options}\nAnswer with the letter of the right choice.",
    "brief": "Answer in one short sentence.",
    "detailed": "Repeat the question, then answer it in a full sentence.",
}
BRIEF = "The answer is {target}."
DETAILED = "The question was: {question} The answer to it is {target}."


def own_style(example: Example) -> str:
    """The style that an example already has: told from its choices, else from the answer's length in words."""
    if example.choices:
        answers = {choice.strip().lower() for choice in example.choices}
        return "yes_no" if answers <= {"yes", "no"} else "multiple_choice"
    if example.target.strip().lower() in ("yes", "no"):
        return "yes_no"
    words = len(example.target.split())
    return "short" if words <= 6 else "brief" if words <= 30 else "detailed"


def restyle(example: Example, style: str, wrong: list[str], draw: Callable[[int], int]) -> Example:
    """The example in another style. wrong: three other answers (fewer where the task has fewer); draw(n): a random whole
    number below n."""
    target = example.target
    choices: tuple[str, ...] | None
    if style == "short":
        return example
    if style == "yes_no":
        true = not wrong or draw(2) == 0
        shown, answer = (target if true else wrong[draw(len(wrong))]), "yes" if true else "no"
        choices, prompt = ("yes", "no"), PROMPTS[style].format(shown=shown)
    elif style == "multiple_choice":
        options = list(wrong)
        options.insert(draw(len(wrong) + 1), target)
        answer, choices = LETTERS[options.index(target)], tuple(LETTERS[: len(options)])
        prompt = PROMPTS[style].format(options="\n".join(f"{a}. {o}" for a, o in zip(LETTERS, options, strict=False)))
    else:
        template = BRIEF if style == "brief" else DETAILED
        answer, choices = template.format(target=target, question=example.question), None
        prompt = PROMPTS[style]
    last = max(i for i, m in enumerate(example.messages) if m.role == "user")
    asked = replace(example.messages[last], content=f"{example.messages[last].content}\n{prompt}")
    messages: tuple[Message, ...] = (*example.messages[:last], asked, *example.messages[last + 1 :])
    return replace(example, messages=messages, target=answer, choices=choices, extra={**example.extra, "style": style})


class AnswerStyles(Strategy):
    """Rewrite a share of the task's examples, before training, in the styles that are not the task's own.

    Which examples and which styles is drawn once per task. An example keeps its id, so that nothing is added to the data.
    Distractors are the example's other choices (the answers, not their letters), else other answers of the task. Rehearsed
    examples are left as they are.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """share: of a task's examples that are rewritten, in equal parts for the other styles, in [0, 1]."""

        share: Annotated[float, SHARE] = 0.2

    tags = Tags(
        paper="Chen et al. 2025 (SEFE), arXiv 2505.02486",
        off={"share": 0.0},
        inputs=("conversations",),
        # rollouts are judged by the task's scorer, which knows only the task's own style
        needs=frozenset({"true_targets"}),
        exceptions={1: "the first task's examples are rewritten too"},
    )

    def batches(self, model: nn.Module, task: TaskView, batches: Batches) -> Batches:
        styled = self.rewrite(task)
        if not styled:
            return batches

        def get(index: int) -> list[Example]:
            return [styled.get(e.id, e) if e.source == "task" else e for e in batches[index]]

        return Batches(len(batches), get)

    def rewrite(self, task: TaskView) -> dict[str, Example]:
        """Example id -> rewritten example."""
        # plain text and arrays have no question that a format prompt could be added to
        able = [e for e in task.examples if any(m.role == "user" for m in e.messages)]
        count = round(self.config.share * len(able))
        if not count:
            return {}
        generator = task.generator(self.name)

        def draw(n: int) -> int:
            return int(torch.randint(n, (1,), generator=generator))

        answers = sorted({e.target for e in task.examples})
        places = {answer: i for i, answer in enumerate(answers)}
        styled = {}
        for number, i in enumerate(torch.randperm(len(able), generator=generator)[:count].tolist()):
            example = able[i]
            own = own_style(example)
            others = [style for style in STYLES if style != own]
            if own in ("brief", "detailed"):  # no rule makes a long answer short
                others = ["yes_no", "multiple_choice"]
            style = others[number % len(others)]
            choices = [choice for choice in example.choices or () if choice != example.target]
            size = len(choices) if example.choices else len(answers) - 1
            order = torch.randperm(size, generator=generator)[:3].tolist()
            # without a list of all other answers for each example, which would take the square of their number
            wrong = [choices[j] if choices else answers[j + (j >= places[example.target])] for j in order]
            changed = restyle(example, style, wrong, draw)
            if style == "short":  # an answer that was one of several choices, asked for without them
                changed = replace(example, choices=None, extra={**example.extra, "style": style})
            styled[example.id] = changed
        return styled
