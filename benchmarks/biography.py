"""`biography`: facts about invented people, a task for each group of people. Ours, after the biographies of Allen-Zhu & Li 2024
(2309.14316) and their use for continual learning by Zheng et al. 2025 (Spurious Forgetting).

Every person has six attributes. Questions (`gives: conversations`): each fact is asked in some wordings in training, in another
for validation and in a third in the test; which are held out goes round from person to person. So every wording is known from
other people, and what is scored is the fact and not the sentence. Texts (`gives: documents`): biographies in these wordings.
Nobody's name comes twice, and nothing can be known from elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cl_toolkit.data.facts import SPLITS
from cl_toolkit.ranges import SEED, at_least
from cl_toolkit.types import Example, Message, Task

BEGIN, MIDDLE, END = "B Br C D F G H J K L M N P R S T V W", "a e i o u", "l n r s th m nd rk"
MONTHS = "January February March April May June July August September October November December"
SUBJECTS = (
    "Algebra Astronomy Botany Chemistry Drawing Ecology Finance Geology History Journalism Law Linguistics Logic Medicine "
    "Music Nursing Optics Pedagogy Philosophy Physics Poetry Statistics Surveying Theology Zoology"
)

QUESTIONS: dict[str, tuple[str, ...]] = {
    "birthday": (
        "When was {name} born?", "What is {name}'s birthday?", "On which day was {name} born?", "{name}'s date of birth?",
        "Tell me the birth date of {name}.",
    ),
    "city": (
        "Where was {name} born?", "In which city was {name} born?", "What is {name}'s birthplace?", "{name}'s place of birth?",
        "Name the city that {name} was born in.",
    ),
    "school": (
        "Where did {name} study?", "Which university did {name} go to?", "What was {name}'s university?",
        "{name}'s place of study?", "Name the university that {name} attended.",
    ),
    "subject": (
        "What did {name} study?", "What was {name}'s subject?", "Which subject did {name} take?", "{name}'s field of study?",
        "Name the subject that {name} studied.",
    ),
    "employer": (
        "Who employs {name}?", "Which company does {name} work for?", "What is {name}'s employer?", "{name}'s company?",
        "Name the company that {name} works for.",
    ),
    "town": (
        "Where does {name} work?", "In which town does {name} work?", "What is {name}'s place of work?", "{name}'s work town?",
        "Name the town that {name} works in.",
    ),
}  # fmt: skip
"""Attribute -> wordings of the question."""
SENTENCES: dict[str, tuple[str, ...]] = {
    "birthday": (
        "{name} was born on {value}.", "The birthday of {name} is {value}.", "On {value} {name} came into the world.",
        "{name}, born {value}.", "{value} was the day of birth of {name}.",
    ),
    "city": (
        "{name} was born in {value}.", "The birthplace of {name} is {value}.", "{value} is where {name} was born.",
        "{name} comes from {value}.", "{value} is the home town of {name}.",
    ),
    "school": (
        "{name} went to {value}.", "The university of {name} was {value}.", "{value} is where {name} studied.",
        "{name} was a student at {value}.", "{value} taught {name}.",
    ),
    "subject": (
        "{name} studied {value}.", "The subject of {name} was {value}.", "{value} is what {name} studied.",
        "{name} took a degree in {value}.", "{value} was chosen by {name}.",
    ),
    "employer": (
        "{name} works for {value}.", "The employer of {name} is {value}.", "{value} employs {name}.",
        "{name} is employed by {value}.", "{value} pays {name}.",
    ),
    "town": (
        "{name} works in {value}.", "The work of {name} is in {value}.", "{value} is the town in which {name} works.",
        "{name} goes to work in {value}.", "{value} is where one finds {name} at work.",
    ),
}  # fmt: skip
"""Attribute -> wordings of a sentence."""


@dataclass(frozen=True)
class Person:
    """A name, and attribute -> value."""

    name: str
    facts: Mapping[str, str]


def words(count: int, draw: random.Random, taken: set[str], syllables: int = 2) -> list[str]:
    """Words that mean nothing, each another one."""
    begin, middle, end = BEGIN.split(), MIDDLE.split(), END.split()
    found: list[str] = []
    while len(found) < count:
        first, *more = (draw.choice(begin) + draw.choice(middle) for _ in range(syllables))
        word = first + "".join(more).lower() + draw.choice(end)
        if word not in taken:
            taken.add(word)
            found.append(word)
    return found


class Biography:
    """Facts about invented people: what is learned of the first group while the next ones are learned."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """groups: tasks. people: of each task. wordings: in which a fact is trained. values: different ones of each attribute
        but the birthday. gives: questions and answers, or texts. seed: of the data itself, not of a run."""

        groups: Annotated[int, at_least(1).up_to(1000)] = 5
        people: Annotated[int, at_least(1).up_to(10_000)] = 20
        wordings: Annotated[int, at_least(1).up_to(3)] = 2
        values: Annotated[int, at_least(2).up_to(1000)] = 20
        gives: Literal["conversations", "documents"] = "conversations"
        seed: Annotated[int, SEED] = 0

        def __post_init__(self) -> None:
            needed, there = (
                self.groups * self.people + 3 * self.values,
                50_000,
            )  # of 64,800 words: drawn until they differ
            if needed > there:
                at_most = (there - 3 * self.values) // self.groups
                raise ValueError(
                    f"people: expected at most {at_most} in each of {self.groups} groups, got {self.people}"
                )

    def __init__(self, config: Config):
        self.config, self.inputs = config, config.gives

    def names(self) -> list[str]:
        return [f"people_{i + 1}" for i in range(self.config.groups)]

    def version(self, names: Sequence[str]) -> str:
        """It depends on its settings alone."""
        return ""

    def tasks(self, names: Sequence[str], prompt: object = None) -> list[Task]:
        people = self._people()
        return [self._task(name, people[name]) for name in names]

    def _people(self) -> dict[str, list[Person]]:
        """Group -> its people; all of them are drawn, so that a group is the same whichever others are asked for."""
        config, draw, taken = self.config, random.Random(f"{self.config.seed}/biography"), set[str]()
        values = {
            "city": words(config.values, draw, taken),
            "school": [f"University of {word}" for word in words(config.values, draw, taken)],
            "subject": SUBJECTS.split(),
            "employer": [f"{word} Ltd" for word in words(config.values, draw, taken)],
            "town": words(config.values, draw, taken),
        }
        number = config.groups * config.people
        full = zip(words(number, draw, taken), words(number, draw, taken, 3), strict=True)
        people = [Person(" ".join(pair), _facts(values, draw)) for pair in full]
        size = config.people
        return {name: people[i * size : (i + 1) * size] for i, name in enumerate(self.names())}

    def _task(self, name: str, people: Sequence[Person]) -> Task:
        documents = self.inputs == "documents"
        make = self._texts if documents else self._questions
        splits = {split: tuple(make(name, people, split)) for split in SPLITS}
        return Task(name=name, scorer="perplexity" if documents else "normalized_exact", **splits)

    def _wordings(self, person: int, split: str) -> list[int]:
        """Of `wordings` + 2 in use: the one held out of this person for the test, the one for validation, the others."""
        used = range(self.config.wordings + 2)
        held = {"test": person % len(used), "valid": (person + 1) % len(used)}
        return [held[split]] if split in held else [k for k in used if k not in held.values()]

    def _questions(self, task: str, people: Sequence[Person], split: str) -> Iterator[Example]:
        for i, person in enumerate(people):
            for attribute, value in person.facts.items():
                for k in self._wordings(i, split):
                    question = Message(role="user", content=QUESTIONS[attribute][k].format(name=person.name))
                    yield Example(id=f"{task}/{split}/{i}.{attribute}.{k}", messages=(question,), target=value)

    def _texts(self, task: str, people: Sequence[Person], split: str) -> Iterator[Example]:
        for i, person in enumerate(people):
            for k in self._wordings(i, split):
                told = (SENTENCES[key][k].format(name=person.name, value=value) for key, value in person.facts.items())
                yield Example(id=f"{task}/{split}/{i}.{k}", text=" ".join(told))


def _facts(values: Mapping[str, Sequence[str]], draw: random.Random) -> dict[str, str]:
    born = f"{draw.choice(MONTHS.split())} {draw.randint(1, 28)}, {draw.randint(1900, 1999)}"
    return {"birthday": born, **{attribute: draw.choice(found) for attribute, found in values.items()}}
