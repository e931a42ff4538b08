"""What timing is done on: a tiny Llama of 1 M parameters, rows of tokens, a loop of a few steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cl_toolkit.models.kind import hide_targets
from cl_toolkit.types import IGNORE, Batch, Example

TOKENS, PROMPT, ROWS = 128, 64, 16


def llama(vocab_size: int = 259) -> LlamaForCausalLM:
    """1 M parameters at the vocabulary of bytes."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 5, "num_attention_heads": 4}
    settings = LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=True, use_cache=False, **shape)
    return LlamaForCausalLM(settings)


def random_rows(count: int, seed: int = 0) -> torch.Tensor:
    """(count, TOKENS) token ids."""
    return torch.randint(256, (count, TOKENS), generator=torch.Generator().manual_seed(seed))


def examples_of(rows: torch.Tensor) -> list[Example]:
    """Examples that `Rows` encodes."""
    return [Example(id=str(i), x=row.tolist()) for i, row in enumerate(rows)]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made inside hold at once, by the profiler's record of what torch's CPU allocator gives and
    takes back."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


class Rows:
    """Stands for a codec: examples that are rows of tokens already, PROMPT of prompt and the rest of answer."""

    def class_of(self, example):
        return None

    def batch(self, examples):
        ids = torch.tensor([e.x for e in examples])
        labels = ids.clone()
        labels[:, :PROMPT] = IGNORE
        return hide_targets(Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, tuple(examples)))
