"""What `import cl_toolkit` offers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine import launch
from cl_toolkit.errors import UserError
from cl_toolkit.registry import OBJECTIVES, STRATEGIES, canonical

if TYPE_CHECKING:
    import pandas

    from cl_toolkit.report.notebook import Plots

Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """The records of a comparison, of several, or of one run, and what follows from them. No model is loaded. folder: where
    they lie, of several the first. notes: what else lies there, and what of the study is missing or damaged. places: the
    folder of each record's run."""

    folder: Path
    records: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()

    def runs(self) -> pandas.DataFrame:
        """A row per run, failed ones too: what it was, where it lies (`report.tidy.runs`)."""
        from cl_toolkit.report import tidy

        return tidy.runs(self.records, self.places)

    def matrix(self) -> pandas.DataFrame:
        """A row per cell of the accuracy matrices: row, after, task, score, chance, ... (`report.tidy.matrix`)."""
        from cl_toolkit.report import tidy

        return tidy.matrix(self.records)

    def answers(self) -> pandas.DataFrame:
        """A row per question and row of the matrix: question, target, answer, score (`report.tidy.answers`)."""
        from cl_toolkit.report import tidy

        return tidy.answers(self.records, self.places)

    def costs(self) -> pandas.DataFrame:
        """A row per run and cost: counts, bytes, seconds (`report.tidy.costs`)."""
        from cl_toolkit.report import tidy

        return tidy.costs(self.records)

    def retention(self) -> pandas.DataFrame:
        """A row per run, task and lag of 10, 100 and 1000 steps: what is left of the task (`report.tidy.retention`)."""
        from cl_toolkit.report import tidy

        return tidy.retention(self.records)

    def fits(self) -> pandas.DataFrame:
        """A row per method and task whose forgetting curve has a fit: form, half-life, interval, R² (`report.tidy.fitted`)."""
        from cl_toolkit.report import tidy

        return tidy.fitted(self.records)

    def autopsy(self) -> pandas.DataFrame:
        """A row per run, stage and past task: of what its score lost, how much was form alone (`report.tidy.autopsy`)."""
        from cl_toolkit.report import tidy

        return tidy.autopsy(self.records)

    @property
    def plot(self) -> Plots:
        """The report's figures in a notebook: `plot.curves()`, `plot.matrix()`, `plot.tradeoff()`."""
        from cl_toolkit.report.notebook import Plots

        return Plots(self.records)

    @property
    def metrics(self) -> pandas.DataFrame:
        """A row per run: method, seed, order, every metric, every cost."""
        from cl_toolkit.report.methods import in_order
        from cl_toolkit.report.reading import trusted
        from cl_toolkit.report.tables import per_run

        return per_run(in_order([trusted(record) for record in self.records]))

    def table(self) -> pandas.DataFrame:
        """A row per method, best first: mean, spread and n of each metric."""
        from cl_toolkit.report.comparison import Comparison

        return Comparison.of(self.records).ranking

    def curves(self) -> pandas.DataFrame:
        """The points of all forgetting curves: method, order, seed, scored, lag, value, ..."""
        import pandas

        return pandas.DataFrame(self._rows("curves"))

    def probe(self, name: str) -> pandas.DataFrame:
        """The rows of a probe of `evaluate.probes`: method, order, seed, and what the probe says."""
        import pandas

        return pandas.DataFrame(self._rows(name))

    def paper(self, folder: str | Path, *, anonymous: bool = False) -> Path:
        """Write vector figures at column width, a table, a paragraph and references for a paper (`report.paper.write`)."""
        from cl_toolkit.report.paper import write

        return write(self.records, Path(folder), sources(self.records), anonymous)

    def _rows(self, probe: str) -> list[dict[str, Any]]:
        keys = ("method", "order", "seed")
        return [{k: r[k] for k in keys} | row for r in self.records for row in r.get("probes", {}).get(probe, ())]


def compare(
    source: Source,
    *,
    methods: Sequence[str] | Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    jobs: int = 1,
    out: str | Path | None = None,
) -> Study:
    """Compare methods on a stream; what is already there is not run again.

    source: the name of a shipped config, a path, or a dict. methods: names to keep, or name -> differences; a strategy in
    it may be a class or an object (with jobs = 1). overrides: `["train.learning_rate=1e-4"]`. Raises UserError for a config
    that cannot work, and when a run failed (the others are finished and on disk).
    """
    from cl_toolkit.study import compare as studies
    from cl_toolkit.study.cells import load_study

    launch.join()
    config = load_study(source, overrides, methods=methods, seeds=seeds)
    folder = Path(out) if out is not None else Path("results") / config.name
    found, failures = studies.compare(
        config, folder, jobs=jobs, say=lambda text: print(f"note: {text}", file=sys.stderr)
    )
    if failures:
        raise UserError("; ".join(f"{f.run} failed: {f.error}" for f in failures))
    return Study(folder, found.records, found.notes, found.places)


