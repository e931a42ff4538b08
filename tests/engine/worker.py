"""Trains two tasks under several engine settings in one process of a job: `worker.py SETTINGS.json RESULT.json`."""

import gc
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from engine_parts import Pull, Watched, make_model, make_tasks, make_train

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.engine.deepspeed_engine import DeepSpeedEngine, start_processes
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.learn import learn
from cl_toolkit.measure.answers import Answers
from cl_toolkit.models import adapters
from cl_toolkit.models.requests import Answer, Choice, Logprobs, Sample
from cl_toolkit.models.sections import Adapter, Prompt
from cl_toolkit.models.text import TextCodec
from cl_toolkit.models.tiny import TinyLM, build_tiny, byte_tokenizer
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.strategies.lwf import LwF
from cl_toolkit.strategies.objectives.rft import RFT
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategies.objectives.supcon import SupCon
from cl_toolkit.strategies.replay import Replay
from cl_toolkit.strategy import compose
from cl_toolkit.task_view import TaskView
from cl_toolkit.types import Example, Message

CPU = torch.device("cpu")


def state_of(model):
    """What a plain module must have as before: attributes, hooks, shapes."""
    return {
        "weights": {
            n: [list(p.shape), str(p.dtype), sorted(vars(p)), p.grad is None] for n, p in model.named_parameters()
        },
        "modules": {
            n: [
                sorted(vars(m)),
                type(m._parameters).__name__,
                *(len(v) for k, v in sorted(vars(m).items()) if k.endswith("_hooks")),
            ]
            for n, m in model.named_modules()
        },
        "linear": torch.nn.functional.linear is PLAIN_LINEAR,
    }


PLAIN_LINEAR = torch.nn.functional.linear


class Read(Mapping):
    """Weights as a penalty sees them; remembers the shape of each that was read."""

    def __init__(self, weights, shapes):
        self.weights, self.shapes = weights, shapes

    def __getitem__(self, name):
        weight = self.weights[name]
        self.shapes[name] = list(weight.shape)
        return weight

    def __iter__(self):
        return iter(self.weights)

    def __len__(self):
        return len(self.weights)


def make_strategy(named):
    """A registered strategy from [name, settings]; [] is sequential training, None what uses every hook. And the adapter
    life cycle that it needs."""
    if not named:
        return compose(*([Replay(), Pull()] if named is None else [])), None
    name, settings = named
    cls = STRATEGIES.get(name, "worker")
    strategy = cls(cls.Config(**settings))
    strategy.name = name
    return strategy, cls.tags.life_cycles[0]


def make_objective(setting):
    if "supcon" in setting:
        return SupCon(SupCon.Config(**setting["supcon"]))
    if "objective" in setting:
        name, settings = setting["objective"]
        cls = OBJECTIVES.get(name, "worker")
        objective = cls(cls.Config(**settings))
        objective.name = name
        return objective
    return RFT(RFT.Config(**setting["rft"])) if "rft" in setting else Watched()


def run(engine, setting):
    """Losses, norms and parts of every step, what the penalty read, and whether the model is plain after each task."""
    strategy, needed = make_strategy(setting.get("strategy"))
    life_cycle = setting.get("life_cycle", needed)
    adapter = Adapter(r=4, between_tasks=life_cycle) if life_cycle else None
    objective = make_objective(setting)
    model, read, penalty = make_model(setting.get("layers", 2)), {}, strategy.penalty
    strategy.penalty = lambda weights: penalty(Read(weights, read))
    model = objective.equip(model, 0)
    for name, weight in model.named_parameters():
        weight.requires_grad = not setting.get("frozen") or "norm" in name or "self_attn" in name
    steps, plain, trained, aside = [], [], [], []

    def watch(session):
        steps.append(
            {
                "losses": session.losses,
                "norm": float(session.grad_norm or 0),
                "rate": session.learning_rate,
                "parts": session.backwards - sum(s["parts"] for s in steps if s["task"] == session.task.name),
                "seen": session.examples_seen,
                "task": session.task.name,
            }
        )

    for task in make_tasks(objective, setting.get("steps", -1), engine.processes):
        if "supcon" in setting:  # three classes per task
            task = task.keep([replace(e, target="xyz"[i % 3] * (task.index + 1)) for i, e in enumerate(task.examples)])
        encode = task.encode
        task.encode = lambda examples, model=None, encode=encode: (aside.extend(examples), encode(examples, model))[1]
        model = adapters.begin_task(model, adapter, task.index, 0)
        model = strategy.build(model, task.index)  # `learn` builds nothing more then, so that the rest is the engine's
        before = state_of(model)
        model = learn(model, task, objective, strategy, engine, watch)
        plain.append(state_of(model) == before)
        trained.append([n for n, p in model.named_parameters() if p.requires_grad])
        model = adapters.end_task(model, adapter)
    weights = {n: float(p.detach().double().abs().sum()) for n, p in model.named_parameters()}
    rounded = [n for n, p in model.named_parameters() if p.dim() == 2 and torch.equal(p.bfloat16().float(), p)]
    return {
        "steps": steps,
        "plain": plain,
        "trained": trained,
        "read": read,
        "weights": weights,
        "shares": getattr(objective, "shares", None),
        "rounded": rounded,
        "passed": len(aside) + objective.rollouts,  # of this process
    }


