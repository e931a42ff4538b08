"""Texts to token ids in bulk, and rows of token ids that are kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 2**28
"""Tokens that are kept at most, a gibibyte; beyond them the oldest rows go."""
MANY = 20_000
"""Characters from which on the texts of a call are spread over the processor's cores: waking them takes as long as less."""


def padding(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> int:
    """The id that rows are padded with: the tokenizer's own, or its end mark where it has none or none that the model knows
    (`rows` of its embedding)."""
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None or (rows is not None and pad >= rows) else pad


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The marks that a tokenizer itself puts (before, behind) a text: [CLS] and [SEP], or an end mark."""
    alone, framed = (tokenizer.encode("a", add_special_tokens=around) for around in (False, True))
    start = next((i for i in range(len(framed)) if framed[i : i + len(alone)] == alone), 0)
    return framed[:start], framed[start + len(alone) :]


class Bulk:
    """A tokenizer that is asked about many texts at once: what transformers' `encode` and `decode` give, text by text.

    Where a tokenizer of the Rust library does all the work it is asked itself: around each text transformers does twice as
    much as it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        from transformers import PreTrainedTokenizerFast

        self.tokenizer, kind = tokenizer, type(tokenizer)
        parts = ("encode", "_encode_plus", "decode", "_decode")
        plain = isinstance(tokenizer, PreTrainedTokenizerFast) and all(
            getattr(kind, part) is getattr(PreTrainedTokenizerFast, part) for part in parts
        )
        self.library: Any = tokenizer.backend_tokenizer if plain else None

    def encode(self, texts: Sequence[str], as_text: bool) -> list[list[int]]:
        """The tokens of each text, without marks around it. as_text: a control token that is spelled in it is text too."""
        if self.library is None:
            how = {"split_special_tokens": True} if as_text else {}
            return [self.tokenizer.encode(text, add_special_tokens=False, **how) for text in texts]
        split = as_text or self.tokenizer.split_special_tokens
        if self.library.encode_special_tokens != split:
            self.library.encode_special_tokens = split
        self.library.no_truncation()  # a folder may bring settings of its own
        self.library.no_padding()
        if sum(map(len, texts)) < MANY:
            return [self.library.encode(text, add_special_tokens=False).ids for text in texts]
        return [found.ids for found in self.library.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Tokens as text; control tokens are left out, blanks stay as they are."""
        if self.library is None:
            return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.library.decode(ids, skip_special_tokens=True)


class Row(NamedTuple):
    """An example as tokens. tokens: (T,) int32. prompt: how many of them are the prompt; the rest is the answer."""

    tokens: np.ndarray
    prompt: int


class Rows:
    """Rows by what they were made of, four bytes a token; the oldest go where there are more than `most` tokens."""

    def __init__(self, most: int = MOST):
        self.most, self.size = most, 0
        self._rows: dict[Hashable, Row] = {}

    def get(self, key: Hashable) -> Row | None:
        """What is kept; None where there is nothing."""
        return self._rows.get(key)

    def keep(self, key: Hashable, prompt: Sequence[int], answer: Sequence[int]) -> Row:
        """Keep a new row."""
        row = Row(np.array([*prompt, *answer], np.int32), len(prompt))
        self._rows[key] = row
        self.size += len(row.tokens)
        while self.size > self.most and len(self._rows) > 1:
            self.size -= len(self._rows.pop(next(iter(self._rows))).tokens)
        return row
