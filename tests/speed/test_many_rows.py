"""Three tasks of 100,000 rows: how long the first step has to be waited for, and the memory. Run with `make speed`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

pytestmark = pytest.mark.speed
RUN = """
import os, resource, sys, time
from cl_toolkit.cli.app import main
from cl_toolkit.runs.run import Run
def log(self, session, stage, k):
    print("FIRST STEP", time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)
    os._exit(0)
Run.log = log
sys.argv = ["cl-toolkit", "run", sys.argv[1], "--out", sys.argv[2]]
main()
"""


def first_step(config, out, cache):
    """(CPU seconds from the start of the process to its first step, GiB at most)."""
    command = [sys.executable, "-c", RUN, str(config), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CL_TOOLKIT_CACHE": str(cache)}, check=False
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FIRST STEP")] or [done.stderr]
    seconds, gib = line.split()[2:]
    return float(seconds), float(gib)


def test_three_tasks_of_a_hundred_thousand_rows(tmp_path, measured):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(3000)]
    for name in "abc":
        (tmp_path / "data" / name).mkdir(parents=True)
        for split, size in (("train", 100_000), ("test", 100)):
            with (tmp_path / "data" / name / f"{split}.jsonl").open("w") as file:
                for _ in range(size):
                    said = [" ".join(draw.choices(words, k=k)) for k in (25, 8)]
                    turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant"), said, strict=True)]
                    file.write(json.dumps({"messages": turns}) + "\n")
    config = tmp_path / "big.yaml"
    config.write_text(
        f"stream: {{name: jsonl, path: {tmp_path / 'data'}}}\n"
        "model: {name: tiny-lm, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, warmup: null}\n"
        "train: {max_steps: 2, global_batch_size: 8}\n"
        "evaluate: {limit: 10, forgetting_curve: {schedule: 'off'}}\n"
    )
    small = tmp_path / "small.yaml"
    small.write_text(
        config.read_text().replace("name: jsonl", "name: skills").replace(f", path: {tmp_path / 'data'}", "")
    )
    bare = min(first_step(small, tmp_path / f"bare{i}", tmp_path / "cache")[0] for i in range(3))
    seconds, memory = first_step(config, tmp_path / "first", tmp_path / "cache")
    measured("3 x 100,000 rows, first call: to the first step", seconds, "CPU seconds", 60, 1, "s")
    measured("3 x 100,000 rows: memory in all", memory, "GiB", 1.5, 1, "GiB")
    again = [first_step(config, tmp_path / f"again{i}", tmp_path / "cache")[0] for i in range(3)]
    measured("3 x 100,000 rows, second call: to the first step", sorted(again)[1], "CPU seconds", 5, 3, "s")
    measured("of these beyond a run on `skills`", sorted(again)[1] - bare, "CPU seconds", 1, 3, "s")
