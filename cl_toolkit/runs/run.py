"""One run: the only place that knows everybody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from cl_toolkit.config.schema import RunConfig
from cl_toolkit.data.store import ExampleStore
from cl_toolkit.data.streams import build_stream
from cl_toolkit.engine.access import scoring_dtype
from cl_toolkit.engine.choose import open_engine
from cl_toolkit.engine.session import LOWER
from cl_toolkit.errors import UserError
from cl_toolkit.learn import learn
from cl_toolkit.measure.evaluate import Evaluator, chance_of, majority, score_of, scorer_of
from cl_toolkit.measure.metrics import NOT_EVALUATED, explain
from cl_toolkit.measure.probes.curves import ForgettingCurves
from cl_toolkit.measure.scorers import score
from cl_toolkit.models import adapters
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.registry import OBJECTIVES, STRATEGIES, made
from cl_toolkit.runs import checkpoint, state
from cl_toolkit.runs.cost import Meter, fresh_cost, peak_memory
from cl_toolkit.runs.events import Events, Listener
from cl_toolkit.runs.fit import check_fit, codec_of
from cl_toolkit.runs.guests import OBJECTIVE, STRATEGY, watched
from cl_toolkit.runs.identity import changed, changed_parts, identity
from cl_toolkit.runs.lock import locked
from cl_toolkit.runs.record import head, now, provenance, stored_record, write_answers
from cl_toolkit.runs.warmup import start_model
from cl_toolkit.seeds import seed_from
from cl_toolkit.strategy import Composed, Strategy, compose
from cl_toolkit.task_view import TaskView
from cl_toolkit.types import Example, Stream, Task

PROBED, LOOKED_AT = 4, 64
"""Each merge is measured on the first training prompts of its task: so many of them, so many tokens of each."""


def execute(
    config: RunConfig, folder: Path, listener: Listener | None = None, expected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train and score one method on one stream; returns the record, which is also `folder/record.json`.

    A finished run in `folder` with the same identity is returned as it is; an unfinished one goes on after its last
    finished task. Raises UserError where the folder holds another run, or another process is at work in it. expected: the
    identity under which a comparison began; where it no longer holds the run is refused, since it would be another one.
    """
    first = int(os.environ.get("RANK", "0")) == 0

    def said(text: str) -> None:
        if listener is not None:
            listener({"event": "note", "text": text})

    threads = torch.get_num_threads()
    config.kind.check(config.model.adapter, config.frozen_base)
    try:
        stream = build_stream(config)
        parts = identity(config, stream)
        if expected is not None and (why := changed_parts(expected, parts)):
            raise UserError(f"{why} since this comparison began; repeat the command when all is as it should be")
        with locked(folder) if first else nullcontext():
            stored = stored_record(folder, said, first)
            if stored is not None:
                if why := changed(stored, config.plain, parts):
                    raise UserError(f"{folder}: holds another run ({why}); choose another --out or move it away")
                if stored["status"] == "finished":
                    return stored
            if first:
                checkpoint.clear_litter(folder)
            return Run(config, folder, listener, stream, parts).execute()
    finally:
        torch.set_num_threads(threads)


def build_strategy(config: RunConfig) -> Strategy:
    """The run's strategies as one."""
    parts = []
    for component in config.strategies:
        if isinstance(component.settings, Strategy):
            part = type(component.settings)(component.settings.config)
        else:
            part = made(
                STRATEGIES.get(component.name, "strategies"), component.settings, f"strategies.{component.name}"
            )
        # of `file.py:Class` the class: no draw depends on where a file lies
        part.name = component.name.rpartition(":")[2]
        if isinstance(component.settings, Strategy) or STRATEGIES.source(component.name) is not None:
            watched(part, STRATEGY, f"strategies.{component.name}")
        parts.append(part)
    return compose(*parts)


