"""Start models. A warm start learns a mixture of skills for a few hundred steps, once, and is cached."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from cl_toolkit.benchmarks.skills import Skills, skill_names
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data.kept import cache_dir
from cl_toolkit.engine.sections import Train
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.errors import UserError
from cl_toolkit.learn import learn
from cl_toolkit.models.kind import Kind, fingerprint
from cl_toolkit.models.sections import Prompt
from cl_toolkit.runs.checkpoint import replace_file
from cl_toolkit.sources import file_source
from cl_toolkit.strategies.objectives.on_policy import DEMONSTRATION, SOLUTION, shown
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategy import compose
from cl_toolkit.task_view import TaskView

if TYPE_CHECKING:
    from torch import nn


def start_model(kind: Kind, seed: int, frozen: bool = False, classes: Sequence[str] = ()) -> nn.Module:
    """The start model of a run, on the CPU: as its kind loads it or, where the kind asks for a warm start, from the cache or
    made now. The arguments are those of `Kind.load`."""
    return kind.load(seed, frozen, classes) if kind.warm_start is None else warmed_up(kind)


def mixture(kind: Kind) -> list:
    """The examples of the warm-up, a fresh one for every place in every batch. Of those whose question shows the answer every
    other one is a demonstration, every other one a solution."""
    warmup = kind.warm_start
    skills = warmup.skills or skill_names()
    each = -(-warmup.steps * warmup.batch_size // len(skills))
    stream = Skills(
        Skills.Config(length=warmup.length, train_size=each, valid_size=0, test_size=0, seed=warmup.seed + 1000)
    )
    examples = [example for task in stream.tasks(list(skills), repeat=True) for example in task.train]
    rng = random.Random(f"shown/{warmup.seed}")
    for count, i in enumerate(rng.sample(range(len(examples)), round(warmup.shown * len(examples)))):
        examples[i] = shown(examples[i], (DEMONSTRATION, SOLUTION)[count % 2])
    return examples


def warmed_up(kind: Kind) -> nn.Module:
    """The start model, from the cache or made now (and cached, where the cache can be written).

    A cached file that is damaged, of another owner or of other weights than it says is never used.
    """
    from safetensors.torch import save_file

    # as good as the mixture, which takes its time
    made_by = file_source(Path(str(inspect.getsourcefile(Skills)))).digest
    words = [DEMONSTRATION, SOLUTION] if kind.warm_start.shown else []
    content = json.dumps([asdict(kind), made_by, *words, torch.__version__])
    path = cache_dir() / f"tiny-lm-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors"
    model = kind.load(kind.warm_start.seed)
    if path.exists():
        try:
            return load_cached(model, path)
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            print(f"note: {path}: not used and made anew: {' '.join(str(error).split())[:160]}", file=sys.stderr)
            model = kind.load(kind.warm_start.seed)
    model = train(model, kind, mixture(kind))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    metadata = {"fingerprint": fingerprint(model)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OSError("is a folder")
        replace_file(path, lambda temporary: save_file(weights, temporary, metadata))
    except (OSError, UserError) as error:
        print(f"note: {path}: the start model could not be kept: {error}", file=sys.stderr)
    return model


def load_cached(model: nn.Module, path: Path) -> nn.Module:
    """The cached weights in the model; raises where they are not what was saved, or somebody else's."""
    if os.name == "posix" and path.stat().st_uid not in (os.getuid(), 0):
        raise ValueError("it belongs to another user")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or missing not in ([], ["lm_head.weight"]):
        raise ValueError("it holds other tensors")
    tied: Any = model  # every language model of transformers can
    tied.tie_weights()
    if fingerprint(model) != metadata.get("fingerprint"):
        raise ValueError("it is damaged")
    return model


def train(model: nn.Module, kind: Kind, examples: list) -> nn.Module:
    """Learn the mixture with the page that everything else is learned with."""
    warmup = kind.warm_start
    plain = base_layer()
    changes = {
        "global_batch_size": warmup.batch_size,
        "learning_rate": warmup.learning_rate,
        "max_steps": warmup.steps,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
    }
    train_config = typed(Train, {**plain["train"], **changes}, "train", "warmup")
    codec = kind.codec(typed(Prompt, plain["prompt"], "prompt", "warmup"))
    view = TaskView(
        name="warmup",
        index=0,
        examples=examples,
        objective=SFT(),
        codec=codec,
        batch_size=warmup.batch_size,
        max_steps=warmup.steps,
        seeds={"data": warmup.seed, "memory": warmup.seed, "rollout": warmup.seed},
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(train_config.num_threads)
    try:
        engine = TorchEngine(train_config, torch.device("cpu"))
        return learn(model, view, view.objective, compose(), engine, lambda session: None).eval()
    finally:
        torch.set_num_threads(threads)
