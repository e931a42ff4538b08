"""Encoder-decoders from a folder or the hub, such as T5 (Raffel et al. 2020, arXiv 1910.10683).

The encoder reads the question, the decoder writes the answer. The decoder's row is its start token and the answer, and its
labels stand as those of a language model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from cl_toolkit.errors import UserError
from cl_toolkit.models.hub import HubKind, hub_config, hub_stops, hub_tokenizer
from cl_toolkit.models.kind import hide_targets
from cl_toolkit.models.likelihoods import target_logprobs
from cl_toolkit.models.prefix import CACHE, own
from cl_toolkit.models.soundness import check_complete
from cl_toolkit.models.text import TextCodec
from cl_toolkit.models.tokens import frame
from cl_toolkit.types import IGNORE, Batch, Example

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from cl_toolkit.models.sections import Prompt
    from cl_toolkit.models.text import Ids
    from cl_toolkit.models.tokens import Row


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(HubKind):
    """An encoder-decoder that reads the question and writes the answer, by Hugging Face id or local folder."""

    gives: ClassVar[frozenset[str]] = frozenset({"outputs", "logits", "generates"})
    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    packable: ClassVar[bool] = False
    head: Literal["seq2seq"] = "seq2seq"

    def check_config(self, config: PretrainedConfig) -> None:
        if not getattr(config, "is_encoder_decoder", False):
            raise UserError(
                f"model.head: seq2seq: {self.name} is no encoder-decoder ({config.model_type}); use head: lm, or classes"
            )
        if config.decoder_start_token_id is None:
            raise UserError(
                f"model.name: {self.name}: config.json has no decoder_start_token_id, with which an answer begins"
            )

    def codec(self, prompt: Prompt, classes: Sequence[str] = ()) -> Seq2SeqCodec:
        config, stops = hub_config(self), hub_stops(self)
        rows = getattr(config, "vocab_size", None)
        return Seq2SeqCodec(
            hub_tokenizer(self), prompt, stops, self.positions(config), rows, config.decoder_start_token_id
        )

    def check_weights(self, model: nn.Module, report: Mapping[str, Collection[Any]], rows: int) -> None:
        check_complete(self.name, model, report)


@dataclass
class Pairs(Batch):
    """Rows of two texts: `input_ids`, `attention_mask` (B, S) of the questions, and `decoder_input_ids`,
    `decoder_attention_mask` (B, T) of the answers, which the labels go with."""

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of both texts without padding."""
        return self.inputs["attention_mask"].sum(1) + self.inputs["decoder_attention_mask"].sum(1)

    def rows(self, chosen: Sequence[int]) -> Batch:
        part = super().rows(chosen)
        asked, said = (int(part.inputs[f"{side}attention_mask"].sum(1).max()) for side in ("", "decoder_"))
        questions = {name: tensor for name, tensor in part.inputs.items() if name not in self.along_tokens}
        found = part.map(lambda name, tensor: tensor[:, :said] if name in self.along_tokens else tensor)
        found.inputs |= {name: tensor[:, :asked] for name, tensor in questions.items()}
        return found


class Seq2SeqCodec(TextCodec):
    """A question with the marks that the tokenizer puts around a text, and its answer with its end mark, in rows of their own.

    positions: how many tokens each of the two has places for. start: the token with which the decoder begins.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        stops: Iterable[int],
        positions: int | None,
        rows: int | None,
        start: int,
    ):
        self.before, self.after = frame(tokenizer)
        super().__init__(tokenizer, prompt, stops, None, rows)
        self.places, self.start = positions, start

    def _learn_frame(self) -> None:
        super()._learn_frame()
        self.anchor, self.lead, self._anchor_ids = "", "", []  # nothing stands before an answer

    def _framed(self, ids: list[int]) -> list[int]:
        return ids if self.templated else [*self.before, *ids, *self.after]

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        found = super().rows(examples)
        for example, row in zip(examples, found, strict=True):
            longest = max(row.prompt, len(row.tokens) - row.prompt + 1)
            if self.places is not None and longest > self.places:
                raise UserError(
                    f"{example.id}: question or answer has {longest} tokens, the model has {self.places} positions for each; "
                    "lower prompt.max_prompt_length"
                )
        return found

    def batch(self, examples: Sequence[Example], answers: Sequence[Sequence[int]] | None = None) -> Batch:
        rows = self.rows(examples)
        given = [row.tokens[row.prompt :] for row in rows] if answers is None else answers
        return hide_targets(self.paired([row.tokens[: row.prompt] for row in rows], given, examples))

    def paired(self, questions: Sequence[Ids], answers: Sequence[Ids], examples: Sequence[Example] = ()) -> Pairs:
        """Rows of questions and of answers, each padded on the right."""
        ids, mask = self._filled(questions)
        said, there = self._filled([[self.start, *answer] for answer in answers])
        labels = said.masked_fill(there == 0, IGNORE)
        labels[:, 0] = IGNORE
        names = {"decoder_input_ids": said, "decoder_attention_mask": there}
        return Pairs(
            inputs={"input_ids": ids, "attention_mask": mask, **names},
            labels=labels,
            examples=tuple(examples),
            along_tokens=frozenset({*names, "labels"}),
        )

    def _filled(self, rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[*map(int, row), *[self.pad] * (width - len(row))] for row in rows])
        return ids, (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()

    def shown(self, example: Example) -> str:
        prompt, answer = (self.tokenizer.decode(ids, skip_special_tokens=False) for ids in self.ids(example))
        return f"{prompt}⟦{answer}⟧"

    def goes_on(self, model: nn.Module) -> bool:
        return True

    def read(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> Encoded:
        device = next(model.parameters()).device
        ids, mask = (tensor.to(device) for tensor in self._filled(prompts))
        return Encoded(model, ids, mask, self.start)

    def likely(self, model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        batch = self.paired(*zip(*pairs, strict=True)).to(next(model.parameters()).device)
        found = iter(target_logprobs(model(**batch.inputs).logits[:, :-1], batch.labels[:, 1:]).tolist())
        return [list(islice(found, len(answer))) for _, answer in pairs]


class Encoded:
    """Questions that the encoder has read once, and answers as far as the decoder has read them. What `Prefix` is for a
    language model.

    logits: (B, V), of the token that comes next.
    """

    leaves = True

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, start: int):
        self.model, self.mask = model, mask
        first = torch.full((len(ids), 1), start, device=ids.device)
        out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=first, use_cache=True)
        self.states, self.cache, self.logits = out.encoder_last_hidden_state, out[CACHE], out.logits[:, -1]

    def take(self, rows: Tensor) -> Encoded:
        """The rows of these indices (N,), each as often as it is named. Neither that nor what follows changes this one."""
        other = copy.copy(self)
        other.cache = type(self.cache)(own(self.cache.self_attention_cache), own(self.cache.cross_attention_cache))
        other.cache.reorder_cache(rows)
        other.states, other.mask, other.logits = self.states[rows], self.mask[rows], self.logits[rows]
        return other

    def on(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Read (B, T) more tokens of the answers: the logits (B, T, V) after each. lengths: (B,), how many of them are a
        row's own; nothing can follow where some are padding."""
        out = self.model(
            encoder_outputs=(self.states,),
            attention_mask=self.mask,
            decoder_input_ids=ids,
            **{CACHE: self.cache},
            use_cache=True,
        )
        self.cache, self.logits = out[CACHE], out.logits[:, -1]
        return out.logits