def zero(stage, **more):
    """A DeepSpeed config in which ZeRO-3 cuts the smallest weight too, unless `more` says otherwise."""
    return {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, **more}}


def reopen(processes, stage):
    """Live tensors and resident MiB after each of four openings."""
    model, objective = make_model(), SFT()
    engine = DeepSpeedEngine(make_train(), CPU, processes, zero(stage))
    task = next(make_tasks(objective))
    tensors, memory = [], []
    for _ in range(4):
        learn(model, task.keep(task.examples[:5]), objective, compose(), engine, lambda session: None)
        gc.collect()
        tensors.append(sum(torch.is_tensor(o) for o in gc.get_objects()))
        memory.append(psutil.Process().memory_info().rss / 2**20)
    return {"tensors": tensors, "memory": memory}


class Whole(LwF):
    """LwF that looks, at the end of each backward, which share of the model's weights is whole."""

    def before_task(self, model, task):
        sizes = {p: p.numel() for p in model.parameters()}
        self.shares = []

        def look(grad):
            whole = sum(size for p, size in sizes.items() if p.ds_status.name == "AVAILABLE")
            self.shares.append(whole / sum(sizes.values()))

        model.model.embed_tokens.weight.register_hook(look)  # the last gradient
        return super().before_task(model, task)


def whole(processes):
    """The largest share of the weights that is whole at the end of a backward, in a task without and one with a teacher."""
    model, objective, strategy, shares = make_model(), SFT(), Whole(), []
    config = zero(3, stage3_max_reuse_distance=0, stage3_prefetch_bucket_size=0)
    engine = DeepSpeedEngine(make_train(), CPU, processes, config)
    for task in make_tasks(objective, steps=3):
        model = learn(model, task, objective, strategy, engine, lambda session: None)
        shares.append(max(strategy.shares))
    return shares


def answered(processes):
    """What is answered inside a session of ZeRO-3, with weights put together once and, as where they do not fit, in lockstep:
    whether it is what the plain model says, the forwards of this process, and the share of weights that stays whole."""
    model = build_tiny(TinyLM(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2), 0)
    codec = TextCodec(byte_tokenizer(), typed(Prompt, base_layer()["prompt"], "prompt", "worker"))
    examples = [
        Example(id=q, messages=(Message(role="user", content=q),), target="ab", choices=("a", "ab", "ccc"))
        for q in ("x", "a longer question", "yz", "what?", "w" * 30)
    ]
    asked = [r for e in examples for r in (Answer(e, 6), Choice(e, e.choices), Logprobs(e), Sample(e, 6, 1))]
    plain = Answers(codec, 2)(model, asked)
    task = TaskView(name="t", index=0, examples=examples, objective=SFT(), codec=codec, batch_size=2)
    engine, found = DeepSpeedEngine(make_train(), CPU, processes, zero(3)), {}
    with engine.open(model, task, 1) as session:
        for name, fits in (("whole", True), ("lockstep", False), ("again", True)):
            session._fit = lambda weights, fits=fits: fits
            before = session.forwards
            replies = Answers(codec, 2, processes)(session.model, asked)
            same = all(
                (a.text, a.tokens) == (b.text, b.tokens)
                and torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)
                for a, b in zip(replies, plain, strict=True)
            )
            left = sum(p.numel() for p in model.parameters() if p.ds_status.name == "AVAILABLE")
            found[name] = {"same": same, "forwards": session.forwards - before, "left": left}
    return found


def main(settings, result):
    torch.set_num_threads(1)
    processes = start_processes(CPU)
    results = {}
    for name, setting in json.loads(Path(settings).read_text()).items():
        train = make_train(setting.get("micro"), bf16=setting.get("bf16", False), **setting.get("train", {}))
        if setting["engine"] == "torch":
            results[name] = run(TorchEngine(train, CPU), setting)
        elif setting["engine"] == "reopen":
            results[name] = reopen(processes, setting["stage"])
        elif setting["engine"] == "whole":
            results[name] = whole(processes)
        elif setting["engine"] == "answered":
            results[name] = answered(processes)
        else:
            config = zero(setting["stage"], **setting.get("zero", {}))
            results[name] = run(DeepSpeedEngine(train, CPU, processes, config), setting)
    if int(os.environ["RANK"]) == 0:
        Path(result).write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
