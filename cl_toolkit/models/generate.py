"""Answers by the model: batched generation with a KV cache, greedy or sampled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import evaluating, in_lockstep, unwrapped
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.models.text import TextCodec

torch = LazyModule("torch")


@contextmanager
def own_settings(module: nn.Module):
    """The model without the generation settings of its folder: transformers takes from there whatever a call leaves open,
    such as a penalty on repeated words, so that greedy were not the arg max and a rollout not the policy's own."""
    from transformers import GenerationConfig

    holders = [m for m in module.modules() if "generation_config" in vars(m)]
    before = [m.generation_config for m in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, settings in zip(holders, before, strict=True):
            holder.generation_config = settings


class UniformSampling:
    """A logits processor that samples by the inverse of the cumulated distribution, one uniform number per row and token.

    The numbers are fixed before generation starts, so that what a row samples does not depend on the rows beside it,
    nor on how rows are spread over processes. Followed by greedy decoding.
    """

    def __init__(self, uniforms: Tensor, temperature: float):
        self.uniforms, self.temperature, self.position = uniforms, temperature, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulated = torch.softmax(scores.float() / self.temperature, dim=-1).cumsum(-1)
        u = self.uniforms[:, self.position : self.position + 1] * cumulated[:, -1:]
        chosen = torch.searchsorted(cumulated, u, right=True).clamp(max=scores.shape[-1] - 1)
        self.position += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    codec: TextCodec,
    max_new_tokens: int,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Token ids of the answers, each up to and with the mark that ends it (`codec.stops`), or `max_new_tokens` long.

    prompts: token ids per row. uniforms: (B, max_new_tokens) numbers in [0, 1) to sample with; None: greedy. The arg max, or
    a draw from the model's own distribution: no setting of the model's folder changes it.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    module = unwrapped(model)
    device = next(module.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[codec.pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(codec.stops),
        pad_token_id=codec.pad,
        use_cache=True,
    )
    processors = LogitsProcessorList()
    if uniforms is not None:
        processors.append(UniformSampling(uniforms.to(device), temperature))
    with evaluating(module), own_settings(module):
        out = module.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=processors,
            synced_gpus=in_lockstep(model),
        )
    answers = out[:, width:].tolist()
    ends = [next((i for i, token in enumerate(a, 1) if token in codec.stops), len(a)) for a in answers]
    return [a[:end] for a, end in zip(answers, ends, strict=True)]
