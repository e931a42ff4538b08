"""The rows of newer-arms-clinc150-anchored, out of CLINC150 by domains.

python docs/clinc150_rows.py DOMAINS ROWS

DOMAINS/<domain>/{train,valid,test}.jsonl: a row a request, whose target is its intent in words. ROWS gets the same, each with a
rejected answer (another intent of its domain). Two tasks are for the start model: `shown`, requests of all domains whose input
holds the answer, in the words in which `on_policy` shows one to its teacher; `part`, rows of the stream's own tasks, of which
it knows a part then, so that rewards can be earned.
"""

import json
import random
import sys
from pathlib import Path

from cl_toolkit.strategies.objectives.on_policy import DEMONSTRATION, SOLUTION

START = ("auto_and_commute", "home", "meta", "small_talk", "utility", "work")
TASKS = ("banking", "kitchen_and_dining", "travel")
SHOWN = 700
"""Rows of each domain that are shown, at most."""
PART = 700
"""Rows of each of the stream's tasks that the start model learns, at most."""


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(domains: Path, to: Path) -> None:
    for split in ("train", "valid", "test"):
        rng, shown, part = random.Random(split), [], []
        for domain in (*START, *TASKS):
            rows = read(domains / domain / f"{split}.jsonl")
            intents = sorted({row["target"] for row in rows})
            for row in rows:
                row["rejected"] = rng.choice([intent for intent in intents if intent != row["target"]])
            write(to / domain / f"{split}.jsonl", rows)
            for i, row in enumerate(rng.sample(rows, min(SHOWN, len(rows)))):
                words = (DEMONSTRATION, SOLUTION)[i % 2].format(row["target"])
                shown.append(row | {"task": "shown", "input": row["input"] + words})
            if domain in TASKS:
                part += [row | {"task": "part"} for row in rng.sample(rows, min(PART, len(rows)))]
        write(to / "shown" / f"{split}.jsonl", shown)
        write(to / "part" / f"{split}.jsonl", part)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