def run(
    source: Source,
    *,
    method: str | None = None,
    order: str | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> dict[str, Any]:
    """One run; returns its record. An unfinished run in `out` goes on after its last finished task. With `method` and `order`
    it is the run that `compare` would make of them, in the same folder."""
    from cl_toolkit.runs.run import execute
    from cl_toolkit.study.cells import load_run

    launch.join()
    config = load_run(source, overrides, method, order)
    return execute(config, Path(out) if out is not None else default_folder(config))


def default_folder(config: Any) -> Path:
    """Where `run` puts one run of a config: beside where a comparison would put it."""
    from cl_toolkit.study.compare import run_name

    return Path("results") / config.name / "runs" / run_name(config)


def load(folder: str | Path, *others: str | Path) -> Study:
    """The records of a comparison's folder, or of one run's; of several as one study (`report.joining.join`): they must share
    stream, model and evaluation."""
    from cl_toolkit.report.joining import join, labels
    from cl_toolkit.study.compare import find_records

    folders = [Path(folder), *map(Path, others)]
    found = [find_records(each) for each in folders]
    if not others:
        return Study(folders[0], found[0].records, found[0].notes, found[0].places)
    names = labels(folders)
    joined = join({name: each.records for name, each in zip(names, found, strict=True)})
    notes = [f"{name}: {note}" for name, each in zip(names, found, strict=True) for note in each.notes]
    places = tuple(found[study].places[i] for study, i in joined.origins)
    return Study(folders[0], joined.records, (*joined.notes, *notes), places)


def sources(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Strategy or objective of these runs -> the paper that its code names. Code of one's own, which has no name but a place,
    is not loaded for that."""
    found = {}
    for config in (record.get("config", {}) for record in records):
        named = [(STRATEGIES, name) for name in config.get("strategies") or ()]
        named += [(OBJECTIVES, config["objective"]["name"])] if config.get("objective") else []
        for registry, name in named:
            if name not in found and canonical(name) in registry.names():
                thing = registry.get(name, "report")
                found[name] = getattr(thing, "tags", thing).paper
    return found


def load_model(run: str | Path, after: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) of a run's folder, after a task or, with None, after the last one: in eval mode, on the CPU, with its
    adapters. A net has no tokenizer but a codec: `codec.prompts(examples).inputs` is what the model takes."""
    from cl_toolkit.runs.reload import reload

    found = reload(Path(run), after)
    codec = found.codec()
    return found.model, getattr(codec, "tokenizer", codec)


def export(run: str | Path, out: str | Path, *, merge: bool = False, after: str | None = None) -> Path:
    """Write a run's model as an ordinary folder, which transformers and PEFT load: its weights or its adapter, tokenizer,
    chat template and generation config as they came; a card. merge: one model with the adapter in its weights.
    after: the task after which; None: the last. Raises UserError where `out` holds something or the weights are gone."""
    from cl_toolkit.config.plain_yaml import to_yaml
    from cl_toolkit.models import product
    from cl_toolkit.report.card import card
    from cl_toolkit.runs.checkpoint import room
    from cl_toolkit.runs.reload import reload

    folder = Path(out)
    product.check_place(folder)
    found = reload(Path(run), after)
    kind, record = found.config.kind, found.record
    start = record["provenance"]["model_hash"]
    model, count = product.prepared(found.model, kind, found.config.model.adapter, start, found.inputs(), merge)
    with room(folder), product.fresh(folder) as beside:
        written = product.write_model(model, kind, beside, folder, found.stream.classes, count)
        base = "" if Path(kind.source).is_absolute() else kind.source
        text = card(record, found.done, written, folder.name, base, to_yaml(record["config"]))
        (beside / "README.md").write_text(text, encoding="utf-8")
    return folder


def register(name: str, cls: type) -> type:
    """Make a strategy known by name in this process. A name taken twice is an error."""
    STRATEGIES.register(name, cls)
    return cls
