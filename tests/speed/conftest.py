"""Figures of speed: each is printed, held to its bound, and written to the file that SPEED_RESULTS names."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

FOUND: list[dict] = []
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "trl", "lm-eval", "avalanche-lib")


@pytest.fixture
def measured() -> Iterator[Callable]:
    """`measured(what, value, against, bound, n, unit)` notes a figure; when the test is over it is held to its bound (None:
    there is none).

    unit: "x" for a ratio to `against`, medians of n interleaved rounds.
    """
    missed = []

    def note(what: str, value: float, against: str, bound: float | None, n: int, unit: str = "x") -> None:
        FOUND.append({"what": what, "value": value, "unit": unit, "against": against, "bound": bound, "n": n})
        print(f"\n{what}: {value:.3f} {unit} {against}, at most {bound}, n = {n}")
        if bound is not None and value > bound:
            missed.append(f"{what}: {value:.3f} {unit} {against}, at most {bound}")

    yield note
    assert not missed


def device() -> str:
    """What it was measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, one thread"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def pytest_sessionfinish() -> None:
    if FOUND and (path := os.environ.get("SPEED_RESULTS")):
        head = {"date": datetime.now(UTC).date().isoformat(), "device": device(), "versions": versions()}
        Path(path).write_text(json.dumps({**head, "figures": FOUND}, indent=1) + "\n", encoding="utf-8")
