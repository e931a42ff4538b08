"""Executes whole runs, one after the other, in one process of a job: `runs_worker.py SETTINGS.json RESULT.json`. The settings
are configs by name; the result has each one's losses and the ids that this process was given at each step, `RESULT.<rank>`."""

import json
import sys
import tempfile
from pathlib import Path

from cl_toolkit.engine import launch
from cl_toolkit.engine.session import Session
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

GIVEN = []
SHARE = Session.share


def share(session, examples):
    """What the session gives of a batch, noted: (id, source) of each example, without the fillers."""
    mine = SHARE(session, examples)
    GIVEN.append([[e.id, e.source] for e in mine if e.source != "filler"])
    return mine


def main(settings, result):
    Session.share = share
    found, started = {}, Path(settings).parent
    for name, config in json.loads(Path(settings).read_text()).items():
        GIVEN.clear()
        with tempfile.TemporaryDirectory(dir=started) as own:
            folder = started / f"run-{name}" if launch.world() > 1 else Path(own)
            record = Run(load_run(config), folder).execute()
        losses = [row["terms"] for row in record["losses"]]
        found[name] = {"losses": losses, "given": list(GIVEN), "matrix": record["matrix"], "cost": record["cost"]}
    Path(f"{result}.{launch.rank()}").write_text(json.dumps(found))
    launch.leave(together=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
