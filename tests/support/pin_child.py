"""One side of `tests/pin.py`: `python pin_child.py PACKAGE`, in a folder with `cases.json`, runs each case.

Everything goes through the command line, which stays as it is while the modules behind it move. `outcomes.json` says how each
case ended: its exit code and what it wrote to standard error where that is not 0.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import yaml
from pin_cases import write_inputs

FIRST = "task-1"
"""The name of the checkpoint after the first task."""


class Stopped(BaseException):
    """The end of a run that is stopped on purpose; no `except Exception` holds it up."""


@contextlib.contextmanager
def stopping():
    """Stop where the first task's checkpoint has got its name."""
    rename = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        rename(source, target, **options)
        if Path(target).name == FIRST:
            raise Stopped

    os.replace = replace
    try:
        yield
    except Stopped:
        return
    finally:
        os.replace = rename
    raise AssertionError("the run was over before it could be stopped")


def call(*arguments: str) -> tuple[int, str]:
    """`python -m cl_toolkit ARGUMENTS` in this process: exit code and standard error."""
    errors = io.StringIO()
    sys.argv = ["cl-toolkit", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module("cl_toolkit", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), errors.getvalue()
    return 0, errors.getvalue()


def run_case(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Run one case into `out/<name>`."""
    stop = config.pop("stop", False)
    path = Path("configs", f"{name}.yaml")
    path.write_text(yaml.safe_dump({"name": name, **config}), encoding="utf-8")
    command = ("compare" if "methods" in config else "run", str(path), "--out", f"out/{name}")
    start = time.perf_counter()
    if stop:
        try:
            with stopping():
                code, errors = call(*command)
        except AssertionError as error:
            return {"code": None, "error": str(error), "seconds": 0.0}
    code, errors = call(*command)
    return {"code": code, "error": errors if code else "", "seconds": round(time.perf_counter() - start, 2)}


def main() -> None:
    import cl_toolkit
    import cl_toolkit.strategies

    package = Path(sys.argv[1]).resolve()
    for module in (cl_toolkit, cl_toolkit.strategies):
        found = Path(module.__file__).resolve()
        if not found.is_relative_to(package):
            raise SystemExit(f"{module.__name__} is {found}, not that in {package}")
    warnings.simplefilter("ignore")
    Path("configs").mkdir()
    write_inputs(Path())
    outcomes = {name: run_case(name, dict(case)) for name, case in json.loads(Path("cases.json").read_text()).items()}
    Path("outcomes.json").write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
