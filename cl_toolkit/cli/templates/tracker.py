"""One line: where a run's numbers go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cl_toolkit.runs.tracker import Place, Tracker


class MyIdea(Tracker):
    """A line of JSON for each step, in the run's own folder. Replace this by your program."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """file: its name."""

        file: str = "my_idea.jsonl"

    def open(self, place: Place) -> None:
        self._lines = (place.folder / self.config.file).open("a", encoding="utf-8")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._lines.write(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        self._lines.close()
