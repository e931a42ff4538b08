"""The smallest real runs: a one-layer model, a few examples of each skill, a second per run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cl_toolkit.benchmarks.skills import Skills
from cl_toolkit.config import RunConfig
from cl_toolkit.models import fingerprint
from cl_toolkit.runner import Run
from cl_toolkit.study_config import load_run


class EasySkills(Skills):
    """Skills with a scorer that an untrained model satisfies about half of the time, so that rewards differ."""

    def tasks(self, names, prompt=None, repeat=False):
        return [replace(t, scorer=f"{__file__}:even") for t in super().tasks(names, prompt, repeat)]


def even(example, answer):
    """1 for an answer whose bytes add up to an even number."""
    return float(sum(answer.encode()) % 2 == 0)


RFT = {"name": "rft", "num_generations": 3, "max_completion_length": 4}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A study's config as a dict; keyword arguments replace keys of the sections, `train={"max_steps": 2}`."""
    config: dict[str, Any] = {
        "name": "tiny",
        "stream": {"name": f"{__file__}:EasySkills", "tasks": ["max", "last"], "length": 3,
                   "train_size": 12, "valid_size": 4, "test_size": 6},
        "model": {"name": "tiny-lm", "hidden_size": 16, "intermediate_size": 32,
                  "num_hidden_layers": 1, "num_attention_heads": 2},
        "objective": {"name": "sft"},
        "strategies": {},
        "train": {"max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1},
        "evaluate": {"max_new_tokens": 4, "forgetting_curve": {"schedule": "off"}},
    }  # fmt: skip
    for section, value in changes.items():
        both_mappings = isinstance(value, dict) and isinstance(config.get(section), dict)
        config[section] = {**config[section], **value} if both_mappings and section != "objective" else value
    return config


def tiny_run_config(**changes: Any) -> RunConfig:
    return load_run(tiny_config(**changes))


class Trajectory:
    """A finished run: its record, every loss, and a hash of the final weights."""

    def __init__(self, run: Run):
        self.run = run
        self.record = run.execute()
        self.losses = [row["terms"] for row in self.record["losses"]]
        self.weights = fingerprint(run.model)


def trajectory(folder: Path, **changes: Any) -> Trajectory:
    """Run a tiny config in a folder."""
    return Trajectory(Run(tiny_run_config(**changes), folder, None))