class Run:
    """The state of one run. Only process 0 writes."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        listener: Listener | None = None,
        stream: Stream | None = None,
        parts: dict[str, Any] | None = None,
    ):
        self.config, self.folder = config, folder
        self.stream = stream or build_stream(config)
        self.identity = parts or identity(config, self.stream)
        torch.set_num_threads(config.train.num_threads)
        self.engine = open_engine(config.engine, config.train)
        self.writes = self.engine.processes.rank == 0
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
        self.engine.processes.barrier()
        self.events = Events(folder / "events.jsonl" if self.writes else None, listener if self.writes else None)
        self.objective = made(
            OBJECTIVES.get(config.objective.name, "objective.name"), config.objective.settings, "objective.name"
        )
        self.objective.name = config.objective.name
        if OBJECTIVES.source(config.objective.name) is not None:
            watched(self.objective, OBJECTIVE, "objective.name")
        self.strategy = build_strategy(config)
        self.codec = codec_of(config, self.stream)
        self.notes = check_fit(self.codec, self.stream, config)
        self.model = self.load_model()
        self.evaluator = Evaluator(
            self.codec,
            split=config.evaluate.split,
            batch_size=config.evaluate.batch_size,
            max_new_tokens=config.evaluate.max_new_tokens,
            processes=self.engine.processes,
        )
        self.curves = ForgettingCurves(config.evaluate.forgetting_curve, self.evaluator, config.evaluate.limit)
        self.start_parameters = sum(p.numel() for p in self.model.parameters())
        self.start_names = frozenset(self.model.state_dict())
        self.ever_trained: set[str] = set()
        self.adopt(self.fresh_record())
        self.done = 0

    def adopt(self, record: dict[str, Any]) -> None:
        """Go on with this record."""
        self.record = record
        self.meter = Meter(record["cost"], self.engine.device)

    def load_model(self):
        seed = self.config.seed.init
        model = start_model(self.config.kind, seed, self.config.frozen_base, self.stream.classes)
        model = self.objective.equip(model, seed).to(self.engine.device)
        model.scoring_dtype = torch.bfloat16 if self.config.train.bf16 else None
        return model

    def fresh_record(self) -> dict[str, Any]:
        config, stream = self.config, self.stream
        columns = len(stream.scored)
        return {
            **head(config, "running"),
            "provenance": {
                **provenance(self.engine.device, config.train.num_threads, self.engine.processes.world),
                "engine": self.engine.name,
                "model_hash": fingerprint(self.model),
            },
            "identity": self.identity,
            "baseline": self.objective.is_baseline,
            "scoring_dtype": str(scoring_dtype(self.model)).removeprefix("torch."),
            "tasks": [t.name for t in stream.scored],
            "chance": [[NOT_EVALUATED] * columns for _ in range(columns + 1)],
            "majority": [majority(self.scored_on(t)) for t in stream.scored],
            "cut_answers": [[NOT_EVALUATED] * columns for _ in range(columns + 1)],
            "notes": self.notes,
            "answers": {},
            "scorers": [t.scorer for t in stream.scored],
            "units": [scorer_of(t).unit for t in stream.scored],
            "higher_is_better": [scorer_of(t).higher_is_better for t in stream.scored],
            "examples_scored": [len(self.scored_on(t)) for t in stream.scored],
            "matrix": [[NOT_EVALUATED] * columns for _ in range(columns + 1)],
            "anchors": [t.name for t in stream.anchors],
            "anchor_matrix": [[NOT_EVALUATED] * len(stream.anchors) for _ in range(columns + 1)],
            "metrics": {},
            "undefined": {},
            "curves": [],
            "losses": [],
            "adapters": [],
            "cost": fresh_cost(self.engine.device),
            "truncated_prompts": 0,
        }

    # the run ------------------------------------------------------------------------------------------------------

    def execute(self) -> dict[str, Any]:
        self.events("start", fraction=0.0)
        for note in self.notes:
            self.events("note", text=note)
        if state.restore(self):
            self.events("resumed", after=self.done)
        else:
            for i, anchor in enumerate(self.stream.anchors):
                if anchor.train:
                    self.model = self.strategy.after_task(self.model, self.view(anchor, i - len(self.stream.anchors)))
            self.fill_row(0)
        for k in range(self.done, len(self.stream.tasks)):
            if self.stream.regime.restarts and k > 0:
                self.model = self.load_model()
            self.train_task(k)
            self.check_weights(self.stream.tasks[k])
            self.fill_row(self.stream.row_of[k])
            self.done = k + 1
            self.save(k)
        if not self.stream.regime.trained:
            for row in range(1, len(self.record["matrix"])):
                for key in ("matrix", "chance", "cut_answers", "anchor_matrix"):
                    self.record[key][row] = list(self.record[key][0])
        return self.finish()

    def train_task(self, k: int) -> None:
        task, adapter, cost = self.stream.tasks[k], self.config.model.adapter, self.record["cost"]
        position = 0 if self.stream.regime.restarts else k
        self.model = adapters.begin_task(self.model, adapter, position, self.config.seed.init)
        self.model.to(self.engine.device)
        self.evaluator.choices = self.choices_after(self.stream.row_of[k])
        loaded = adapters.loaded(self.model)
        counted: dict[str, int] = {}
        past = [] if self.stream.regime.undefined else list(self.stream.scored[: self.stream.row_of[k] - 1])
        start_step, rollouts, total = cost["steps"], self.objective.rollouts, len(self.stream.tasks)

        def watch(session) -> None:
            cost["steps"] += 1
            if session.step_number % self.config.train.logging_steps == 0 or session.step_number == 1:
                self.log_losses(task, session)
                done = (k + session.step_number / session.steps) / total
                self.events("step", task=task.name, step=cost["steps"], fraction=0.98 * done)
            with self.meter.clock("curves"):
                self.curves.watch(session, task.name, past, cost["steps"], cost["examples"] + session.examples_seen)
            if session.step_number == session.steps:
                counted["trained_parameters"] = session.trained_parameters
                counted["all_parameters"] = session.all_parameters
                self.ever_trained |= session.trained_names
                self.meter.count(session)

        with self.meter.clock("train"), torch.random.fork_rng():
            # dropout draws from the global generator: it starts each task from a seed, so that a stopped run goes on alike
            torch.manual_seed(seed_from(self.config.seed.data, "dropout", k, self.engine.processes.rank))
            self.model = learn(self.model, self.view(task, k), self.objective, self.strategy, self.engine, watch)
            merge_error = self.end_adapter(task)
        sampled = {"rollouts": self.objective.rollouts - rollouts}
        cost["rollouts"] += int(self.engine.processes.sum(sampled)["rollouts"])
        cost["trainable_parameters"] = max(cost["trainable_parameters"], counted["trained_parameters"])
        extra = counted["all_parameters"] - self.start_parameters + self.objective.extra_parameters
        extra += self.strategy.extra_parameters
        cost["extra_parameters"] = max(cost["extra_parameters"], extra)
        self.record["adapters"].append(
            {
                "task": task.name,
                "loaded": loaded,
                "trained": list(loaded)[-1] if adapter else "all weights",
                "frozen": list(loaded)[:-1],
                "afterwards": adapters.FATES[adapter.between_tasks] if adapter else "kept",
                "merge_error": merge_error,
                **counted,
                "steps": cost["steps"] - start_step,
            }
        )

    def end_adapter(self, task: Task) -> float | None:
        """The adapter's life cycle at a task's end; how far merging moved a logit, None where nothing is merged."""
        adapter = self.config.model.adapter
        if adapter is None or adapter.between_tasks != "merge":
            return None
        inputs = self.codec.prompts(task.train[:PROBED]).to(self.engine.device).inputs
        inputs = {name: tensor[:, :LOOKED_AT] for name, tensor in inputs.items()}
        self.model, moved = adapters.merged_with_error(self.model, adapter, inputs)
        return moved

    def view(self, task: Task, index: int) -> TaskView:
        """What the strategies get to see."""
        train, seed = self.config.train, self.config.seed
        return TaskView(
            name=task.name,
            index=index,
            examples=task.train,
            objective=self.objective,
            codec=self.codec,
            score=self.score_by_own_task(),
            batch_size=train.global_batch_size,
            epochs=train.num_train_epochs,
            max_steps=train.max_steps * self.stream.tasks_at_once,
            seeds={"data": seed.data, "memory": seed.memory, "rollout": seed.rollout},
        )

    def score_by_own_task(self):
        """An example is scored by the scorer of the task that it comes from, also when it is rehearsed in another one; more
        is better."""
        tasks = (*self.stream.scored, *self.stream.anchors)
        scorers = {e.id: (t.name, t.scorer, scorer_of(t)) for t in tasks for e in t.train}

        def reward(example: Example, answer: str) -> float:
            found = scorers[example.id]
            return score(*found, example, answer) * (1 if found[2].higher_is_better else -1)

        return reward

    def choices_after(self, row: int) -> tuple[str, ...] | None:
        """What an answer is chosen from once the tasks of so many rows are learned: in a class-incremental stream the choices
        of them all; None: each example's own."""
        if self.config.stream.scenario == "task":
            return None
        seen = (*self.stream.anchors, *(self.stream.scored[:row] if row else self.stream.scored))
        return tuple(dict.fromkeys(choice for t in seen for e in t.train for choice in e.choices))

    # scores -------------------------------------------------------------------------------------------------------

    def scored_on(self, task: Task) -> tuple[Example, ...]:
        return self.evaluator.examples(task, self.config.evaluate.limit)

    @property
    def only_seen(self) -> bool:
        """Whether a row leaves out the tasks to come; of a class-incremental stream their classes cannot be named yet."""
        return self.config.evaluate.tasks == "seen" or self.config.stream.scenario == "class"

    def fill_row(self, row: int) -> None:
        """Score the tasks that this row of the matrix asks for; keep the answers."""
        scored_tasks, anchors = list(self.stream.scored), list(self.stream.anchors)
        if self.stream.regime.restarts and row > 0:
            wanted, anchors = [scored_tasks[row - 1]], []
        elif self.only_seen and self.stream.regime.trained:
            wanted = scored_tasks[:row]
        else:
            wanted = scored_tasks
        self.evaluator.choices = self.choices_after(row)
        with self.meter.clock("evaluate"):
            found = self.evaluator(self.model, [*wanted, *anchors], self.config.evaluate.limit)
        for i, task in enumerate(scored_tasks):
            if task.name in found:
                self.record["matrix"][row][i] = score_of(task, found[task.name])
                if (level := chance_of(found[task.name])) is not None:
                    self.record["chance"][row][i] = level
                self.record["cut_answers"][row][i] = sum(s.cut for s in found[task.name])
        for i, task in enumerate(anchors):
            self.record["anchor_matrix"][row][i] = score_of(task, found[task.name])
        if row and not self.stream.regime.undefined:
            task = scored_tasks[row - 1]
            cost = self.record["cost"]
            self.curves.learned(task, cost["steps"], cost["examples"], found[task.name])
        if self.writes:
            name, checksum = write_answers(self.folder, row, found)
            self.record["answers"][name] = checksum
        self.events("scored", row=row, scores={t.name: score_of(t, found[t.name]) for t in [*wanted, *anchors]})

    def log_losses(self, task: Task, session) -> None:
        norm = session.grad_norm
        self.record["losses"].append(
            {
                "task": task.name,
                "step": session.step_number,
                "learning_rate": session.learning_rate,
                "grad_norm": None if norm is None else float(norm),
                "terms": session.losses,
            }
        )

    def save(self, k: int) -> None:
        """A checkpoint after task k, on disk before anybody goes on."""
        if self.writes:
            state.save(self, k)
        self.engine.processes.barrier()

    def check_weights(self, task: Task) -> None:
        """Nothing is scored or kept that is no longer a number."""
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise UserError(f"task {task.name}: after its last step the weight {name} is no longer finite; {LOWER}")

    def finish(self) -> dict[str, Any]:
        """Metrics, costs, the record on disk."""
        record = self.record
        record["curves"] = self.curves.rows
        record["metrics"], record["undefined"] = explain(record["matrix"], record["higher_is_better"])
        if why := self.stream.regime.undefined:
            record["undefined"] = dict.fromkeys(record["undefined"], why)
        stores = list(find_stores(self.strategy))
        record["cost"]["stored_examples"] = sum(map(len, stores))
        record["cost"]["stored_bytes"] = sum(store.nbytes() for store in stores)
        record["cost"]["peak_memory_bytes"] = peak_memory(self.engine.device)
        record["truncated_prompts"] = len(self.codec.truncated_ids)
        record["provenance"]["finished"] = now()
        record["status"] = "finished"
        if self.writes:
            checkpoint.write_checked(self.folder / "record.json", record)
        self.events("finished", fraction=1.0, acc=record["metrics"]["acc"])
        return record


def find_stores(strategy: Strategy) -> list[ExampleStore]:
    """The example stores that strategies hold: what they keep is measured, not declared."""
    parts = strategy.parts if isinstance(strategy, Composed) else (strategy,)
    return [value for part in parts for value in vars(part).values() if isinstance(value, ExampleStore)]
