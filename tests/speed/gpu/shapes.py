"""What the GPU is timed on: a model's shape, rows of random tokens, and single steps of the page."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from pieces import task_view, train_settings
from transformers import LlamaConfig, LlamaForCausalLM

from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.learn import learn
from cl_toolkit.models import adapters
from cl_toolkit.models.kind import hide_targets
from cl_toolkit.models.logits import says_logits
from cl_toolkit.models.sections import Adapter
from cl_toolkit.models.text import TextCodec
from cl_toolkit.models.writers import Own, Writer
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategy import compose
from cl_toolkit.types import IGNORE, Batch, Example

WARM, TIMED = 4, 8


@dataclass(frozen=True)
class Setting:
    """Sizes. prompt: of what is asked. steps: that are timed."""

    device: torch.device
    config: LlamaConfig
    rows: int
    width: int
    prompt: int
    asked: int
    fisher: int
    generations: int
    completion: int
    warm: int = WARM
    steps: int = TIMED

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        with self.device:
            model: Any = LlamaForCausalLM(self.config)
        model.scoring_dtype = torch.bfloat16
        model.says_logits = says_logits(model)
        return model

    @property
    def operations(self) -> float:
        """Floating-point operations a token, forward and backward."""
        with torch.device("meta"):
            weights = sum(p.numel() for p in LlamaForCausalLM(self.config).parameters())
        return 6 * weights + 6 * self.config.num_hidden_layers * self.config.hidden_size * self.width

    def codec(self, writer: Writer | None = None) -> Tokens:
        return Tokens(self.config.vocab_size, writer)

    @property
    def little(self) -> Setting:
        """Blocks whose kernels are shorter than their launches."""
        shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
        small = self.config.hidden_size <= shape["hidden_size"]
        config = (
            self.config if small else LlamaConfig(vocab_size=8192, tie_word_embeddings=True, use_cache=False, **shape)
        )
        return replace(self, config=config, rows=8, width=min(self.width, 128))

    def full(self, rows: int | None = None, prompt: int | None = None) -> Rows:
        return Rows(self, rows or self.rows, prompt)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def setting_of(small: bool) -> Setting:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if small:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=300, tie_word_embeddings=True, use_cache=False, **shape)
        return Setting(device, config, 4, 32, 12, 8, 4, 2, 4, 1, 2)
    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    shape |= {"num_key_value_heads": 8, "max_position_embeddings": 8192}
    config = LlamaConfig(vocab_size=128_256, tie_word_embeddings=True, use_cache=False, **shape)
    return Setting(device, config, 8, 1024, 300, 500, 200, 8, 128)


class Tokens:
    """Stands for a codec: examples are rows of tokens, `x`, of which the first `extra["prompt"]` are the prompt."""

    goes_on, read, likely = TextCodec.goes_on, TextCodec.read, TextCodec.likely
    positions = None

    def __init__(self, words: int, writer: Writer | None = None):
        self.words = words
        self.eos, self.pad, self.stops = words - 1, 0, frozenset({words - 1})
        self.writer = writer or Own()

    def row(self, seed: int, length: int) -> list[int]:
        return torch.randint(1, self.words - 1, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

    def class_of(self, example: Example) -> None:
        return None

    def length(self, example: Example) -> int:
        return len(example.x)

    def ids(self, example: Example) -> tuple[list[int], list[int]]:
        cut = example.extra.get("prompt", len(example.x))
        return example.x[:cut], example.x[cut:]

    def opening(self, example: Example) -> list[int]:
        return self.ids(example)[0]

    def rows(self, examples: Any) -> list[tuple[list[int], list[int]]]:
        return [self.ids(e) for e in examples]

    def answers(self, examples: Any, texts: Any) -> list[list[int]]:
        return [[*range(ord(text), ord(text) + 8), self.eos] for text in texts]

    def asked(self, example: Example, answer: Any = None) -> list[tuple[list[int], list[int]]]:
        return [(self.ids(example)[0], list(answer))]

    def said(self, ids: Any) -> str:
        return " ".join(map(str, ids))

    def ended(self, ids: Any) -> bool:
        return ids[-1] == self.eos

    def batch(self, examples: Any, answers: Any = None) -> Batch:
        pairs = [self.ids(e) for e in examples]
        if answers is not None:
            pairs = [(prompt, list(answer)) for (prompt, _), answer in zip(pairs, answers, strict=True)]
        width = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = torch.zeros(len(pairs), width, dtype=torch.long)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
        for i, (prompt, answer) in enumerate(pairs):
            ids[i, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            mask[i, : len(prompt) + len(answer)] = 1
            targets[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        names = frozenset({"input_ids", "attention_mask", "labels"})
        return hide_targets(
            Batch({"input_ids": ids, "attention_mask": mask}, targets, tuple(examples), along_tokens=names)
        )


class Rows:
    """Steps of full rows, half of each prompt."""

    def __init__(self, setting: Setting, rows: int, prompt: int | None = None):
        self.size, count = rows, rows * (setting.warm + setting.steps)
        codec = setting.codec()
        cut = setting.width // 2 if prompt is None else prompt
        length = setting.width if prompt is None else prompt + 1
        self.examples = [Example(id=str(i), x=codec.row(i, length), extra={"prompt": cut}) for i in range(count)]


class Lengths:
    """Steps of rows of lognormal length, mean 200, at most a row's width. tokens: real ones of the timed steps, about."""

    def __init__(self, setting: Setting, rows: int):
        self.size, count = rows, rows * (setting.warm + setting.steps)
        draw = torch.Generator().manual_seed(0)
        lengths = torch.exp(5.1 + 0.65 * torch.randn(count, generator=draw)) * setting.width / 1024
        lengths = lengths.long().clamp(4, setting.width).tolist()
        codec = setting.codec()
        self.examples = [Example(id=str(i), x=codec.row(i, n), extra={"prompt": n // 2}) for i, n in enumerate(lengths)]
        self.tokens = sum(lengths) * setting.steps / (setting.warm + setting.steps)


class Clock:
    """Seconds of each step but those that warm up."""

    def __init__(self, setting: Setting):
        self.setting, self.seconds = setting, []
        self.last = time.perf_counter()

    def __call__(self, session: Any) -> None:
        self.setting.wait()
        now = time.perf_counter()
        if session.step_number > self.setting.warm:
            self.seconds.append(now - self.last)
        elif self.setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.last = time.perf_counter()


def engine_of(setting: Setting, deepspeed: dict[str, Any] | None, **train: Any) -> Any:
    settings = train_settings(bf16=True, **train)
    if deepspeed is None:
        return TorchEngine(settings, setting.device)
    from cl_toolkit.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(settings, setting.device, config=deepspeed)


def view_of(
    setting: Setting,
    rows: Rows | Lengths,
    objective: Any = None,
    index: int = 0,
    wants_logits: bool = False,
    writer: Writer | None = None,
) -> Any:
    return task_view(rows.examples, objective or SFT(), index=index, codec=setting.codec(writer), batch_size=rows.size,
                     wants_logits=wants_logits, score=lambda example, answer: float(len(answer) % 2))  # fmt: skip


def learned(
    setting: Setting,
    rows: Rows | Lengths,
    objective: Any = None,
    deepspeed: Any = None,
    writer: Any = None,
    **train: Any,
) -> list[float]:
    """Seconds of single steps of the page."""
    view, clock = view_of(setting, rows, objective, writer=writer), Clock(setting)
    learn(setting.model(), view, view.objective, compose(), engine_of(setting, deepspeed, **train), clock)
    return clock.seconds


def views(setting: Setting, strategy: Any, between_tasks: str | None) -> tuple[list[float], float]:
    """Seconds of single steps of the second task with a strategy, and of what comes at the end of the first."""
    adapter = None if between_tasks is None else Adapter(r=8, between_tasks=between_tasks)
    model, clock, ends = setting.model(), Clock(setting), []
    for index in range(2):
        clock = Clock(setting)
        model = adapters.begin_task(model, adapter, index, 0).to(setting.device)
        view = view_of(setting, setting.full(), index=index, wants_logits="logits" in strategy.needs)
        model = learn(model, view, view.objective, strategy, engine_of(setting, None), clock)
        setting.wait()
        ends.append(time.perf_counter() - clock.last)
        model = adapters.end_task(model, adapter)
    return clock.seconds, ends[0]
