"""Text of a record as LaTeX, and the table of results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from cl_toolkit.report.columns import RANKED, cell, more_is_better
from cl_toolkit.report.comparison import ACC, Comparison, Difference
from cl_toolkit.report.estimate import ENOUGH, LEVEL
from cl_toolkit.report.headline import ends_of, no_best

Say = Callable[[str], str]
"""Makes LaTeX of a text of a record."""
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "→": r"$\rightarrow$", "\N{MINUS SIGN}": "$-$", "…": r"\dots{}",
}  # fmt: skip
SCORES = tuple(column for column in RANKED if column.score)
"""The columns of the table."""


def tex(text: object) -> str:
    """A text as LaTeX that shows it and does nothing else: special characters are written out, what cannot be printed is left
    out, and it has one line, so that it cannot end a comment either."""
    plain = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
    return "".join(SPECIAL.get(c, c) for c in plain).replace("--", "-{}-")


def results(comparison: Comparison, say: Say = tex) -> str:
    """The ranking as a table for booktabs: methods best first, references below a rule. The best final score is bold, what the
    report's own tests cannot tell from it is underlined, and a dagger marks what must not be compared with it."""
    arrows = {True: r"$\uparrow$", False: r"$\downarrow$"}
    heads = [f"{column.label} {arrows[more_is_better(column, comparison.lower)]}" for column in SCORES]
    marks = _marks(comparison)
    rows: dict[bool, list[str]] = {True: [], False: []}
    for method, row in comparison.ranking.iterrows():
        cells = [_number(cell(row, column)) for column in SCORES]
        cells[0] = marks.get(method, "%s") % cells[0]
        # the braces keep a name that begins with [ or * from being an argument of the \\ before it
        line = " & ".join([f"{{{say(method)}}}", str(int(row["runs"])), *cells]) + r" \\"
        rows[bool(comparison.regime(method)["is_method"])].append(line)
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{' '.join(_caption(comparison, say))}}}",
        r"\label{tab:results}",
        rf"\begin{{tabular}}{{l{'r' * (len(SCORES) + 1)}}}",
        r"\toprule",
        rf"Method & $n$ & {' & '.join(heads)} \\",
        *(line for group in rows.values() if group for line in (r"\midrule", *group)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _number(text: str) -> str:
    """A cell of the ranking, `-0.20 ± 0.03 (n=2)`, as LaTeX."""
    if text == "-":
        return "--"
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text).replace("±", r"$\pm$").replace("(n=", "($n$=")


def _rivals(comparison: Comparison) -> dict[str, Difference]:
    """What the report says of each other method beside the best; nothing where none is best."""
    best = comparison.best
    if best is None or no_best(comparison, ends_of(comparison)):
        return {}
    return {m: comparison.against_best(m) for m in comparison.methods if (best, m, ACC) in comparison.differences}


def _marks(comparison: Comparison) -> dict[str, str]:
    """Method -> what stands around its final score, which is what the tests compare, with %s for it."""
    rivals = _rivals(comparison)
    marks = {str(comparison.best): r"\textbf{%s}"} if rivals else {}
    for method, difference in rivals.items():
        if difference.barrier:
            marks[method] = r"%s$^\dagger$"
        elif not difference.clear:
            marks[method] = r"\underline{%s}"
    return marks


def _caption(comparison: Comparison, say: Say) -> Iterator[str]:
    yield r"Mean $\pm$ sample standard deviation over $n$ runs; arrows point to better."
    if comparison.best is not None and (why := no_best(comparison, ends_of(comparison))):
        yield f"{say(why)}."
    rivals = _rivals(comparison)
    if rivals:
        few = any(d.estimate is None or not d.estimate.enough for d in rivals.values() if not d.barrier)
        less = f", or fewer than {ENOUGH} seeds or orders" if few else ""
        yield rf"Bold: the best {SCORES[0].label}; underlined: what cannot be told from it (corrected $p > {LEVEL}${less})."
    for method, difference in rivals.items():
        if difference.barrier:
            yield rf"$^\dagger${say(method)} is not compared with it: {say(difference.barrier)}."
