"""What the host does beside the model: text to tokens, rows to batches, data from disk. Ratios of medians of CPU time, in turns
in one process, one thread. Run with `make speed`."""

from __future__ import annotations

import gc
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import pytest
import torch
from pieces import ask, byte_codec
from timing import llama
from torch import nn

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data import streams
from cl_toolkit.data.kept import cache_dir
from cl_toolkit.data.streams import build_stream
from cl_toolkit.engine.sections import Train
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.learn import learn
from cl_toolkit.models.tiny import TinyLM
from cl_toolkit.runs.run import execute
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategy import compose
from cl_toolkit.study.cells import load_run
from cl_toolkit.task_view import TaskView

pytestmark = pytest.mark.speed


def ratios(arms, repeats):
    """The median over rounds of an arm's CPU seconds over those of the first arm in the same round, since a processor's speed
    drifts; the first round does not count. An arm is what makes what is timed."""
    times = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name, make in arms.items():
            run = make()
            gc.collect()
            started = time.process_time()
            run()
            if repeat:
                times[name].append(time.process_time() - started)
    first, found = next(iter(times.values())), {}
    print()
    for name, spent in times.items():
        shares = [mine / bare for mine, bare in zip(spent, first, strict=True)]
        low, found[name], high = statistics.quantiles(shares, n=4)
        print(
            f"{name}: {statistics.median(spent):.4f} s, ratio {found[name]:.3f} [{low:.3f}, {high:.3f}], n = {repeats}"
        )
    return found


def engine(**changes):
    return TorchEngine(typed(Train, {**base_layer()["train"], **changes}, "train", "test"), torch.device("cpu"))


def texts(count, half, seed=0):
    """Conversations of `half` + `half` tokens of bytes, marks included."""
    rng = random.Random(seed)
    question, answer = ("".join(rng.choices("abcdefgh ijk", k=count * (half - n))) for n in (2, 1))
    return [
        ask(question[i * (half - 2) : (i + 1) * (half - 2)], answer[i * (half - 1) : (i + 1) * (half - 1)] or "a")
        for i in range(count)
    ]


def sft_arms(model, steps, rows, half):
    """A bare loop that is given tensors, and the page with the real codec: tokens made in it, and tokens that are there."""
    examples = texts(steps * rows, half)
    codec = byte_codec()
    batch = codec.batch(examples)
    assert batch.labels.shape == (steps * rows, 2 * half)

    def page(codec):
        objective, trained, torch_engine = SFT(), model(), engine()
        task = TaskView(name="t", index=0, examples=examples, objective=objective, codec=codec, batch_size=rows)
        return lambda: learn(trained, task, objective, compose(), torch_engine, lambda session: None)

    def bare():
        trained = model().train()
        return lambda: loop(trained)

    def loop(trained):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-4, weight_decay=0.0)
        order = torch.randperm(len(examples))
        for step in range(steps):
            some = order[step * rows : (step + 1) * rows]
            ids, mask, labels = (t[some] for t in (*batch.inputs.values(), batch.labels))
            logits = trained(input_ids=ids, attention_mask=mask).logits
            nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return {"bare": bare, "first epoch": lambda: page(byte_codec()), "later epochs": lambda: page(codec)}


def test_a_step_with_the_real_codec_on_a_tiny_llama(measured):
    torch.set_num_threads(1)
    found = ratios(sft_arms(lambda: TinyLM().load(0), 100, 8, 24), 9)
    measured("step of tiny-lm, 8 x 48, tokenising included", found["first epoch"], "bare loop", 1.05, 9)
    measured("step of tiny-lm, 8 x 48, tokens kept", found["later epochs"], "bare loop", 1.04, 9)


def test_a_step_with_the_real_codec_on_a_small_llama(measured):
    torch.set_num_threads(1)
    found = ratios(sft_arms(llama, 6, 16, 64), 9)
    measured(
        "step of a Llama of 1 M weights, 16 x 128, tokenising included", found["first epoch"], "bare loop", 1.02, 9
    )


def test_a_stream_of_arrays(measured):
    """Permuted digits through a whole run; only its training is timed, and of a bare loop over tensors the same steps."""
    torch.set_num_threads(1)
    train = {"num_train_epochs": 5, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    config = load_run(
        {
            "stream": {"name": "digits", "protocol": "permuted", "permutations": 5},
            "model": {"name": "mlp", "hidden_size": 256},
            "train": train,
            "evaluate": {"forgetting_curve": {"schedule": "off"}},
        }
    )
    tasks = [
        (torch.stack([e.x for e in t.train]), torch.tensor([e.y for e in t.train])) for t in build_stream(config).tasks
    ]

    def bare():
        model = config.kind.load(0).train()
        started = time.process_time()
        for x, y in tasks:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            for _ in range(5):
                for rows in torch.randperm(len(x)).split(32):
                    nn.functional.cross_entropy(model(x[rows]).logits, y[rows]).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        return time.process_time() - started

    def product():
        with tempfile.TemporaryDirectory() as folder:
            return execute(config, Path(folder))["cost"]["compute_seconds"]["train"]

    pairs = [(product(), bare()) for _ in range(10)][1:]
    low, typical, high = statistics.quantiles([ours / plain for ours, plain in pairs], n=4)
    print(f"\nhalf of the ratios in [{low:.3f}, {high:.3f}]")
    measured("training of an MLP through a run, batches of 32", typical, "bare loop", 1.35, len(pairs))


def test_rows_are_read_in_a_few_times_what_their_json_takes(tmp_path, measured):
    place = tmp_path / "task" / "train.jsonl"
    place.parent.mkdir()
    words = "one two three four five six seven eight nine ten " * 3
    rows = ({"instruction": f"{i}: {words}", "input": words[:60], "target": words[:50]} for i in range(20_000))
    place.write_text("\n".join(map(json.dumps, rows)))
    (place.parent / "test.jsonl").write_text('{"input": "q", "target": "a"}')
    config = load_run({"stream": {"name": "jsonl", "path": str(tmp_path)}})

    def plain():
        return [json.loads(line) for line in place.read_text().split("\n")]

    def anew():
        shutil.rmtree(cache_dir() / "readings", ignore_errors=True)
        return from_disk()

    def from_disk():
        streams.READ.clear()
        return build_stream(config)

    arms = {"json": lambda: plain, "anew": lambda: anew, "from disk": lambda: from_disk}
    found = ratios({**arms, "again": lambda: lambda: build_stream(config)}, 7)
    measured("rows of JSONL, read, checked and kept", found["anew"], "json.loads of each", 20, 7)
    measured("the same rows in another process", found["from disk"], "json.loads of each", 1, 7)
    measured("the same rows again in a process", found["again"], "json.loads of each", 0.5, 7)
