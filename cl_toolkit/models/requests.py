"""What can be asked of a model about an example, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cl_toolkit.types import Example


@dataclass(frozen=True)
class Answer:
    """The greedy answer, at most so many tokens. A model of classes says the class of its largest output."""

    example: Example
    max_new_tokens: int

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """Of a model of classes: the classes that it may say."""
        return self.example.choices

    @cached_property
    def way(self) -> tuple:
        """Requests of one way are answered in one batch."""
        return Answer, self.max_new_tokens

    @cached_property
    def key(self) -> tuple:
        """What is asked: two requests with one key have one reply."""
        return *self.way, self.example.id


@dataclass(frozen=True)
class Choice:
    """The likeliest of the allowed answers, by the sum of their tokens' log-probabilities; `per_byte`: by its mean over the
    answer's bytes. allowed: None where everything that the model can say is."""

    example: Example
    allowed: tuple[str, ...] | None
    per_byte: bool = False

    @cached_property
    def way(self) -> tuple:
        return Choice, self.per_byte

    @cached_property
    def key(self) -> tuple:
        return *self.way, self.example.id, self.allowed


@dataclass(frozen=True)
class Logprobs:
    """The log-probability of each token of an answer, end mark included. answer: its tokens; None: the example's own target."""

    example: Example
    answer: tuple[int, ...] | None = None

    @cached_property
    def way(self) -> tuple:
        return (Logprobs,)

    @cached_property
    def key(self) -> tuple:
        return *self.way, self.example.id, self.answer


@dataclass(frozen=True)
class Sample:
    """An answer drawn from the model's own distribution, at most so many tokens, with random numbers from `seed`; the reply has
    its tokens' log-probabilities."""

    example: Example
    max_new_tokens: int
    seed: int

    @cached_property
    def way(self) -> tuple:
        return Sample, self.max_new_tokens

    @cached_property
    def key(self) -> tuple:
        return *self.way, self.example.id, self.seed


@dataclass(frozen=True)
class Continuation:
    """The log-probability of each token of a text after a context, as they stand: no conversation, no end mark."""

    context: str
    text: str

    @cached_property
    def way(self) -> tuple:
        return (Continuation,)

    @cached_property
    def key(self) -> tuple:
        return *self.way, self.context, self.text

    @property
    def example(self) -> Example:
        """What is as long as it, for those who share requests by their length."""
        return Example(id="", text=self.context + self.text)


@dataclass(frozen=True)
class Completion:
    """What the model writes after a context as it stands, greedily, at most so many tokens, up to the first of the stops."""

    context: str
    max_new_tokens: int
    stops: tuple[str, ...] = ()

    @cached_property
    def way(self) -> tuple:
        return Completion, self.max_new_tokens

    @cached_property
    def key(self) -> tuple:
        return *self.way, self.context, self.stops

    @property
    def example(self) -> Example:
        """What is as long as it, for those who share requests by their length."""
        return Example(id="", text=self.context)


Request = Answer | Choice | Logprobs | Sample | Continuation | Completion


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said.

    text: the answer. tokens: the same as token ids (for a model of classes: the index of the class). logprobs: of each
    token, where they were asked for. chance: the score of pure guessing, 1 / number of allowed answers where the answer was
    chosen. cut: the answer did not end within `max_new_tokens`. likeliest: no token of a continuation is less likely than
    another one in its place.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    chance: float = 0.0
    cut: bool = False
    likeliest: bool = False
