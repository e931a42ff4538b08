"""What a comparison does once: the time of six methods with two runs at a time against that of their runs alone, and how many
questions a model is asked that stays as it is."""

import time

import pytest
import torch
from pieces import Back

from cl_toolkit.measure.answers import Answers
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run, execute
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.compare import compare

BOUND = 0.55
STUDY = {
    "stream": {"name": "skills", "tasks": ["sort", "parity", "vowels", "max"], "length": 5, "test_size": 100},
    "model": {"name": "tiny-lm", "warmup": None},
    "train": {"max_steps": 60, "num_threads": 1},
    "evaluate": {"max_new_tokens": 8},
    "methods": {
        "sequential": {},
        "replay": {"strategies": {"replay": {}}},
        "power-law": {"strategies": {"power_law": {}}},
        "agem": {"strategies": {"agem": {}}},
        "si": {"strategies": {"si": {}}},
        "lwf": {"strategies": {"lwf": {}}},
    },
}


@pytest.mark.speed
def test_six_methods_by_two_processes(measured, tmp_path):
    study = load_study(STUDY, seeds=[0, 1, 2])
    torch.set_num_threads(1)
    started = time.perf_counter()
    alone = [execute(config, tmp_path / f"{i}") for i, config in enumerate(study.runs)]
    apart = time.perf_counter() - started
    started = time.perf_counter()
    found, failures = compare(study, tmp_path / "study", jobs=2)
    together = time.perf_counter() - started
    assert not failures
    assert [comparable(record) for record in found.records] == [comparable(record) for record in alone]
    measured("a comparison of 18 runs with --jobs 2", together / apart, "against its runs alone, one by one", BOUND, 1)


@pytest.mark.speed
@pytest.mark.parametrize("tasks", [4, 8, 16])
def test_a_model_that_stays_as_it_is_is_asked_once(tasks, measured, tmp_path, monkeypatch):
    """Each of the T + 1 rows asks about all T tasks."""
    config = {
        "stream": {"name": "biography", "groups": tasks, "people": 1, "wordings": 3},
        "model": {
            "name": "tiny-lm",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "warmup": None,
        },
        "train": {"max_steps": 1},
        "evaluate": {"max_new_tokens": 2, "forgetting_curve": {"schedule": "off"}},
        "methods": {"back": {"strategies": {"back": Back}}},
    }
    asked, answer = [], Answers._answered
    monkeypatch.setattr(
        Answers, "_answered", lambda self, model, some: asked.append(len(some)) or answer(self, model, some)
    )
    run = Run(load_study(config).runs[0], tmp_path)
    run.execute()
    whole = (tasks + 1) * sum(len(exam.examples) for exam in run.exams.values())
    measured(
        f"questions to a model that no task changes, T = {tasks}", sum(asked) / whole, "of all", 1.01 / (tasks + 1), 1
    )
