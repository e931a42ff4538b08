"""The real data beside the repository, where it is there: three small tasks run through to a report."""

import os
from pathlib import Path

import pytest

import cl_toolkit as cl
from cl_toolkit.benchmarks.jsonl import Jsonl
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.models.sections import Prompt

FOLDER = Path(os.environ.get("CL_TOOLKIT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
pytestmark = pytest.mark.skipif(
    not (FOLDER / "manifest.json").is_file(),
    reason=f"no data in {FOLDER}; set CL_TOOLKIT_DATA to the folder that has it",
)


@pytest.mark.parametrize("suite", ["tiny", "clinc150", "cl_benchmark", "superni"])
def test_every_task_of_a_suite_can_be_read(suite):
    builder = Jsonl(Jsonl.Config(path=str(FOLDER / suite)))
    names = builder.names()
    assert len(names) >= 9
    prompt = typed(
        Prompt, {**base_layer()["prompt"], "template": "{instruction}\n{input}\n{choices}"}, "prompt", "test"
    )
    for task in builder.tasks(names, prompt):
        assert min(len(task.train), len(task.valid), len(task.test)) > 30
        questions = {split: {e.question for e in getattr(task, split)} for split in ("train", "valid", "test")}
        assert not questions["test"] & (questions["train"] | questions["valid"])
        assert all(e.choices is None or e.target in e.choices for e in task.test)


def test_three_tasks_run_through_to_a_report(tmp_path):
    study = cl.compare(
        {
            "name": "real",
            "stream": {
                "name": "jsonl",
                "path": str(FOLDER / "tiny"),
                "tasks": ["sum", "antonyms", "singular_to_plural"],
                "limit": {"train": 64, "test": 8},
            },
            "model": {"name": "tiny-lm", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
            "train": {"max_steps": 4, "global_batch_size": 16, "logging_steps": 1, "learning_rate": 3e-3},
            "evaluate": {"max_new_tokens": 8, "forgetting_curve": {"schedule": "linear", "every": 2, "examples": 4}},
            "methods": {"sequential": {}, "replay": {"strategies": ["replay"]}},
        },
        out=tmp_path,
    )
    for record in study.records:
        assert record["status"] == "finished"
        assert record["tasks"] == ["sum", "antonyms", "singular_to_plural"]
        assert record["examples_scored"] == [8, 8, 8]
        assert record["truncated_prompts"] == 0
        losses = [row["terms"]["sft"] for row in record["losses"]]
        assert len(losses) == 12
        assert losses[3] < losses[0]
        assert len(record["probes"]["curves"]) == 3 + 4 + 2
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "singular_to_plural" in page
