"""The tables of choosing.md, REPRODUCIBILITY.md and README.md, from the registry, tags and measured studies.

python docs/choosing.py                     writes the tables
python docs/choosing.py results/my-study    first puts a study's numbers into docs/measured/
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from cl_toolkit.api import load
from cl_toolkit.cli.show import first_line
from cl_toolkit.registry import OBJECTIVES, STRATEGIES, Registry
from cl_toolkit.report.comparison import BWT, Comparison
from cl_toolkit.report.estimate import LEVEL
from cl_toolkit.report.reading import number
from cl_toolkit.strategy import LIFE_CYCLES

ROOT = Path(__file__).parents[1]
PAGES = (Path(__file__).with_name("choosing.md"), ROOT / "REPRODUCIBILITY.md", ROOT / "README.md")
MEASURED = Path(__file__).with_name("measured")
METRICS = ("acc", "bwt", "learning_accuracy")


def measure(folder: Path) -> pd.DataFrame:
    """A row per method of a study: its strategies, mean and standard deviation of the metrics, and the paired difference to
    its control in BWT with the 95 % interval over n orders, or over n seeds of one order, and the report's p, which is
    corrected for all of its comparisons."""
    comparison = Comparison.of(load(folder).records)
    rows = []
    for method, runs in comparison.methods.items():
        row = {"method": method, "strategies": "+".join(runs[0]["config"]["strategies"]), "n": len(runs)}
        for metric in METRICS:
            values = pd.Series([number(run, f"metrics.{metric}") for run in runs])
            row |= {metric: values.mean(), f"{metric}_sd": values.std()}
        control, _ = comparison.controls.get(method, (None, ""))
        found = comparison.against_control(method, BWT) if control and row["strategies"] else None
        if found is not None and found.estimate is not None:
            estimate = found.estimate
            row |= {"control": control, "difference": estimate.mean, "low": estimate.low, "high": estimate.high}
            row |= {"n": estimate.n, "p": found.corrected}
        rows.append(row)
    return pd.DataFrame(rows).round(4)


def verdict(row: pd.Series) -> str:
    """`less (+0.41: +0.35 to +0.47, n=3; p 0.012)`: what a strategy does to forgetting, against its control; without p where
    there are too few runs."""
    if pd.isna(row.get("difference")):
        return "–"
    word = ("less" if row["difference"] > 0 else "more") if row["p"] <= LEVEL else "no clear difference"
    found = f"{row['difference']:+.2f}: {row['low']:+.2f} to {row['high']:+.2f}, n={row['n']:.0f}"
    return f"{word} ({found}" + (f"; p {row['p']:.2g})" if pd.notna(row["p"]) else ")")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def methods_table() -> str:
    """Every strategy and objective: what it does, and its source."""
    rows = []
    for registry in (OBJECTIVES, STRATEGIES):
        for name in built_in(registry):
            cls = registry.get(name, "choosing")
            source = cls.tags.paper if registry is STRATEGIES else cls.paper
            linked = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[\1](https://arxiv.org/abs/\1)", source)
            rows.append([f"`{name}`", registry.kind, first_line(cls).replace("|", "\\|"), linked])
    return markdown(["name", "kind", "what it does", "source"], rows)


def built_in(registry: Registry) -> list[str]:
    """Names that are neither a guest's nor another package's."""
    return [name for name in registry if registry.source(name) is None]


def cost_table() -> str:
    """What each strategy needs, from its tags."""
    rows = []
    for name in built_in(STRATEGIES):
        tags = STRATEGIES.get(name, "choosing").tags
        cycles = ("any",) if tags.life_cycles == LIFE_CYCLES else [c for c in tags.life_cycles if c]
        without = [", or none" if cycles else "none"] if None in tags.life_cycles else []
        adapter = "".join([" or ".join(cycles), *without])
        rows.append(
            [
                f"`{name}`",
                "yes" if tags.needs_examples else "no",
                adapter,
                " ".join(sorted(tags.needs)) or "nothing",
                str(tags.cost) or "none",
                tags.extra_memory or "none",
                " ".join(map(str, tags.zero_stages)),
            ]
        )
    header = [
        "strategy",
        "stores examples",
        "adapter",
        "needs of the objective",
        "extra cost",
        "extra memory",
        "ZeRO",
    ]
    return markdown(header, rows)


def measured_table(name: str) -> str:
    """What each method of a study did, from its numbers."""
    frame = pd.read_csv(MEASURED / f"{name}.csv")
    rows = []
    for _, row in frame.iterrows():
        cells = [f"{row[m]:.2f} ± {row[f'{m}_sd']:.2f}" if pd.notna(row[m]) else "–" for m in METRICS]
        control = row["control"] if pd.notna(row.get("control")) else "–"
        rows.append([row["method"], *cells, control, verdict(row)])
    return markdown(["method", "final accuracy", "BWT", "learning accuracy", "control", "forgets"], rows)


def page(text: str) -> str:
    """The page with its tables made anew; what stands between a table's two marks is replaced."""
    tables = {
        "costs": cost_table(),
        "methods": methods_table(),
        **{path.stem: measured_table(path.stem) for path in sorted(MEASURED.glob("*.csv"))},
    }
    for name, table in tables.items():
        start, stop = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(stop)
        if found:
            text = f"{before}{start}\n{table}\n{stop}{after}"
    return text


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder = Path(argument)
        measure(folder).to_csv(MEASURED / f"{folder.name.removesuffix('-tuned')}.csv", index=False)
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
