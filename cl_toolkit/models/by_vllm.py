"""Answers by vLLM, in this process and on its GPU, with the weights that the model has at that time.

TRL (`vllm_mode="colocate"`) does likewise: weights go to vLLM's model by its `load_weights`, and it sleeps while others need
the memory. Ours: weights are handed over only where they have changed since the last time; adapters are added to the copies
that are handed over, so that nothing is merged into the model and taken out again; each request has a seed of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cl_toolkit.engine.access import scoring_dtype, unwrapped
from cl_toolkit.errors import UserError, short
from cl_toolkit.models.adapters import whole_weights
from cl_toolkit.models.fixed import inside
from cl_toolkit.seeds import random_numbers_kept


class VLLM:
    """share: of the GPU's memory, while it writes. room: tokens of the longest prompt and answer of a run."""

    def __init__(self, share: float, room: int):
        self.share, self.room = share, room
        self._llm: Any = None
        self._handed: list[int] = []

    def __call__(self, model, codec, prompts, length, rows=None, seeds=None, temperature=1.0) -> list[list[int]]:
        """See `Writer`. rows: vLLM takes as many at a time as it has memory for."""
        from vllm import SamplingParams

        module = unwrapped(model)
        room = min(self.room, getattr(module.config.get_text_config(), "max_position_embeddings", self.room))
        if (longest := max(map(len, prompts)) + length) > room:
            raise UserError(
                f"generation.engine: vllm: a prompt and its answer may have {longest} tokens, and vLLM was made for {room}; "
                "lower prompt.max_prompt_length or the limit of the answer"
            )
        stops = {"stop_token_ids": sorted(codec.stops), "ignore_eos": True, "detokenize": False}
        warmth = 0.0 if seeds is None else temperature
        asked = [
            SamplingParams(temperature=warmth, top_p=1.0, top_k=-1, min_p=0.0, seed=seed, max_tokens=length, **stops)
            for seed in seeds or [None] * len(prompts)
        ]
        with random_numbers_kept():
            self._awake(module, room)
            found = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling_params=asked, use_tqdm=False
            )
            self._llm.sleep(
                level=1
            )  # its weights go to the host: they are still the model's where nobody trains meanwhile
        return [list(outputs.outputs[0].token_ids) for outputs in found]

    def _awake(self, module: nn.Module, room: int) -> None:
        """vLLM, with the model's weights."""
        if self._llm is None:
            self._llm = self._started(module, room)
        else:
            self._llm.wake_up()
        if (now := fingerprints(module)) != self._handed:
            into = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
            with torch.no_grad():
                into.load_weights(known_weights(module))
            self._llm.reset_prefix_cache()  # what it has read by other weights
            self._handed = now

    def _started(self, module: nn.Module, room: int) -> Any:
        """vLLM for a model of this structure, without its weights."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where the weights are
        from vllm import LLM

        with tempfile.TemporaryDirectory() as folder:
            inside(module).config.save_pretrained(folder)
            try:
                return LLM(
                    model=folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    dtype=str(scoring_dtype(module)).removeprefix("torch."),
                    max_model_len=room,
                    gpu_memory_utilization=self.share,
                    enable_sleep_mode=True,
                    generation_config="vllm",
                    seed=0,
                )
            except Exception as error:
                what = short(" ".join(str(error).split()), 200)
                raise UserError(
                    f"generation.engine: vllm: cannot take {type(inside(module)).__name__}: {type(error).__name__}: {what}; "
                    "use own"
                ) from error


def known_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights under their names in a model of this class; UserError for what vLLM's model has no place for."""
    base = inside(module)
    with torch.device("meta"):
        names = {name for name, _ in type(base)(base.config).named_parameters()}
    for name, weight in whole_weights(module):
        if name not in names:
            raise UserError(
                f"generation.engine: vllm: the model has a weight {name} that {type(base).__name__} has not; use own"
            )
        yield name, weight


WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprints(module: nn.Module) -> list[int]:
    """A number per weight, by which it is seen whether any has changed: the sum of its bits, read as whole numbers."""
    sums = [weight.detach().view(WORDS[weight.element_size()]).sum(dtype=torch.int64) for weight in module.parameters()]
    return torch.stack(sums).tolist()
