"""The report's figures in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cl_toolkit.errors import UserError, did_you_mean, listed, quoted
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.curves import STEPS, Since
from cl_toolkit.report.figures import Plot, drawn
from cl_toolkit.report.forgetting import AXES
from cl_toolkit.report.front import Front
from cl_toolkit.report.reading import Record


class Shown(tuple[Plot, ...]):
    """Figures that a notebook shows one below the other, each with how to read it; `shown[0].svg` is the first as SVG."""

    def _repr_html_(self) -> str:
        figure = Markup("<figure><b>{}</b><div>{}</div><figcaption>{}</figcaption></figure>")
        return "".join(figure.format(plot.title, Markup(plot.svg), plot.caption) for plot in self)


@dataclass(frozen=True)
class Plots:
    """What `study.plot` draws of the finished runs: the figures of report.html, one per task order where there are several.
    Raises UserError where the runs allow none."""

    records: Sequence[Record]

    def curves(self, x: str = "steps", fits: bool = False) -> Shown:
        """Forgetting curves: the score on each task, and its loss where it was measured, while the next ones are trained.
        x: what is counted since it was learned, `steps`, `examples` or `tokens`. fits: draw those that may be stated
        (`report.fits`)."""
        if x not in AXES:
            raise UserError(
                f"study.plot.curves: x: expected {listed(list(AXES))}, got {quoted(x)}{did_you_mean(x, AXES)}"
            )
        return self._shown("curves", "losses", since=Since(x, fits))

    def matrix(self) -> Shown:
        """The score on every task after every task, of each method."""
        return self._shown("matrix")

    def kinds(self) -> Shown:
        """Which kind of forgetting: what each task lost of its form, and of what is said (the probe `autopsy`)."""
        return self._shown("kinds")

    def tradeoff(self) -> Shown:
        """Learning against retention, and cost beside accuracy."""
        return self._shown("retention", "cost")

    def front(self, sweep: Sequence[Record] = ()) -> Shown:
        """What was learned against what was lost over all learning rates: of these runs, or of the records of `cl-toolkit tune`
        (`cl.load("results/my-tune").records`)."""
        return self._shown("front", sweep=sweep)

    def _shown(self, *names: str, since: Since = STEPS, sweep: Sequence[Record] = ()) -> Shown:
        comparison = Comparison.of(self.records)
        front = Front.of(comparison, sweep) if "front" in names else None
        found = Shown(drawn(comparison, wanted=names, since=since, front=front))
        if not found:
            raise UserError(f"study.plot: no finished run has what {' and '.join(names)} is drawn of")
        return found
