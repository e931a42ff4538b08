"""The paragraph of a paper that says what was run, how it was measured, and what may be claimed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_toolkit.measure.metrics import METRICS
from cl_toolkit.report.choices import choices, sentences, unsearched
from cl_toolkit.report.columns import amount
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.estimate import ENOUGH, LEVEL, mean
from cl_toolkit.report.latex import SCORES, Say
from cl_toolkit.report.likeness import settings
from cl_toolkit.report.reading import Record, life_cycle, lookup, objective
from cl_toolkit.report.references import cited

MEASURED = ("seed", "stream", "prompt", "evaluate", "model.name")
"""Settings that are not a method's own."""
ELSEWHERE = ("checkpoint", "trackers", "engine", "train.logging_steps", "train.per_device_train_batch_size")
"""Settings that change no result that a paper reports, or only its last bits."""


def components(record: Record) -> list[str]:
    """Names of the strategies and of the objective of a run."""
    return [*(lookup(record, "config.strategies") or {}), *filter(None, [objective(record)])]


def setup(comparison: Comparison, papers: Mapping[str, str], say: Say, whole: bool) -> str:
    """The paragraph. papers: component -> the source that it names. whole: with versions and commit of the code."""
    runs = comparison.runs
    sentences = [
        *_stream(runs, say),
        *_model(runs, say),
        *_budget(comparison, say),
        *_methods(comparison, papers, say),
        *_metrics(comparison),
        *_design(comparison),
        *_place(runs, say, whole),
    ]
    return "\\paragraph{Setup.}\n" + "\n".join(sentences) + "\n"


def _values(runs: Sequence[Record], path: str) -> list[Any]:
    """The distinct values of a number or a name."""
    found = [lookup(r, path) for r in runs]
    return list(dict.fromkeys(str(v) for v in found if v is not None))


def _span(numbers: Sequence[int]) -> str:
    """`3`, `2 to 5`."""
    return " to ".join(str(n) for n in dict.fromkeys((min(numbers), max(numbers))))


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _stream(runs: Sequence[Record], say: Say) -> Iterator[str]:
    orders = {str(r["order"]): [say(task) for task in r["tasks"]] for r in runs}
    stream = " and ".join(say(v) for v in _values(runs, "config.stream.name"))
    told = "; ".join(", ".join(tasks) for _, tasks in sorted(orders.items()))
    many = f"in {len(orders)} orders ({told})" if len(orders) > 1 else f"in the order {told}"
    yield f"The stream{f' {stream}' if stream else ''} has {len(next(iter(orders.values())))} tasks, learned {many}."
    sizes = sorted({n for r in runs for n in r.get("examples_scored") or () if n})
    scorers = list(dict.fromkeys(say(name) for r in runs for name in r.get("scorers") or ()))
    split = " and ".join(say(v) for v in _values(runs, "config.evaluate.split"))
    test = f"{split} " if split else ""
    on = f" on {_span(sizes)} {test}examples each" if sizes else ""
    by = f" by {', '.join(scorers)}" if scorers else ""
    yield f"Before training and after each task, tasks are scored{by}{on}."


def _model(runs: Sequence[Record], say: Say) -> Iterator[str]:
    models = " and ".join(say(v) for v in _values(runs, "config.model.name"))
    fates = list(dict.fromkeys(life_cycle(r) for r in runs))
    trained = ["all weights" if fate is None else f"an adapter (between tasks: {say(fate)})" for fate in fates]
    yield f"The model is {models}, of which {' or '.join(trained)} are trained." if models else ""


def _budget(comparison: Comparison, say: Say) -> Iterator[str]:
    runs = comparison.runs

    def told(path: str, before: str, after: str = "") -> str:
        values = [say(v) for v in _values(runs, f"config.train.{path}")]
        return f"{before}{' or '.join(values)}{after}" if values else ""

    steps = [v for v in _values(runs, "config.train.max_steps") if not v.startswith("-")]
    length = f"at most {' or '.join(steps)} optimizer steps" if steps else told("num_train_epochs", "", " epochs")
    parts = [length, told("global_batch_size", "", " new examples a step"), told("optim", "optimizer "),
             told("learning_rate", "learning rate "), told("lr_scheduler_type", "schedule ")]  # fmt: skip
    yield f"Training, for each task: {', '.join(filter(None, parts))}."
    for equal in dict.fromkeys(r["budget"] for r in runs if r.get("budget")):
        yield f"Steps are such that every method gets equally many {say(equal.replace('_', ' '))}."
    rows = {
        m: mean(group, "cost.examples") for m, group in comparison.methods.items() if mean(group, "cost.examples") > 0
    }
    if rows:
        low, high = (amount(pick(rows.values())) for pick in (min, max))
        span = low if low == high else f"{low} to {high}"
        yield f"A run trains on {span} rows in all, rehearsed ones included."


