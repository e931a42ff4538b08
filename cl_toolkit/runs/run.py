"""One run: the sequence of its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cl_toolkit.config.schema import RunConfig
from cl_toolkit.data.facts import facts_of
from cl_toolkit.data.splits import ById
from cl_toolkit.data.streams import build_stream
from cl_toolkit.engine import launch
from cl_toolkit.engine.choose import open_engine
from cl_toolkit.errors import UserError
from cl_toolkit.learn import learn
from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.exam import Exam
from cl_toolkit.measure.matrix import Matrix
from cl_toolkit.measure.metrics import explain
from cl_toolkit.measure.probe import due
from cl_toolkit.measure.scorers import score
from cl_toolkit.measure.validation import Validation
from cl_toolkit.models import adapters
from cl_toolkit.models.beginnings import passed
from cl_toolkit.models.documents import check_apart
from cl_toolkit.runs import checkpoint, events, forks, growth, resume, rows, state
from cl_toolkit.runs.asked import Asked
from cl_toolkit.runs.cost import Meter, peak_memory
from cl_toolkit.runs.fit import check_fit, check_weights, codec_of, first_inputs, found_to_fit, ready, writer_of
from cl_toolkit.runs.identity import changed, changed_parts, identity
from cl_toolkit.runs.lock import locked
from cl_toolkit.runs.parts import build_objective, build_probes, build_strategy, build_trackers, find_stores, told
from cl_toolkit.runs.profile import profiled
from cl_toolkit.runs.record import (
    add_losses,
    add_stage,
    fresh_record,
    now,
    run_folder,
    stored_record,
)
from cl_toolkit.runs.standing import standing_of
from cl_toolkit.runs.tracker import Place
from cl_toolkit.runs.warmup import start_model
from cl_toolkit.seeds import seed_from
from cl_toolkit.task_view import TaskView
from cl_toolkit.types import Example, Stage, Stream, Task

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.engine.session import Session
    from cl_toolkit.objective import Objective


def execute(
    config: RunConfig,
    folder: Path,
    listener: events.Listener | None = None,
    expected: Mapping[str, Any] | None = None,
    profile: bool = False,
    shared: Path | None = None,
) -> dict[str, Any]:
    """Train and score one method on one stream; returns the record, which is also `folder/record.json`.

    A finished run in `folder` with the same identity is returned as it is; an unfinished one goes on after its last
    finished task, and one on the first tasks of this stream goes on with the others. Raises UserError where the folder holds
    another run, or another process is at work in it. expected: the identity under which a comparison began; where it no
    longer holds the run is refused, since it would be another one. profile: write a trace of a few steps (`runs.profile`).
    shared: a folder of the comparison, where its runs leave what others need not do again.
    """
    first = launch.rank() == 0

    def said(text: str) -> None:
        if listener is not None:
            listener(events.Note(text=text))

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
                if why := growth.obstacle(stored, folder, config, stream, parts):
                    raise UserError(f"{folder}: holds another run ({why}); choose another --out or move it away")
                if stored["status"] == "finished" and changed(stored, config.plain, parts) is None:
                    if profile:
                        said(f"profile: {folder} holds the finished run, so nothing is trained; choose another --out")
                    return stored
            if first:
                checkpoint.clear_litter(folder)
            run = Run(config, folder, listener, stream, parts, shared)
            run.profiling = profile and first
            return run.execute()
    finally:
        torch.set_num_threads(threads)


class Run:
    """The state of one run. Only process 0 writes."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        listener: events.Listener | None = None,
        stream: Stream | None = None,
        parts: dict[str, Any] | None = None,
        shared: Path | None = None,
    ):
        self.config, self.folder, self.shared = config, folder, shared
        self.stream = stream or build_stream(config)
        self.identity = parts or identity(config, self.stream)
        torch.set_num_threads(config.train.num_threads)
        self.engine = open_engine(config.engine, config.train)
        self.writes = self.engine.processes.rank == 0
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
        self.engine.processes.barrier()
        self.trackers = build_trackers(config) if self.writes else []
        log = events.Log(folder / "events.jsonl")
        self.events = events.Events(*([log, listener, *self.trackers] if self.writes else []))
        self.objective = build_objective(config.objective)
        self.others = [(part.objective, build_objective(part.objective)) for part in config.then]
        self.strategy = build_strategy(config)
        self.codec = codec_of(config, self.stream, writer_of(config, self.engine.device))
        self.notes = check_fit(self.codec, self.stream, config)
        self.model = self.load_model()
        if config.train.packing is not None:
            check_apart(self.model, f"train.packing: {config.train.packing}")
        self.answers = Answers(self.codec, config.evaluate.batch_size, self.engine.processes)
        self.asked = Asked(self, shared and shared / "answers")
        self.exams = {task.name: Exam.of(task, config.evaluate) for task in self.stream.all_tasks}
        who = self.strategy.validating
        self.validation = Validation(self.answers, self.stream.anchors, config.evaluate) if who else None
        self.notes += self.validation.notes(who) if self.validation else []
        self.matrix, self.probes = Matrix(), build_probes(config)
        self.start_parameters = sum(p.numel() for p in self.model.parameters())
        self.start_names = frozenset(self.model.state_dict())
        self.ever_trained: set[str] = set()
        self.adopt(fresh_record(self))
        self.tasks_done, self.profiling = 0, False

    def adopt(self, record: dict[str, Any]) -> None:
        """Go on with this record."""
        self.record = record
        self.meter = Meter(record["cost"], self.engine.device)

    def objective_of(self, task: Task) -> Objective:
        """How a task is learned."""
        return next((made for component, made in self.others if component == task.objective), self.objective)

    def load_model(self) -> nn.Module:
        """The start model, on the device."""
        config, seed = self.config, self.config.seed.init
        model = start_model(config.kind, seed, config.frozen_base, self.stream.classes)
        return ready(self.objective.equip(model, seed), self.engine)

    # the sequence -------------------------------------------------------------------------------------------------

    def execute(self) -> dict[str, Any]:
        """All stages that are not done yet. Trackers are open meanwhile."""
        config = self.config
        place = Place(self.folder, config.name, f"{config.method}/{run_folder(self.record)}", config.plain)
        with ExitStack() as stack:
            for tracker in self.trackers:
                tracker.open(place)
                stack.callback(tracker.close)
            return self.stages()

    def stages(self) -> dict[str, Any]:
        """The sequence: the start model's row, then stage after stage."""
        self.events(events.Started(method=self.config.method, seed=self.config.plain["seed"], config=self.config.plain))
        for note in self.notes:
            self.events(events.Note(text=note))
        if resume.restore(self):
            self.events(events.Resumed(after=self.tasks_done))
        else:
            for i, anchor in enumerate(self.stream.anchors):
                if anchor.train:
                    view = self.view(anchor, i - len(self.stream.anchors), self.objective)
                    self.model = self.strategy.after_task(self.model, view)
            rows.fill_row(self, 0)
        for k in range(self.tasks_done, len(self.stream.stages)):
            stage = self.stream.stages[k]
            if stage.fresh and k > 0:
                self.model = self.load_model()
            self.train(stage, k)
            check_weights(self.model, stage.task)
            rows.fill_row(self, stage.row, stage)
            self.tasks_done = k + 1
            self.save(k)
            self.events(
                events.TaskEnded(
                    task=stage.task.name, index=k, step=self.record["cost"]["steps"], cost=self.record["cost"]
                )
            )
        if not self.stream.regime.trained:
            for row in range(1, len(self.record["matrix"])):
                for key in ("matrix", "chance", "cut_answers", "anchor_matrix"):
                    self.record[key][row] = list(self.record[key][0])
        return self.finish()

    @property
    def base_in_bf16(self) -> bool:
        """Whether the weights under an adapter are kept as autocast would cast them at each forward."""
        frozen = self.config.frozen_base and self.config.model.adapter is not None
        return bool(frozen and self.engine.train.bf16 and self.engine.mixes_dtypes)

    def train(self, stage: Stage, k: int) -> None:
        """Learn what a stage trains; its adapter and its costs go into the record."""
        task, adapter, cost = stage.task, self.config.model.adapter, self.record["cost"]
        objective = self.objective_of(task)
        view = self.view(task, k, objective, stage.tasks_at_once)
        examples = partial(passed, self.model, view)
        self.model = adapters.begin_task(self.model, adapter, self.stream.position(k), self.config.seed.init, examples)
        self.model.to(self.engine.device)
        if self.base_in_bf16:
            adapters.frozen_in_bf16(self.model)
        loaded, started = adapters.loaded(self.model), cost["steps"]
        counted: dict[str, int] = {}
        fork = forks.of_run(self, k, counted)
        strategy, engine = (fork, fork.engine) if fork else (self.strategy, self.engine)
        moment = rows.moment_of(self, "step", stage)  # what is the same at every step is looked up once
        rollouts = objective.rollouts + self.strategy.rollouts

        def watch(session: Session) -> None:
            profile_step()
            cost["steps"] += 1
            self.log(session, stage, k)
            if self.probes:
                seen = {f"{key}_seen": cost[key] + getattr(session, f"{key}_seen") for key in ("examples", "tokens")}
                now = replace(moment, step=cost["steps"], **seen)
                if looking := due(self.probes, now):
                    with self.meter.clock("curves"), session.unwatched():
                        rows.look_at(self, now, session.model, looking)
            if session.step_number == session.steps:
                counted["trained_parameters"] = session.trained_parameters
                counted["all_parameters"] = session.all_parameters
                self.ever_trained |= session.trained_names
                self.meter.count(session)

        with self.meter.clock("train"), torch.random.fork_rng(), self.profile() as profile_step:
            # dropout draws from the global generator: it starts each task from a seed, so that a stopped run goes on alike
            torch.manual_seed(seed_from(self.config.seed.data, "dropout", k, self.engine.processes.rank))
            self.events(events.TaskBegan(task=task.name, index=k, of=len(self.stream.stages)))
            self.engine.standing = standing_of(self, k)
            self.model = learn(self.model, view, objective, strategy, engine, watch)
            self.events(events.Learned(task=task.name, index=k))
            noticed = [f"objective {objective.name}: {said}" for said in objective.noticed()]
            for note in [*found_to_fit(self.engine, self.record["notes"]), *noticed]:
                self.record["notes"] = [*self.record["notes"], note]
                self.events(events.Note(text=note))
            merge_error = self.end_adapter(task)
        sampled = {"rollouts": objective.rollouts + self.strategy.rollouts - rollouts}
        cost["rollouts"] += int(self.engine.processes.sum(sampled)["rollouts"])
        extra = counted["all_parameters"] - self.start_parameters
        extra += objective.extra_parameters + self.strategy.extra_parameters
        cost["extra_parameters"] = max(cost["extra_parameters"], extra)
        add_stage(self.record, task.name, adapter, loaded, counted, started, merge_error, told(self.strategy))

    def profile(self) -> AbstractContextManager[Callable[[], None]]:
        """What is called after each step of a stage: of the first one the profiler, where it is asked for."""
        wanted, self.profiling = self.profiling, False
        said = lambda text: self.events(events.Note(text=text))  # noqa: E731
        return profiled(self.folder, self.engine.device, said) if wanted else nullcontext(lambda: None)

    def end_adapter(self, task: Task) -> float | None:
        """The adapter's life cycle at a task's end; how far merging moved a logit, None where nothing is merged."""
        adapter = self.config.model.adapter
        if adapter is None or adapter.between_tasks != "merge":
            return None
        inputs = first_inputs(self.codec, task, self.engine.device)
        self.model, moved = adapters.merged_with_error(self.model, adapter, inputs)
        return moved

    def view(self, task: Task, index: int, objective: Objective, tasks_at_once: int = 1) -> TaskView:
        """What strategies and objective get to see."""
        train, seed = self.config.train, self.config.seed
        return TaskView(
            name=task.name,
            index=index,
            examples=task.train,
            objective=objective,
            codec=self.codec,
            score=self.score_by_own_task,
            batch_size=train.global_batch_size,
            epochs=train.num_train_epochs,
            max_steps=train.max_steps * tasks_at_once,
            seeds={"data": seed.data, "memory": seed.memory, "rollout": seed.rollout},
            wants_logits="logits" in self.strategy.needs,
            processes=self.engine.processes,
            validation=self.validation,
        )

    @cached_property
    def examples(self) -> ById:
        """The training examples of its stream, by id: checkpoints name them, and hold them not."""
        return ById(self.stream.all_tasks, lambda task: facts_of(task, "train").ids)

    @cached_property
    def score_by_own_task(self) -> Callable[[Example, str], float]:
        """An example is scored by the scorer of the task that it comes from, also when it is rehearsed in another one; more
        is better."""
        examples = self.examples

        def reward(example: Example, answer: str) -> float:
            exam = self.exams[examples.task(example.id).name]
            value = score(exam.name, exam.task.scorer, exam.scorer, example, answer)
            return value * (1 if exam.scorer.higher_is_better else -1)

        return reward

    def log(self, session: Session, stage: Stage, k: int) -> None:
        """A step's losses, where it is logged."""
        if session.step_number % self.config.train.logging_steps and session.step_number != 1:
            return
        row = add_losses(self.record, stage.task.name, session)
        done = (k + session.step_number / session.steps) / len(self.stream.stages)
        self.events(
            events.Stepped(
                task=stage.task.name,
                step=self.record["cost"]["steps"],
                losses=row["terms"],
                learning_rate=row["learning_rate"],
                grad_norm=row["grad_norm"],
                seconds=self.record["cost"]["compute_seconds"]["train"],
                fraction=0.98 * done,
            )
        )

    # the end ------------------------------------------------------------------------------------------------------

    def save(self, k: int) -> None:
        """A checkpoint after stage k, on disk before anybody goes on."""
        if self.writes:
            state.save(self, k)
        self.engine.processes.barrier()
        self.events(events.Saved(after=k + 1))

    def finish(self) -> dict[str, Any]:
        """Metrics, costs, the record on disk."""
        record, cost = self.record, self.record["cost"]
        record["metrics"], record["undefined"] = explain(record["matrix"], record["higher_is_better"])
        if why := self.stream.regime.undefined:
            record["undefined"] = dict.fromkeys(record["undefined"], why)
        stores = list(find_stores(self.strategy))
        cost["stored_examples"] = sum(map(len, stores))
        cost["stored_bytes"] = sum(store.nbytes() for store in stores)
        cost["peak_memory_bytes"] = peak_memory(self.engine.device)
        record["truncated_prompts"] = len(self.codec.truncated_ids)
        record["provenance"]["finished"] = now()
        record["status"] = "finished"
        if self.writes:
            checkpoint.write_checked(self.folder / "record.json", record)
        self.events(events.Finished(metrics=record["metrics"], cost=cost, step=cost["steps"]))
        return record
