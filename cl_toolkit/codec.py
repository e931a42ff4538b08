"""Examples as tensors: text to tokens and back (prompts, answers, padding), and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cl_toolkit.types import IGNORE, WITHOUT_TARGET, Batch, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cl_toolkit.config import Prompt


class Codec:
    """A tokenizer and the way a conversation is written.

    With the tokenizer's chat template: prompt and answer are what the template makes of them, the answer with its end
    mark. Without one: turns joined by new lines, `prompt.suffix`, answer, end-of-sequence token. Of a conversation the
    last assistant turn is the answer; earlier ones are context.

    truncated: prompts that were longer than `prompt.max_prompt_length` and lost their beginning, each counted once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt):
        self.tokenizer, self.prompt = tokenizer, prompt
        self.eos = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.bos = tokenizer.bos_token_id
        self.templated = prompt.chat_template == "auto" and bool(tokenizer.chat_template)
        self.truncated_ids: set[str] = set()
        self._cache: dict[tuple, tuple[list[int], list[int]]] = {}

    @property
    def truncated(self) -> int:
        return len(self.truncated_ids)

    def ids(self, example: Example) -> tuple[list[int], list[int]]:
        """(prompt, answer) as token ids; the answer ends with the end-of-sequence token."""
        key = (example.messages, example.target, repr(example.tools))
        if key not in self._cache:
            prompt, answer = self._template(example) if self.templated else self._plain(example)
            # not a matter of the answer's length, which must not be readable from the prompt
            room = self.prompt.max_prompt_length
            if len(prompt) > room:
                self.truncated_ids.add(example.id)
                prompt = prompt[-room:]
            self._cache[key] = prompt, answer
        return self._cache[key]

    def length(self, example: Example) -> int:
        """Tokens of the prompt."""
        return len(self.ids(example)[0])

    def answer_ids(self, text: str) -> list[int]:
        """An answer's tokens with the end-of-sequence token."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.eos]

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, up to the first end-of-sequence token."""
        ids = list(ids)
        if self.eos in ids:
            ids = ids[: ids.index(self.eos)]
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _plain(self, example: Example) -> tuple[list[int], list[int]]:
        turns = [m.content for m in example.messages]
        if self.prompt.system:
            turns.insert(0, self.prompt.system)
        text = "\n".join(turns) + self.prompt.suffix
        prompt = self.tokenizer.encode(text, add_special_tokens=False)
        return [self.bos, *prompt] if self.bos is not None else prompt, self.answer_ids(example.target)

    def _template(self, example: Example) -> tuple[list[int], list[int]]:
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        if self.prompt.system and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.prompt.system})
        tools = [dict(tool) for tool in example.tools] or None

        def render(messages: list[dict[str, str]], generation: bool) -> list[int]:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=generation, tokenize=False
            )
            return self.tokenizer.encode(text, add_special_tokens=False)

        prompt = render(turns, True)
        whole = render([*turns, {"role": "assistant", "content": example.target}], False)
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            answer = whole[len(prompt) :]
            # a template may write more after the end mark; a generated answer stops at it
            end = len(answer) - answer[::-1].index(self.eos) if self.eos in answer else len(answer)
            return prompt, answer[:end] if self.eos in answer else [*answer, self.eos]
        return prompt, self.answer_ids(example.target)

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """Rows of prompts alone, without targets."""
        return self.batch(examples, [()] * len(examples))

    def batch(self, examples: Sequence[Example], answers: Sequence[Sequence[int]] | None = None) -> Batch:
        """Right-padded rows of prompt and answer; labels are the answer's tokens. Rows without a target have none.

        answers: tokens to put in place of the examples' own targets (rollouts).
        """
        rows, labels = [], []
        for i, example in enumerate(examples):
            prompt, answer = self.ids(example)
            answer = list(answers[i]) if answers is not None else answer
            filler = example.source in WITHOUT_TARGET
            rows.append([*prompt, *answer])
            labels.append([IGNORE] * len(prompt) + ([IGNORE] * len(answer) if filler else answer))
        width = max(map(len, rows))
        return Batch(
            inputs={
                "input_ids": torch.tensor([row + [self.pad] * (width - len(row)) for row in rows]),
                "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            },
            labels=torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels]),
            examples=tuple(examples),
        )


class ArrayCodec:
    """Examples that are arrays already: `x` (B, ...) and classes (B,). Does for nets what `Codec` does for language models."""

    def __init__(self):
        self.truncated_ids: set[str] = set()
        self.truncated = 0

    def length(self, example: Example) -> int:
        """All arrays of a task are of one size."""
        return example.x.numel()

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """Arrays without their classes."""
        x = torch.stack([example.x for example in examples])
        return Batch(inputs={"x": x}, labels=torch.full((len(x),), IGNORE), examples=tuple(examples))

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Arrays and classes. Rows without a target have none."""
        batch = self.prompts(examples)
        batch.labels = torch.tensor([IGNORE if e.source in WITHOUT_TARGET else e.y for e in examples])
        return batch
