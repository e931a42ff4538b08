"""Two processes learn what one does: no example twice or left out, the same losses for every kind of model, data and adapter at
every ZeRO stage; and one may keep the others waiting."""

import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from files import llama_folder
from launched import as_srun, ended, environment, said
from longer import long_but
from once import Results
from tiny import tiny_config
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from cl_toolkit.models.tiny import byte_tokenizer

pytest.importorskip("deepspeed", reason="deepspeed is not installed here (it is for Linux)")
pytestmark = pytest.mark.processes

WORKER = Path(__file__).with_name("runs_worker.py")
STAGES = (0, 1, 2, 3)
EVEN = {"max_steps": 3, "global_batch_size": 8}
UNEVEN = {"max_steps": -1, "num_train_epochs": 1, "global_batch_size": 5}  # of 12: 5, 5, 2
DOCUMENTS = {"name": "cl_toolkit.check.runs:EasyDocuments"}
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0, "vocab_size": 259,
      "eos_token_id": 257, "pad_token_id": 258, "decoder_start_token_id": 258}  # fmt: skip


def at(stage):
    return {"name": "deepspeed", "deepspeed": {"zero_optimization": {
        "stage": stage, "stage3_param_persistence_threshold": 0}}}  # fmt: skip


def adapter(kind, **settings):
    return {"adapter": {"type": kind, "between_tasks": "continue", **settings}}