def _methods(comparison: Comparison, papers: Mapping[str, str], say: Say) -> Iterator[str]:
    """What each method is, with the settings in which methods differ."""
    flat = {m: settings(runs[0], (*MEASURED, *ELSEWHERE)) for m, runs in comparison.methods.items()}
    keys = sorted({key for own in flat.values() for key in own})
    differing = [key for key in keys if len({str(own.get(key)) for own in flat.values()}) > 1]
    told = []
    for method, runs in comparison.methods.items():
        own = {key.removeprefix("strategies.").removesuffix(".name"): flat[method].get(key) for key in differing}
        listed = ", ".join(f"{say(key)} {say(value)}" for key, value in own.items() if value not in (None, "{}"))
        found = dict.fromkeys(key for name in components(runs[0]) for key in cited(papers.get(name, "")))
        cite = f"~\\cite{{{','.join(found)}}}" if found else ""
        regime = comparison.regime(method)
        does = "" if regime["is_method"] else f", which {say(regime['does'])}"
        told.append(f"{say(method)}{cite}{does}{f' ({listed})' if listed else ''}")
    yield f"The methods are {'; '.join(told)}."
    yield from _choices(comparison, say)


def _choices(comparison: Comparison, say: Say) -> Iterator[str]:
    found = choices(comparison)
    for choice in found:
        if len(found) > 1:
            yield f"For {', '.join(map(say, choice.own))}:"
        yield from sentences(choice, say)
    if left := unsearched(comparison):
        yield f"Settings were not searched for {', '.join(map(say, left))}."
    if not found:
        yield r"\textbf{[Say how these settings were chosen: the records do not hold it.]}"


def _metrics(comparison: Comparison) -> Iterator[str]:
    yield r"With $R_{t,i}$ the score on task $i$ after task $t$ of $T$ tasks, $t = 0$ before training,"
    metrics = [METRICS[column.key] for column in SCORES]
    parts = [f"{m.label} is ${m.formula}$" + "".join(f"~\\cite{{{key}}}" for key in cited(m.source)) for m in metrics]
    yield f"{', '.join(parts[:-1])}, and {parts[-1]}."
    if comparison.lower:
        yield r"Less is better, so that forgetting is $R_{T,i}$ minus the least of the earlier scores."


def _design(comparison: Comparison) -> Iterator[str]:
    groups = comparison.methods.values()
    n = [len(runs) for runs in groups]
    orders, seeds = ({str(r[key]) for r in comparison.runs} for key in ("order", "seed"))
    places = f"{_counted(len(seeds), 'seed')}, {_counted(len(orders), 'task order')}"
    yield f"There are $n$ = {_span(n)} runs of a method ({places})."
    yield r"We give means $\pm$ sample standard deviations over these runs."
    unit = "seeds of the one task order" if len(orders) == 1 else "task orders, each the mean over its seeds"
    yield (
        f"Methods are compared in pairs of runs that share order and seed, over {unit}: $p$ is the larger one of a two-sided "
        "$t$ test over these and a normal test of the error that test sets of this size leave. Fewer than "
        f"{ENOUGH} give no verdict."
    )
    if comparison.size:
        yield (
            f"The report makes {_counted(comparison.size, 'comparison')}, and a difference is claimed where $p$, corrected for "
            f"all of them by Holm's method~\\cite{{holm1979}}, is at most {LEVEL}."
        )


def _place(runs: Sequence[Record], say: Say, whole: bool) -> Iterator[str]:
    devices = [say(v) for v in _values(runs, "provenance.hardware.device")]
    if devices:
        yield f"Runs were made on {', '.join(devices)}."
    if whole:
        versions = [f"{say(name)} {say(' or '.join(found))}" for name in ("cl-toolkit", "torch", "transformers", "peft")
                    if (found := _values(runs, f"provenance.versions.{name}"))]  # fmt: skip
        commits = [say(v) for v in _values(runs, "provenance.commit")]
        yield f"Versions: {', '.join(versions)}" + (f" (commit {', '.join(commits)})." if commits else ".")
