"""Text to tokens and back: prompts, answers, padding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cl_toolkit.errors import UserError
from cl_toolkit.models import documents
from cl_toolkit.models.fit import check_texts
from cl_toolkit.models.kind import hide_targets
from cl_toolkit.models.likelihoods import whole_rows
from cl_toolkit.models.prefix import Prefix, WholeRows, goes_on
from cl_toolkit.models.replies import text_class_replies, token_replies
from cl_toolkit.models.requests import Reply, Request
from cl_toolkit.models.template import ChatTemplate, Guard, Refused, writing
from cl_toolkit.models.tokens import Row, Rows, padding
from cl_toolkit.models.writers import Own, Writer
from cl_toolkit.types import IGNORE, Batch, Example, Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from cl_toolkit.models.sections import Prompt

    Ids = Sequence[int] | np.ndarray


OPENING = 32
"""Tokens of a document that a sampled answer goes on from."""
REMEMBERED = 4096
"""Answers whose tokens are remembered by their text: those that are chosen from, or that many examples have."""


def labelled(row: Row, answer: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, labels) of a row: the answer's tokens are its labels. answer: other tokens in its place."""
    tokens = row.tokens
    if answer is not None:
        tokens = np.concatenate([tokens[: row.prompt], np.array(answer, np.int32)])
    labels = tokens.copy()
    labels[: row.prompt] = IGNORE
    return tokens, labels


