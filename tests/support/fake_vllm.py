"""The few calls of vLLM that are used, on top of our own generation: what `import vllm` finds in the tests."""

from __future__ import annotations

import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cl_toolkit.models.prefix import Prefix
from cl_toolkit.models.writers import Own


class SamplingParams(SimpleNamespace):
    """As they were given."""


class LLM:
    """A model of its own, that starts with weights of no meaning. handed: how often it was given others. asked: what."""

    made: ClassVar[list[LLM]] = []

    def __init__(self, model: str, **options: Any):
        self.options, self.handed, self.asked, self.awake = options, 0, [], True
        torch.manual_seed(options["seed"]), random.seed(options["seed"]), np.random.seed(options["seed"])
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).eval()
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load))
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        )
        self.stale = False
        self.made.append(self)

    def _load(self, weights: Any) -> None:
        assert self.awake
        own, given = dict(self.model.named_parameters()), dict(weights)
        assert own.keys() == given.keys()
        for name, weight in given.items():
            own[name].copy_(weight)
        self.handed += 1
        self.stale = True

    def reset_prefix_cache(self) -> None:
        self.stale = False

    def generate(self, prompts: list, sampling_params: list, use_tqdm: bool) -> list:
        assert self.awake
        assert not self.stale
        random.random(), np.random.rand(), torch.rand(1)
        found = []
        for prompt, how in zip(prompts, sampling_params, strict=True):
            self.asked.append(how)
            stops = frozenset(how.stop_token_ids)
            codec = SimpleNamespace(pad=0, stops=stops, read=lambda model, some: Prefix(model, some, 0))
            seeds = [how.seed] if how.temperature else None
            (ids,) = Own()(
                self.model, codec, [prompt["prompt_token_ids"]], how.max_tokens, None, seeds, how.temperature or 1.0
            )
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids))]))
        return found

    def sleep(self, level: int) -> None:
        assert self.awake
        assert level == 1
        self.awake = False

    def wake_up(self) -> None:
        assert not self.awake
        self.awake = True


def installed(monkeypatch: Any) -> type[LLM]:
    """Put it where it is imported from; nothing is made of it yet."""
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM
