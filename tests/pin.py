"""Whether the toolkit still does what it did: `python tests/pin.py [--base COMMIT] [--only WORD]`; about two minutes.

The toolkit as it stood at a commit and as it stands in the working tree each run the cases of `support/pin_cases.py`, in a
copy, with the same libraries, side by side; what the commit gave is kept for the next time. A case is `ok` where both give
the same records (without clocks, places and the hash of the toolkit itself), the same answers, the same tables and, bit for
bit, the same last checkpoint. What is meant to differ stands in MEANT and RENAMED. Exit code 1 where anything else does.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
from pin_cases import all_cases

ROOT = Path(__file__).resolve().parents[1]
CHILD = ROOT / "tests" / "support" / "pin_child.py"
BASE = "dc9a815"
MEANT: dict[str, str] = {
    "record.schema_version": "schema 3",
    "record.regime": "a regime says what it is",
    "record.baseline": "whether an objective is a baseline is said by the record",
    "record.units": "scorers own their words",
    "record.higher_is_better": "scorers own their direction",
    "record.stages": "a stream is a list of stages",
    "record.config.evaluate.probes": "probes are a kind",
    "record.config.stream.then": "streams that come after",
    "record.config.trackers": "trackers are a kind",
    "summary.csv": "the column view is called regime",
}
"""Path, or the beginning of one, that may differ -> why: a commit or a reason. `case: path` is of one case alone."""
RENAMED: dict[str, str] = {
    "record.curves": "record.probes.curves",
    "record.view": "record.regime.name",
}
"""Path in the base's results -> the same today. Of a path below `record.config` the cases of today are renamed too."""
CLOCKS = ("compute_seconds", "wall_seconds", "peak_memory_bytes")
SHOWN = 4
"""Differing paths per case that are printed."""


# the two sides ------------------------------------------------------------------------------------------------------


def checkout(commit: str, folder: Path) -> Path:
    """The tree of a commit."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def assemble(tree: Path, folder: Path) -> Path:
    """The package as it would be installed from a tree: what `package-dir` names, each in its place; the outermost first."""
    with (tree / "pyproject.toml").open("rb") as file:
        places = tomllib.load(file)["tool"]["setuptools"].get("package-dir", {"cl_toolkit": "cl_toolkit"})
    for package, place in sorted(places.items()):
        shutil.copytree(
            tree / place,
            folder / package.replace(".", "/"),
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return folder


def begin(side: Path, cases: Mapping[str, Any]) -> subprocess.Popen:
    """Start one side, whose package lies in `side/package`; it works in `side/work`."""
    work = side / "work"
    work.mkdir()
    (work / "cases.json").write_text(json.dumps(cases))
    settings = {
        "PYTHONPATH": str(side / "package"),
        "CL_TOOLKIT_CACHE": str(side / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with (side / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, CHILD, side / "package"],
            cwd=work,
            env=os.environ | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def kept_place(commit: str, cases: Mapping[str, Any]) -> Path:
    """Where what the base gave is kept: it is the same until the commit, the cases or the libraries are others."""
    import platformdirs

    found = subprocess.run(["git", "-C", ROOT, "rev-parse", commit], capture_output=True, text=True, check=True).stdout
    libraries = sorted(f"{d.metadata['Name']} {d.version}" for d in distributions())
    sources = [path.read_text(encoding="utf-8") for path in (CHILD, CHILD.with_name("pin_cases.py"))]
    known_by = json.dumps([found, cases, sources, libraries, sys.version, platform.processor()])
    return Path(platformdirs.user_cache_dir("cl-toolkit"), "pin", hashlib.sha256(known_by.encode()).hexdigest()[:16])


def run_sides(folder: Path, commit: str, cases: Mapping[str, Any]) -> None:
    """Both sides in `folder/base` and `folder/today`; the base only where it is not kept from another time."""
    kept = kept_place(commit, cases)
    started = {}
    if kept.is_dir():
        (folder / "base").symlink_to(kept)
    else:
        assemble(checkout(commit, folder / "tree"), folder / "base" / "package")
        started["base"] = begin(folder / "base", cases)
    assemble(ROOT, folder / "today" / "package")
    started["today"] = begin(folder / "today", {name: renamed_config(case) for name, case in cases.items()})
    try:
        for name, process in started.items():
            if process.wait() != 0:
                raise SystemExit(f"{name} did not come to its end:\n{(folder / name / 'log').read_text()[-3000:]}")
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    if "base" in started:
        beside = kept.with_name(f"{kept.name}.{os.getpid()}")
        shutil.copytree(folder / "base" / "work", beside / "work")
        with contextlib.suppress(OSError):  # another process was faster
            beside.rename(kept)
        shutil.rmtree(beside, ignore_errors=True)


# what a case gave ---------------------------------------------------------------------------------------------------


def results(side: Path, name: str) -> dict[str, Any]:
    """What is compared of one case, by path."""
    outcome = json.loads((side / "work" / "outcomes.json").read_text())[name]
    out = side / "work" / "out" / name
    found: dict[str, Any] = {"outcome": {key: outcome[key] for key in ("code", "error")}}
    files = sorted((p for p in out.rglob("*") if p.is_file()), key=lambda p: (p.name != "record.json", p))
    for path in files:  # records first: they say most
        place = path.relative_to(out)
        within = "".join(f"{part}/" for part in place.parts[:-1])
        if place.name == "record.json":
            found[f"{within}record"] = timeless(json.loads(path.read_text(encoding="utf-8")))
        elif place.parent.name == "answers":
            found[str(place)] = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        elif place.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                found[str(place)] = [without_clocks(row) for row in csv.DictReader(file)]
    for folder in sorted(out.rglob("checkpoints")):
        last = max(folder.glob("task-*"), key=lambda p: int(p.name.removeprefix("task-")), default=None)
        if last is not None:
            found["weights"] = weights(last / "model.safetensors")
    return found


def without_clocks(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(CLOCKS)}


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A record without clocks, places, checksums and the hash of the toolkit."""
    record = {key: value for key, value in record.items() if key not in ("provenance", "checksum")}
    if "cost" in record:
        record["cost"] = without_clocks(record["cost"])
    if "identity" in record:
        record["identity"] = {key: value for key, value in record["identity"].items() if key != "toolkit"}
    return record


def weights(path: Path) -> dict[str, str]:
    """Name -> type, shape and hash of the bytes of each tensor of a safetensors file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)

    def told(entry: dict[str, Any]) -> str:
        first, last = entry["data_offsets"]
        return f"{entry['dtype']} {entry['shape']} {hashlib.sha256(content[start + first : start + last]).hexdigest()[:12]}"

    return {name: told(entry) for name, entry in header.items()}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all that is neither a dict nor a list; an empty one counts as a value."""
    if isinstance(value, (dict, list)) and value:
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inner:
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


# what differs -------------------------------------------------------------------------------------------------------


def starts(path: str, beginning: str) -> bool:
    """Whether a path is that one or below it."""
    return path == beginning or path.startswith(f"{beginning}.")


def split(path: str) -> tuple[str, str]:
    """(folder of a run, path within its record); other paths stay whole."""
    head, mark, inner = path.rpartition("record.")
    return (head, mark + inner) if mark else ("", path)


def renamed(path: str) -> str:
    """A path of the base as it is called today."""
    head, inner = split(path)
    for old, new in RENAMED.items():
        if starts(inner, old):
            return head + new + inner[len(old) :]
    return path


def is_meant(name: str, path: str) -> bool:
    """Whether MEANT has a path of a case."""
    inner = split(path)[1]
    return any(starts(inner, beginning) or starts(f"{name}: {inner}", beginning) for beginning in MEANT)


def renamed_config(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case with today's keys; methods of a comparison too."""
    new: dict[str, Any] = {}
    for path, value in leaves(dict(case)):
        *before, last = path.split(".")
        inner = before[2:] if before[:1] == ["methods"] else before
        outer = before[: len(before) - len(inner)]
        keys = renamed(".".join(("record", "config", *inner, last))).split(".")[2:]
        _put(new, [*outer, *keys], value)
    return listed_again(new)


def _put(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
    data[keys[-1]] = value


def listed_again(value: Any) -> Any:
    """Lists, which `leaves` has taken apart, as lists."""
    if not isinstance(value, dict):
        return value
    value = {key: listed_again(part) for key, part in value.items()}
    return list(value.values()) if value and all(key.isdigit() for key in value) else value


def differences(name: str, base: dict[str, Any], today: dict[str, Any]) -> list[str]:
    """`path: before -> after` for all that was not meant."""
    old, new = {renamed(path): value for path, value in leaves(base)}, dict(leaves(today))
    found = []
    for path in dict.fromkeys((*old, *new)):
        before, after = (side.get(path, "(nothing)") for side in (old, new))
        same = type(before) is type(after) and before == after
        if not same and not is_meant(name, path):
            found.append(f"{path}: {str(before)[:160]!r} -> {str(after)[:160]!r}")
    if base["outcome"]["code"] != 0 and not found:
        found.append(f"fails on both sides: {base['outcome']['error'][:300]!r}")
    return found


def tell(folder: Path, cases: Iterable[str]) -> int:
    """Print how each case came out; the number of those that differ."""
    wrong = 0
    for name in cases:
        found = differences(name, *(results(folder / side, name) for side in ("base", "today")))
        wrong += bool(found)
        print(f"{'DIFFERENT' if found else 'ok':9} {name}")
        for line in found[:SHOWN]:
            print(f"          {line}")
        if len(found) > SHOWN:
            print(f"          and {len(found) - SHOWN} more")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BASE, help="commit to compare with")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--keep", action="store_true", help="leave both sides' results on disk, and say where")
    options = parser.parse_args()
    cases = {name: case for name, case in all_cases().items() if options.only in name}
    if not cases:
        raise SystemExit(f"no case has {options.only!r} in its name")
    folder = Path(tempfile.mkdtemp(prefix="pin-"))
    try:
        run_sides(folder, options.base, cases)
        wrong = tell(folder, cases)
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(cases)} cases, {wrong} different")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