class TextCodec:
    """A tokenizer and the one way in which a conversation is written.

    With the tokenizer's chat template the prompt is all that the template writes before an answer; without one it is the
    turns joined by new lines and `prompt.suffix`. Training, likelihood choices and rollouts write an answer by `answer` and
    read it by `said`: `said(answer(example, text)) == text`. Of a conversation the last assistant turn is the answer;
    earlier ones are context. A prompt of more than `prompt.max_prompt_length` tokens is cut in the middle of its longest
    turn, so that what the template writes, the beginning and the end of that turn stay.

    stops: ids that end an answer: the tokenizer's end of sequence, the template's end mark, and the model's own list
    (`stops`). positions: how many tokens the model has places for; None: any number. rows: how many tokens the model knows;
    padding, which is masked, is by one of them.
    truncated_ids: examples whose prompt was cut. writer: who writes a model's answers. tells_prompts: whether a batch says
    where its prompts end (`models.prompted`).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        stops: Iterable[int] = (),
        positions: int | None = None,
        rows: int | None = None,
    ):
        self.tokenizer, self.prompt, self.positions = tokenizer, prompt, positions
        self.eos, self.pad = tokenizer.eos_token_id, padding(tokenizer, rows)
        self.bos = tokenizer.bos_token_id
        self.guard = Guard(tokenizer)
        self.write = writing(tokenizer, prompt)
        self.templated = isinstance(self.write, ChatTemplate)
        self.truncated_ids: set[str] = set()
        self.writes, self.tells_prompts = True, False
        self.writer: Writer = Own()
        self._rows = Rows()
        self._answers: dict[str, list[int]] = {}
        self.window = max(2, min(prompt.max_prompt_length, positions or prompt.max_prompt_length))
        self._learn_frame()
        self.stops = frozenset({self.eos, self.end, *stops} - {None})
        self._anchor_text = self.decode(self._anchor_ids)

    def _learn_frame(self) -> None:
        """What stands around every answer, from one short conversation.

        end: the id that ends a trained answer. anchor: the last character before the answer. lead: blanks before the answer
        that the tokenizer makes one token with the answer's first word; they belong to its tokens, not to the prompt's.
        """
        try:
            before, after = self.write([{"role": "user", "content": "q"}])
        except Refused as why:
            raise UserError(f"model.name: the chat template cannot be used: {why}") from why
        marks = self.guard.encode([after])[0]
        special = set(self.tokenizer.all_special_ids)
        self.end = next((token for token in marks if token in special), self.eos)
        text_after = after.split(self.tokenizer.decode([self.end]))[0] if self.end in marks else after
        if text_after.strip():
            raise UserError(
                f"model.name: its chat template writes {text_after!r} after an answer and no mark that ends it"
            )
        stripped = before.rstrip(" ")
        blanks, self.anchor = before[len(stripped) :], stripped[-1:] or "\n"
        alone, beside, self._anchor_ids = self.guard.as_text(
            [self.anchor + blanks, self.anchor + blanks + "a", self.anchor]
        )
        self.lead = blanks if beside[: len(alone)] != alone else ""

    # prompts --------------------------------------------------------------------------------------------------------

    def ids(self, example: Example) -> tuple[list[int], list[int]]:
        """(prompt, answer) as token ids; the answer ends with its end mark."""
        tokens, prompt = self.rows([example])[0]
        return tokens[:prompt].tolist(), tokens[prompt:].tolist()

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Conversations as tokens, prompt and answer. Those that are new are encoded together, and kept."""
        for example in filter(documents.is_document, examples):
            raise UserError(f"{example.id}: is a document, which has neither a question nor an answer")
        # tools are mappings, which cannot be looked up by
        keys = [(e.messages, e.target, repr(e.tools) if e.tools else "", *self.named(e)) for e in examples]
        found = {key: row for key in keys if (row := self._rows.get(key)) is not None}
        new = {key: example for key, example in zip(keys, examples, strict=True) if key not in found}
        if new:
            some = list(new.values())
            pairs = zip(new, self._prompts(some), self.answers(some, [e.target for e in some]), strict=True)
            found |= {key: self._rows.keep(key, prompt, answer) for key, prompt, answer in pairs}
        rows = [found[key] for key in keys]
        for example, (tokens, prompt) in zip(examples, rows, strict=True):
            if self.positions is not None and len(tokens) > self.positions:
                raise UserError(
                    f"{example.id}: prompt and answer have {prompt} + {len(tokens) - prompt} tokens, the model has "
                    f"{self.positions} positions; lower prompt.max_prompt_length"
                )
        return rows

    def named(self, example: Example) -> list[int]:
        """Numbers that tell the images of an example apart from others, where it may have any."""
        return [id(image) for image in example.images]

    def class_of(self, example: Example) -> int | None:
        return None

    def length(self, example: Example) -> int:
        """Tokens of the prompt, or of a document's first window."""
        return self.rows([example])[0].prompt if example.text is None else min(len(self._read(example)), self.window)

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """The prompts of some examples, cut where they are too long."""
        texts = [self._text(example, example.messages) for example in examples]
        prompts = [self._framed(ids) for ids in self.guard.encode(texts)]
        for i, example in enumerate(examples):
            # not a matter of the answer's length, which must not be readable from the prompt
            if len(prompts[i]) > self.prompt.max_prompt_length:
                self.truncated_ids.add(example.id)
                prompts[i] = self._cut_prompt(example)
        return prompts

    def _framed(self, ids: list[int]) -> list[int]:
        """A prompt with the marks that do not come from its text."""
        return ids if self.templated or self.bos is None else [self.bos, *ids]

    def _text(self, example: Example, messages: Sequence) -> str:
        """What stands before the answer; control tokens that the messages spell are guarded."""
        try:
            turns = self._turns(example, messages)
            tools = self.guard(example.tools)
            own = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
            own = [] if turns and turns[0]["role"] == "system" else own
            text = self._before(own, turns, tools)
        except Refused as why:
            raise UserError(f"{example.id}: the conversation cannot be written: {why}") from why
        return text.removesuffix(self.lead) if self.lead else text

    def _turns(self, example: Example, messages: Sequence) -> list[dict]:
        """The turns as a template takes them, what the data spells guarded."""
        if example.images:
            raise Refused("it has images, which this model does not see (model.head: vision does)")
        return [self.guard({"role": m.role, "content": m.content, **m.extra}) for m in messages]

    def _before(self, own: list, turns: list, tools: list) -> str:
        """The text before the answer. What a template would leave out without a word is refused."""
        try:
            text = self.write([*own, *turns], tools)[0]
        except Refused as why:
            if own:
                self.write(turns, tools)  # refuses it for another reason, or it is the system turn
                raise UserError(f"prompt.system: the model's chat template takes no system turn: {why}") from why
            raise
        for turn in (*own, *turns):
            if turn["role"] == "system" and turn["content"].strip() not in text:
                where = "prompt.system" if own else "the system turn"
                raise Refused(f"{where}: the chat template leaves it out")
        without = [{k: v for k, v in turn.items() if k != "tool_calls"} for turn in turns]
        if without != turns and self.write([*own, *without], tools)[0] == text:
            raise Refused("tool_calls: the chat template leaves them out")
        if tools and self.write([*own, *turns], ())[0] == text:
            raise Refused("tools: the chat template leaves them out")
        return text

    def _cut_prompt(self, example: Example) -> list[int]:
        """The prompt with as many characters of its longest turn as there is room for, from its beginning and its end."""
        longest = max(range(len(example.messages)), key=lambda i: len(example.messages[i].content))
        turn, room = example.messages[longest], self.prompt.max_prompt_length

        def with_characters(n: int) -> list[int]:
            head, tail = n - n // 2, n // 2
            text = turn.content[:head] + (turn.content[-tail:] if tail else "")
            messages = list(example.messages)
            messages[longest] = replace(turn, content=text)
            return self._framed(self.guard.encode([self._text(example, messages)])[0])

        best = with_characters(0)
        if len(best) > room:
            raise UserError(
                f"{example.id}: prompt.max_prompt_length: {room}: what stands around its longest turn has {len(best)} tokens"
            )
        low, high = 0, len(turn.content)
        while high - low > 1:
            middle = (low + high) // 2
            tokens = with_characters(middle)
            low, high, best = (middle, high, tokens) if len(tokens) <= room else (low, middle, best)
        return best

    # answers --------------------------------------------------------------------------------------------------------

    def answer(self, example: Example, text: str) -> list[int]:
        """The tokens of an answer, its end mark last: the one way in which an answer is trained, chosen and rolled out."""
        return self.answers([example], [text])[0]

    def answers(self, examples: Sequence[Example], texts: Sequence[str]) -> list[list[int]]:
        """The same for many; those that are new are encoded together."""
        found = {text: self._answers[text] for text in texts if text in self._answers}
        new = {text: example for example, text in zip(examples, texts, strict=True) if text not in found}
        if new:
            wholes = self.guard.as_text([self.anchor + self.lead + text for text in new])
            for (text, example), whole in zip(new.items(), wholes, strict=True):
                found[text] = self._checked_answer(example, text, whole)
            if len(self._answers) + len(new) > REMEMBERED:
                self._answers.clear()
            self._answers |= {text: found[text] for text in new}
        return [found[text] for text in texts]

    def _checked_answer(self, example: Example, text: str, whole: list[int]) -> list[int]:
        """An answer's tokens, which read back as its text. whole: the tokens of what stands before it, and of it."""
        start = len(self._anchor_ids)
        ids = whole[start:] if whole[:start] == self._anchor_ids else self.guard.as_text([self.lead + text])[0]
        ids = [*ids, self.end]
        if self.said(ids) != text:
            ids = [*self.guard.as_text([text])[0], self.end]
            back = self.said(ids)
            if back.strip() != text.strip():
                raise UserError(
                    f"{example.id}: the tokenizer cannot write the answer {text[:60]!r}: read back it is {back[:60]!r}"
                )
        return ids

    def said(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, up to the first stop, without the blanks that the template writes before it."""
        return self.decode([*self._anchor_ids, *ids]).removeprefix(self._anchor_text).removeprefix(self.lead)

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, up to the first stop; control tokens are left out."""
        ids = list(ids)
        end = next((i for i, token in enumerate(ids) if token in self.stops), len(ids))
        return self.guard.bulk.decode(ids[:end])

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer came to its end, rather than being cut at a limit."""
        return bool(ids) and ids[-1] in self.stops

    # documents ------------------------------------------------------------------------------------------------------

    def document(self, example: Example) -> list[int]:
        """The tokens of a text, between the marks of its beginning (where the tokenizer has one) and its end."""
        return [*([] if self.bos is None else [self.bos]), *self.guard.as_text([example.text or ""])[0], self.eos]

    def asked(self, example: Example, answer: Sequence[int] | None = None) -> list[tuple[list[int], list[int]]]:
        """What likelihoods are of: (context, tokens); of a document one for each window, whose context is its first token: the
        last one of the window before. answer: what was said after `opening`, in place of the example's own."""
        if answer is not None:
            return [(self.opening(example), list(answer))]
        if example.text is None:
            return [self.ids(example)]
        return [(w[:1].tolist(), w[1:].tolist()) for w in documents.windows(self._read(example), self.window)]

    def opening(self, example: Example) -> list[int]:
        """What an answer goes on from: the prompt, or the beginning of a document."""
        return self.ids(example)[0] if example.text is None else self._read(example)[:-1][:OPENING].tolist()

    def _read(self, example: Example) -> np.ndarray:
        """The tokens of a document that is asked about again and again."""
        row = self._rows.get(example.text)
        return (row or self._rows.keep(example.text, self.document(example), ())).tokens

    # batches --------------------------------------------------------------------------------------------------------

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """Rows of prompts alone, without targets."""
        return self.batch(examples, [()] * len(examples))

    def batch(self, examples: Sequence[Example], answers: Sequence[Sequence[int]] | None = None) -> Batch:
        """Right-padded rows of prompt and answer; labels are the answer's tokens. Rows without a target have none.

        answers: tokens to put in place of the examples' own targets (choices, rollouts).
        """
        asked = iter(self.rows([e for e in examples if not documents.is_document(e)]))
        rows = [
            self._document_row(e, answers is None) if documents.is_document(e)
            else labelled(next(asked), None if answers is None else answers[i])
            for i, e in enumerate(examples)
        ]  # fmt: skip
        batch = hide_targets(self.padded(rows, examples))
        return documents.apart(batch) if any("starts" in e.extra for e in examples) else batch

    def _document_row(self, example: Example, trained: bool) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets) of a block, or of a document's first window, which is all that may be trained of it here. trained:
        False where another answer stands for it."""
        if "starts" in example.extra:
            return documents.row_of(example)
        tokens = self.document(example)
        if trained and len(tokens) > self.window:
            raise UserError(
                f"{example.id}: the document has {len(tokens)} tokens, a row {self.window}; objective lm cuts documents"
            )
        row = np.array(tokens[: self.window], np.int32)
        return labelled(Row(row, 1 if trained else len(row)))

    def padded(self, pairs: Sequence[tuple[Ids, Ids]], examples: Sequence[Example] = ()) -> Batch:
        """Rows of (tokens, labels), padded on the right."""
        lengths = np.array([len(tokens) for tokens, _ in pairs])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids, labels = np.full(mask.shape, self.pad, np.int64), np.full(mask.shape, IGNORE, np.int64)
        ids[mask] = np.concatenate([tokens for tokens, _ in pairs])
        labels[mask] = np.concatenate([targets for _, targets in pairs])
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.tells_prompts:
            trained = labels != IGNORE
            inputs["prompt_lengths"] = torch.from_numpy(np.where(trained.any(1), trained.argmax(1), lengths))
        return Batch(
            inputs=inputs,
            labels=torch.from_numpy(labels),
            examples=tuple(examples),
            along_tokens=frozenset({"input_ids", "attention_mask", "labels"}),
        )

    def shown(self, example: Example) -> str:
        """A training example as the model sees it; what is trained stands between ⟦ and ⟧. Of a document the first window."""
        if example.text is not None and len(tokens := self._read(example)) > self.window:
            first, rest = (self.tokenizer.decode(ids) for ids in (tokens[:1], tokens[1 : self.window]))
            return f"{first}⟦{rest}⟧ and {len(tokens) - self.window} more tokens"
        batch = self.batch([example])
        pieces: list[tuple[bool, list[int]]] = []
        for token, label in zip(batch.inputs["input_ids"][0].tolist(), batch.labels[0].tolist(), strict=True):
            if not pieces or pieces[-1][0] != (label != IGNORE):
                pieces.append((label != IGNORE, []))
            pieces[-1][1].append(token)
        decoded = ((trained, self.tokenizer.decode(ids, skip_special_tokens=False)) for trained, ids in pieces)
        return "".join(f"⟦{text}⟧" if trained else text for trained, text in decoded)

    # what a model is asked --------------------------------------------------------------------------------------------

    def reply(self, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
        """Answers to requests of one way; at most so many rows go through the model at a time."""
        replies = token_replies if self.writes else text_class_replies
        return replies(self, model, requests, rows)

    def by_class(self) -> TextCodec:
        """The same prompts for a model whose outputs are classes."""
        other = copy.copy(self)
        other.writes = False
        return other

    def goes_on(self, model: nn.Module) -> bool:
        """Whether several answers can go on from one reading of a prompt."""
        return goes_on(model, self.pad)

    def read(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> Any:
        """Prompts as a model has read them, a `Prefix` or what does the same for the codec's model."""
        return (Prefix if self.goes_on(model) else WholeRows)(model, prompts, self.pad)

    def likely(self, model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Per (context, tokens) the log p of each of these tokens."""
        return whole_rows(self, model, pairs, self.goes_on(model))

    def check(self, tasks: Sequence[Task], split: str, limits: Callable[[Task], Mapping[str, int]]) -> list[str]:
        """What has to be said before training; raises UserError for what cannot be written or does not fit."""
        return check_texts(self, tasks, split, limits)
