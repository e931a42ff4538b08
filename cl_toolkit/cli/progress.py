"""Live progress of several runs: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


class Progress:
    """A context manager that is called with (run, fraction done or -1, what happens)."""

    def __init__(self, runs: Sequence[str]):
        self.fractions = dict.fromkeys(runs, 0.0)
        self.kept: set[str] = set()  # runs of an earlier call, which say nothing about the time left
        self.live = sys.stderr.isatty()
        self.started = time.monotonic()
        self._last_line: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if self.live and self.fractions:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._all = self._bars.add_task("all", total=len(self.fractions))
            self._tasks = {run: self._bars.add_task(run, total=1.0, visible=False) for run in self.fractions}
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live and self.fractions:
            self._bars.stop()

    def __call__(self, run: str, fraction: float, what: str) -> None:
        if run not in self.fractions:
            return
        if fraction >= 0:
            self.fractions[run] = fraction
        if what == "already there":
            self.kept.add(run)
        if self.live:
            over = fraction >= 1
            self._bars.update(self._tasks[run], completed=self.fractions[run], visible=not over, description=run)
            self._bars.update(self._all, completed=sum(self.fractions.values()))
        else:
            self._line(run, what)

    def say(self, text: str) -> None:
        """A sentence beside the bars."""
        if self.live and self.fractions:
            self._bars.console.print(f"note: {text}", markup=False, highlight=False)
        else:
            print(f"note: {text}", file=sys.stderr, flush=True)

    def _line(self, run: str, what: str) -> None:
        """At most one line per run and quarter, and one at its end."""
        fraction = self.fractions[run]
        quarter = int(fraction * 4) / 4
        if what in ("already there", "failed", "finished") or quarter > self._last_line.get(run, 0.0):
            if self._last_line.get(run) == 1.0:
                return
            self._last_line[run] = 1.0 if fraction >= 1 else quarter
            now = [f for name, f in self.fractions.items() if name not in self.kept]
            done = sum(now) / max(1, len(now))
            elapsed = time.monotonic() - self.started
            left = f", about {elapsed * (1 - done) / done:.0f} s left" if 0 < done < 1 else ""
            state = what if fraction >= 1 else f"{fraction:.0%}"
            print(f"[{elapsed:5.0f} s] {run}: {state}{left}", file=sys.stderr, flush=True)
