"""`make speed-gpu` (BENCH="--small"): what the toolkit does on one GPU, beside a bare loop and TRL.

Everything is built from random weights and random tokens of the shape of Llama-3.2-1B (1.24 B parameters, V = 128,256), in
bfloat16 over fp32 weights; a few minutes on a GPU of 80 GB. `--small` runs all of it with a model of a few thousand weights, on
any device, to see that it works. Times are medians of single steps after those that warm up; "GiB" is the most memory that
tensors held. MFU counts (6 N + 6 L h T) operations a token and `--peak` TFLOP/s (989: an H100 or H200).
`python docs/speed.py` makes the file a part of docs/speed.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import peers
import torch
from conftest import device as device_name
from conftest import versions
from shapes import Lengths, Setting, learned, setting_of, views

from cl_toolkit.engine.access import evaluating
from cl_toolkit.models.fixed import Fixed
from cl_toolkit.models.replies import token_replies
from cl_toolkit.models.requests import Choice
from cl_toolkit.models.writers import Own
from cl_toolkit.strategies.ewc import EWC
from cl_toolkit.strategies.gem import AGEM
from cl_toolkit.strategies.logit_swap import LogitSwap
from cl_toolkit.strategies.lwf import LwF
from cl_toolkit.strategies.objectives.rft import RFT
from cl_toolkit.strategies.reg_lora import RegLoRA
from cl_toolkit.strategies.replay import Replay
from cl_toolkit.strategies.si import SI
from cl_toolkit.strategy import compose
from cl_toolkit.types import Example


class Table:
    """Figures as they come: printed, and kept for the file."""

    def __init__(self, setting: Setting, peak: float):
        self.setting, self.peak, self.figures = setting, peak, []

    def add(
        self, what: str, value: float, unit: str, bound: float | None = None, against: str = "", n: int = 1
    ) -> None:
        self.figures.append({"what": what, "value": value, "unit": unit, "bound": bound, "against": against, "n": n})
        print(f"{what:<72}{value:>12.4g} {unit:<14}{'' if bound is None else f'(wanted: {bound:g})'}", flush=True)

    def step(self, what: str, seconds: list[float], tokens: float) -> float:
        """Milliseconds, tokens a second, MFU and memory of one kind of step; gives the seconds."""
        typical = statistics.median(seconds)
        self.add(what, typical * 1e3, "ms", n=len(seconds))
        self.add(f"{what}: tokens", tokens / typical, "tokens/s", n=len(seconds))
        self.add(
            f"{what}: MFU", 100 * self.setting.operations * tokens / typical / (self.peak * 1e12), "%", n=len(seconds)
        )
        self.add(f"{what}: memory", held(self.setting), "GiB")
        return typical


def held(setting: Setting) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if setting.device.type == "cuda" else 0.0


def clear(setting: Setting) -> None:
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def steps(setting: Setting, table: Table) -> None:
    """The SFT step of full rows, in its forms and beside others."""
    tokens, seconds = setting.rows * setting.width, {}
    forms = {"eager": {}, "compiled": {"compile": "layers"}, "checkpointed": {"gradient_checkpointing": True}}
    for name, train in forms.items():
        clear(setting)
        seconds[name] = table.step(f"SFT, {name}", learned(setting, setting.full(), **train), tokens)
    for name, bare in peers.available(setting).items():
        clear(setting)
        seconds[name] = table.step(f"SFT, {name}", bare(setting), tokens)
    if "TRL" in seconds:
        table.add("SFT, compiled: speed of TRL's", seconds["TRL"] / seconds["compiled"], "x", against="TRL")


def text(setting: Setting, table: Table) -> None:
    """Rows of lognormal length, as real text has them."""
    packed = {"packing": setting.width}
    forms: dict[str, dict] = {"padded": {}, "in parts, by length": {"per_device_train_batch_size": 4}}
    for name, train in {**forms, "packed": packed, "packed, compiled": {**packed, "compile": "layers"}}.items():
        clear(setting)
        rows = Lengths(setting, 16)
        seconds = learned(setting, rows, **train)
        table.add(f"text of mixed lengths, {name}", rows.tokens / sum(seconds), "real tokens/s", n=len(seconds))
        table.add(f"text of mixed lengths, {name}: memory", held(setting), "GiB")
    clear(setting)
    seconds = learned(setting, setting.full(32), per_device_train_batch_size="auto")
    table.step("32 rows, the default batch, cut until it fits", seconds, 32 * setting.width)


def caches() -> dict[str, Own]:
    return {"": Own(), ", static cache": Own(Fixed())}


def rollouts(setting: Setting, table: Table) -> None:
    """rft with a reference."""
    for name, writer in caches().items():
        clear(setting)
        objective = RFT(RFT.Config(num_generations=setting.generations, max_completion_length=setting.completion))
        few = replace(setting, warm=1, steps=min(setting.steps, 4))
        rows = few.full(16, prompt=setting.prompt // 2)
        seconds = learned(few, rows, objective, writer=writer, per_device_train_batch_size=16)
        what = f"rft, 16 prompts x {setting.generations} x {setting.completion}{name}"
        table.add(what, statistics.median(seconds), "s", 2.4, n=len(seconds))
        table.add(f"rft{name}: memory", held(setting), "GiB")


def answers(setting: Setting, table: Table) -> None:
    """Greedy answers to long prompts, 128 at a time: in a cache that grows, and in one of fixed size, compiled."""
    seconds, model, codec = {}, setting.model(), setting.codec()
    prompts = [codec.row(i, setting.prompt) for i in range(setting.asked)]
    for name, writer in caches().items():
        clear(setting)
        writer(model, codec, prompts[:128], setting.completion, 128)  # compiled, recorded
        setting.wait()
        started = time.perf_counter()
        writer(model, codec, prompts, setting.completion, 128)
        setting.wait()
        seconds[name] = time.perf_counter() - started
        what = f"{setting.asked} answers of {setting.completion} tokens, prompts of {setting.prompt}{name}"
        table.add(what, seconds[name], "s")
        table.add(f"{what}: memory", held(setting), "GiB")
    grown, fixed = seconds.values()
    table.add("answers, static cache: speed of the growing one's", grown / fixed, "x", against="dynamic cache")


def little(setting: Setting, table: Table) -> None:
    """The SFT step of a small model: launches, and what is left of them in CUDA graphs."""
    small, seconds = setting.little, {}
    forms = ["none", "layers"] + ["graphs"] * (setting.device.type == "cuda")
    for parts in (None, small.rows // 4):
        for form in forms:
            clear(small)
            name = f"{form}, {'one part' if parts is None else 'four parts'}"
            seconds[name] = statistics.median(
                learned(small, small.full(), compile=form, per_device_train_batch_size=parts)
            )
            table.add(f"small model, SFT, compile: {name}", seconds[name] * 1e3, "ms", n=small.steps)
            table.add(f"small model, {name}: memory", held(small), "GiB")


def choices(setting: Setting, table: Table) -> None:
    """The likeliest of four answers to long prompts."""
    clear(setting)
    model, codec = setting.model(), setting.codec()
    examples = [
        Example(id=str(i), x=codec.row(i, setting.prompt), choices=("a", "b", "c", "d")) for i in range(setting.asked)
    ]
    requests = [Choice(example, example.choices) for example in examples]
    with evaluating(model):
        token_replies(codec, model, requests[:8], 32)
        setting.wait()
        started = time.perf_counter()
        for start in range(0, len(requests), 128):
            token_replies(codec, model, requests[start : start + 128], 128)
        setting.wait()
    table.add(
        f"{setting.asked} x 4 choices, prompts of {setting.prompt} tokens", time.perf_counter() - started, "s", 3.0
    )


def strategies(setting: Setting, table: Table) -> None:
    """A step of the second task, against plain training with the same adapter."""
    cases: dict[str, tuple[Callable, str | None, float]] = {
        "reg_lora": (RegLoRA, "merge", 1.10),
        "ewc": (lambda: EWC(EWC.Config(fisher_examples=setting.fisher)), None, 1.05),
        "si": (SI, None, 1.10),
        "logit_swap": (LogitSwap, None, 1.40),
        "lwf": (LwF, None, 1.40),
        "agem": (lambda: AGEM(AGEM.Config(memory_batch_size=setting.rows)), None, 2.0),
        "replay": (lambda: Replay(Replay.Config(replay_fraction=0.5)), None, 2 * 1.03),
    }
    plain: dict[str | None, float] = {}
    for name, (make, adapter, bound) in cases.items():
        if adapter not in plain:
            clear(setting)
            plain[adapter] = statistics.median(views(setting, compose(), adapter)[0])
        clear(setting)
        seconds, end = views(setting, make(), adapter)
        table.add(
            f"step with {name}", statistics.median(seconds) / plain[adapter], "x", bound, "sequential", len(seconds)
        )
        table.add(f"step with {name}: memory", held(setting), "GiB")
        if name == "ewc":
            table.add(f"ewc: Fisher of {setting.fisher} examples", end, "s", 60)


def zero(setting: Setting, table: Table) -> None:
    """DeepSpeed in one process against plain torch."""
    clear(setting)
    plain = statistics.median(learned(setting, setting.full()))
    for stage in (0, 1, 2, 3):
        clear(setting)
        seconds = learned(setting, setting.full(), deepspeed={"zero_optimization": {"stage": stage}})
        bound = 1.05 if stage == 1 else None
        table.add(
            f"ZeRO-{stage}, one process", statistics.median(seconds) / plain, "x", bound, "torch engine", len(seconds)
        )


PARTS = {
    "steps": steps,
    "little": little,
    "text": text,
    "rollouts": rollouts,
    "answers": answers,
    "choices": choices,
    "strategies": strategies,
    "zero": zero,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, on any device")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the device in bfloat16")
    parser.add_argument("--out", type=Path, help="where the figures go, such as docs/measured/speed-gpu.json")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args()
    setting = setting_of(asked.small)
    table = Table(setting, asked.peak)
    print(f"{device_name()}; {versions()}", flush=True)
    failed = []
    for name in asked.only:
        started = time.perf_counter()
        try:
            PARTS[name](setting, table)
        except Exception:  # the others can still be measured
            failed.append(name)
            traceback.print_exc()
        print(f"-- {name}: {time.perf_counter() - started:.0f} s in all", flush=True)
    if asked.out:
        head = {"date": datetime.now(UTC).date().isoformat(), "device": device_name(), "versions": versions()}
        asked.out.write_text(json.dumps({**head, "figures": table.figures}, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