def kinds(folder):
    """Configs by name, of each kind of model, data and adapter."""
    labelled = {"name": "jsonl", "path": str(folder / "labels"), "tasks": ["a", "b"]}
    bert = {"name": str(folder / "bert"), "head": "classes"}
    rows = {task: {"path": str(folder / f"rows-{task}.csv"), "test_from_train": 4} for task in "ab"}
    replay = {"replay": {"replay_fraction": 0.4}}
    return {
        "uneven": tiny_config(train=UNEVEN, strategies=replay),
        "even": tiny_config(train=EVEN),
        "documents": tiny_config(train=EVEN, stream=DOCUMENTS, objective={"name": "lm", "block_size": 32}),
        "packed": tiny_config(train=EVEN | {"packing": 48}),
        "classes": tiny_config(train=UNEVEN, strategies=replay) | {"stream": labelled, "model": bert},
        "seq2seq": tiny_config(train=UNEVEN) | {"model": {"name": str(folder / "t5"), "head": "seq2seq"}},
        "dora": tiny_config(train=UNEVEN, model=adapter("lora", r=2, use_dora=True)),
        "ia3": tiny_config(train=UNEVEN, model=adapter("ia3")),
        "dataset": tiny_config(train=UNEVEN) | {"stream": {"name": "dataset", "sources": rows}},
        "checkpointed": tiny_config(train=UNEVEN | {"gradient_checkpointing": True}),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of models and of data."""
    folder = tmp_path_factory.mktemp("processes")
    models = {
        "bert": lambda: BertForMaskedLM(BertConfig(vocab_size=259, max_position_embeddings=40, **STILL, **SHAPE)),
        "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    }
    for name, make in models.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    llama_folder(folder / "llama")
    for task, labels in {"a": ("red", "blue"), "b": ("big", "small")}.items():
        (folder / "labels" / task).mkdir(parents=True)
        for split, n in (("train", 12), ("test", 4)):
            rows = [{"input": f"{task}{i}" * (1 + i % 3), "target": labels[i % 2], "choices": labels} for i in range(n)]
            (folder / "labels" / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = [f"what is {i * i},{task}{i}" for i in range(16)]
        (folder / f"rows-{task}.csv").write_text("\n".join(["input,target", *lines]) + "\n")
    return folder


def run_all(world, settings, here):
    """What each of a job's processes has found, by setting and rank."""
    (here / "settings.json").write_text(json.dumps(settings))
    arguments = [str(WORKER), str(here / "settings.json"), str(here / "result.json")]
    if world == 1:
        with (here / "log").open("w") as log:
            code = subprocess.run([sys.executable, *arguments], env=environment(), stdout=log, stderr=log).returncode
        assert code == 0, (here / "log").read_text()[-4000:]
    else:
        codes = ended(as_srun(here, ["-c", START, *arguments]), 900)
        assert codes == [0, 0], said(here, "srun-0")[1][-4000:] + said(here, "srun-1")[1][-2000:]
    found = [json.loads((here / f"result.json.{rank}").read_text()) for rank in range(world)]
    return {name: [mine[name] for mine in found] for name in settings}


START = "import runpy, sys; from cl_toolkit.engine import launch; launch.join(); sys.argv = sys.argv[1:]; " \
        "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip


KINDS = ("uneven", "even", "documents", "packed", "classes", "seq2seq", "dora", "ia3", "dataset", "checkpointed")
RUNS = [*(f"3-{name}" for name in KINDS), "0-uneven", "1-uneven", "2-uneven"]
OFTEN = {"1-uneven", *(f"3-{name}" for name in ("uneven", "packed", "classes", "dora"))}
"""The others are followed in `make test-long`."""


def is_quick(name):
    return name in OFTEN or f"3-{name}" in OFTEN


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    return Results(tmp_path_factory, "processes-1", kinds(folder), is_quick, partial(run_all, 1))


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """Each kind at ZeRO-3, and plain text at all stages."""
    settings = {name: at_stage(name, kinds(folder)) for name in RUNS}
    return Results(tmp_path_factory, "processes-2", settings, is_quick, partial(run_all, 2))


@pytest.fixture(scope="module")
def grid(folder, tmp_path_factory):
    settings = {
        name: at_stage(name, kinds(folder)) for name in (f"{stage}-{kind}" for stage in STAGES for kind in KINDS)
    }
    return run_all(2, settings, tmp_path_factory.mktemp("grid"))


def at_stage(name, configs):
    """The config of `3-uneven`."""
    stage, kind = name.split("-", 1)
    return configs[kind] | {"engine": at(int(stage))}


def check_same(found, one):
    """Law 9 over a whole run."""
    assert len(found["losses"]) == len(one["losses"]) > 4
    for mine, other in zip(found["losses"], one["losses"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    assert found["cost"]["examples"] == one["cost"]["examples"]
    assert found["cost"]["tokens"] == one["cost"]["tokens"]


@pytest.mark.parametrize("name", long_but(OFTEN, RUNS))
def test_two_processes_learn_what_one_does(together, alone, name):
    check_same(together[name][0], alone[name.split("-", 1)[1]][0])


@pytest.mark.grid
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_grid_of_kinds(grid, alone, stage, name):
    check_same(grid[f"{stage}-{name}"][0], alone[name][0])


@pytest.mark.parametrize("name", long_but([name for name in KINDS if is_quick(name)], KINDS))
def test_no_example_is_given_twice_or_left_out(together, alone, name):
    """At each step what two processes are given is, put together, what one is given; rehearsed ones too."""
    first, second = (rank["given"] for rank in together[f"3-{name}"])
    one = alone[name][0]["given"]
    assert len(first) == len(second) == len(one)
    for mine, other, whole in zip(first, second, one, strict=True):
        assert mine + other == whole
    if name in ("uneven", "classes"):
        assert {source for step in one for _, source in step} >= {"task", "memory"}
        assert Counter(len(step) for step in one)[2] >= 1  # the last batch of an epoch
        assert any(len(mine) != len(other) for mine, other in zip(first, second, strict=True))


SLOW = """
import time
from cl_toolkit.strategy import Strategy


class Slow(Strategy):
    def state(self):  # asked by the process that writes the checkpoint
        time.sleep(20)
        return {}
"""


@pytest.mark.long
def test_one_process_may_keep_the_others_waiting(tmp_path):
    """Longer than torch lets a process wait: with its patience cut to 12 seconds the job dies, with ours it does not."""
    jobs = {}
    for name, minutes in (("short", 0.2), ("long", 180)):
        here = tmp_path / name
        here.mkdir()
        (here / "slow.py").write_text(SLOW)
        config = tiny_config(
            engine={"timeout_minutes": minutes}, stream={"tasks": ["max"]}, strategies={"slow.py:Slow": {}}
        )
        (here / "c.yaml").write_text(yaml.safe_dump(config))
        jobs[name] = here, as_srun(here, ["-m", "cl_toolkit", "run", "c.yaml", "--out", "out"])
    here, processes = jobs["long"]
    assert ended(processes, 300) == [0, 0], said(here, "srun-0")[1]
    here, processes = jobs["short"]
    assert 1 in ended(processes, 300)
    assert "imed out" in said(here, "srun-0")[1] + said(here, "srun-1")[1]
    assert (
        '"event": "scored", "fraction": -1.0, "row": 1' in (here / "out" / "events.jsonl").read_text()
    )  # all was well until then
