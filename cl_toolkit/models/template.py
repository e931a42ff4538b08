"""How a conversation is written as text: what stands before an answer, and what follows it.

By the tokenizer's chat template, or as plain lines. Text of the data that spells a control token stays text: it is kept
apart from the marks that the template writes itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError
from cl_toolkit.models.tokens import Bulk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cl_toolkit.models.sections import Prompt

MARKER = "\U00100000"
"""Stands where the answer will be. A private-use character, which no template splits, strips or escapes."""
FIRST_GUARD = 0xF0000
"""The first of the private-use characters that stand for a control token spelled in the data."""

Turns = Sequence[Mapping[str, Any]]


class Refused(Exception):
    """A conversation that cannot be written; the message says why."""


class Lines:
    """Turns as lines, then `suffix`: for models without a chat template."""

    written_date: str | None = None

    def __init__(self, suffix: str):
        self.suffix = suffix

    def unread(self, prompt: Prompt) -> list[str]:
        """Settings that say nothing here, in sentences: models of one comparison may differ in what they have."""
        names = [name for name in ("chat_template_kwargs", "thoughts") if getattr(prompt, name)]
        return [f"prompt.{name} does nothing: the model has no chat template" for name in names]

    def __call__(self, turns: Turns, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, str]:
        """(text before the answer, text after it)."""
        if tools:
            raise Refused("tools need a model with a chat template (or prompt.chat_template: auto)")
        for turn in turns:
            if further := [key for key in turn if key not in ("role", "content")]:
                raise Refused(f"{further[0]} needs a model with a chat template (or prompt.chat_template: auto)")
        return "\n".join(turn["content"] for turn in turns) + self.suffix, ""


class ChatTemplate:
    """The tokenizer's own template.

    The conversation is rendered once with a marker in the answer's place. What stands before the marker is the prompt (an
    empty thinking block belongs to it), what follows are blanks and the mark that ends the turn. With `thoughts` the prompt
    ends where the template's own generation prompt ends. options: handed to the template, such as `enable_thinking`. day:
    what `strftime_now` is told, so that a run does not depend on the day.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], day: date, thoughts: bool = False
    ):
        self.tokenizer, self.options, self.thoughts = tokenizer, dict(options), thoughts
        self.source = tokenizer.get_chat_template() if isinstance(tokenizer.chat_template, dict) else None
        self.source = self.source or tokenizer.chat_template
        self.pinned = pin_date(self.source, day)
        self.written_date = str(day) if self.pinned != self.source else None

    def unread(self, prompt: Prompt) -> list[str]:
        """As of `Lines`."""
        names = [
            name for name in prompt.chat_template_kwargs if not re.search(rf"\b{re.escape(name)}\b", str(self.source))
        ]
        return [
            f"prompt.chat_template_kwargs: {name} does nothing: the chat template does not read it" for name in names
        ]

    def __call__(self, turns: Turns, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, str]:
        """(text before the answer, text after it)."""
        text = self._render([*turns, {"role": "assistant", "content": MARKER}], tools, False)
        if text.count(MARKER) != 1:
            raise Refused(
                f"the chat template writes an answer {text.count(MARKER)} times, or changes it; prompt.chat_template: off "
                "does without it"
            )
        before, after = text.split(MARKER)
        return (self._render(turns, tools, True) if self.thoughts else before), after

    def _render(self, turns: Turns, tools: Sequence[Mapping[str, Any]], generation: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.pinned,
                add_generation_prompt=generation,
                tokenize=False,
                **self.options,
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise Refused(" ".join(str(error).split()) or type(error).__name__) from error


def pin_date(template: str, day: date) -> str:
    """The template with every `strftime_now("...")` written out for that day."""

    def written(match: re.Match) -> str:
        return json.dumps(day.strftime(match.group(2)), ensure_ascii=False)

    pinned = re.sub(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", written, template)
    if "strftime_now(" in pinned:
        raise UserError("model.name: its chat template asks for the date in a form that cannot be pinned")
    return pinned


def writing(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> ChatTemplate | Lines:
    """How a model's conversations are written."""
    if prompt.chat_template == "auto" and tokenizer.chat_template:
        return ChatTemplate(tokenizer, prompt.chat_template_kwargs, date.fromisoformat(prompt.date), prompt.thoughts)
    return Lines(prompt.suffix)


class Guard:
    """Keeps text of the data that spells a control token apart from the control tokens themselves."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.bulk = Bulk(tokenizer)
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        spelled = sorted({*tokenizer.all_special_tokens, *added}, key=lambda token: (-len(token), token))
        self.characters = {token: chr(FIRST_GUARD + i) for i, token in enumerate(spelled)}
        self.tokens = {character: token for token, character in self.characters.items()}
        self._spelled = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._guarded = re.compile("([" + "".join(self.tokens) + "])" if self.tokens else "(?!)")

    def __call__(self, value: Any) -> Any:
        """The value (text, or lists and mappings of it) with a private character for each control token in its text."""
        if isinstance(value, str):
            if self._guarded.search(value) or MARKER in value:
                raise Refused("the text holds private-use characters that stand for control tokens here")
            return self._spelled.sub(lambda match: self.characters[match.group()], value)
        if isinstance(value, Mapping):
            return {key: self(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(inner) for inner in value]
        return value

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of rendered texts: the template's marks are control tokens, guarded ones are text."""
        split = [[piece for piece in self._guarded.split(text) if piece] for text in texts]
        whole = iter(self.bulk.encode([p for pieces in split for p in pieces if p not in self.tokens], False))

        def ids(piece: str) -> list[int]:
            return self.as_text([self.tokens[piece]])[0] if piece in self.tokens else next(whole)

        return [ids(pieces[0]) if len(pieces) == 1 else [t for piece in pieces for t in ids(piece)] for pieces in split]

    def as_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts of the data, none of which is a control token."""
        return self.bulk.encode(texts, True)
