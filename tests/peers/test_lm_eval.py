"""Tasks of the harness as a probe: of a live model it reports what the harness finds by itself. Run with `make peers`."""

from __future__ import annotations

import json
import random

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed; `make peers` installs it beside the product")

from files import llama_folder
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from cl_toolkit.check import check
from cl_toolkit.errors import UserError
from cl_toolkit.runs.run import execute
from cl_toolkit.study.cells import load_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and of what it brings
WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
"""
TASKS = {
    "odd_one": """
task: odd_one
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: gold
doc_to_choice: "{{choices}}"
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "say_it": """
task: say_it
output_type: generate_until
doc_to_text: "Say {{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "read_on": """
task: read_on
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{long}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture
def tasks(tmp_path):
    draw = random.Random(0)
    data = tmp_path / "data.jsonl"
    rows = [
        {
            "question": " ".join(draw.choices(WORDS, k=draw.randint(1, 9))),
            "choices": draw.sample(WORDS, 3),
            "gold": draw.randrange(3),
            "long": " ".join(draw.choices(WORDS, k=draw.randint(3, 40))),
        }
        for _ in range(12)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text + COMMON.format(data=data))
    return folder


def config_of(model, folder, **settings):
    probe = {"tasks": [*TASKS], "include": str(folder), "num_fewshot": 2, **settings}
    return load_run({
        "stream": {"name": "skills", "tasks": ["sort"], "train_size": 40, "test_size": 8},
        "model": model,
        "train": {"max_steps": 3, "global_batch_size": 4},
        "evaluate": {"limit": 4, "batch_size": 5, "forgetting_curve": {"schedule": "off"}, "probes": {"lm_eval": probe}},
    })  # fmt: skip


def test_it_finds_what_the_harness_finds(tasks, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    llama_folder(folder)
    record = execute(config_of({"name": str(folder)}, tasks), tmp_path / "run")
    rows = record["probes"]["lm_eval"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    found = TaskManager(include_path=str(tasks), include_defaults=False).load([*TASKS])
    for task in found["tasks"].values():
        task.set_config(key="num_fewshot", value=2)
        task.set_fewshot_seed(seed=1234)
    results = evaluate(theirs, found, bootstrap_iters=100, log_samples=False)["results"]
    at_start = {(row["task"], row["metric"]): row for row in rows if row["trained"] == ""}
    assert {task for task, _ in at_start} == set(TASKS)
    for (task, metric), row in at_start.items():
        assert row["value"] == pytest.approx(results[task][f"{metric},none"], rel=1e-5), (task, metric)
        assert row["n"] == 12
    assert {row["row"] for row in rows} == {0, 1}
    later = {(row["task"], row["metric"]): row["value"] for row in rows if row["row"] == 1}
    assert later.keys() == at_start.keys()
    assert later["read_on", "bits_per_byte"] != at_start["read_on", "bits_per_byte"]["value"]


def test_it_keeps_the_laws_of_probes(tasks):
    results = check("lm_eval", settings={"tasks": ["odd_one", "say_it"], "include": str(tasks), "limit": 3})
    assert {r.law.number: r.seen for r in results if r.passed is False} == {}


def test_what_cannot_be_is_said(tasks, tmp_path):
    tiny = {"name": "tiny-lm", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "warmup": None}
    with pytest.raises(UserError, match=r"evaluate\.probes\.lm_eval\.tasks: .*no_such_task"):
        execute(config_of(tiny, tasks, tasks=["no_such_task"]), tmp_path / "run")
    with pytest.raises(UserError, match=r"lm_eval.* needs a model that gives continues"):
        load_run({
            "model": {"name": "mlp"}, "stream": {"name": "digits"},
            "evaluate": {"probes": {"lm_eval": {"tasks": ["odd_one"]}}},
        })  # fmt: skip
