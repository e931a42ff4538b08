"""The laws of strategies and objectives: of how a run with them goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from cl_toolkit.check.law import Broken, Laws, NotApplicable
from cl_toolkit.check.methods import Method
from cl_toolkit.check.runs import TASKS, Trajectory, global_states, stop_after
from cl_toolkit.engine.torch_engine import trainable
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.runs.checkpoint import from_plain, to_plain
from cl_toolkit.runs.events import Event, Learned, TaskBegan
from cl_toolkit.runs.forks import ask_for, forks, key_of
from cl_toolkit.runs.parts import build_strategy, parts_of
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.types import Stream, Task

LAWS = Laws()
law = LAWS.law


def same(mine: Trajectory, other: Trajectory, what: str) -> str:
    """`what`, if two trajectories agree bit for bit."""
    if mine != other:
        raise Broken(mine.first_difference(other))
    return f"{what}: {len(mine.losses)} losses and the final weights are bit-equal"


def apart(whole: Trajectory, other: Trajectory, what: str) -> float:
    """The largest difference of a loss between two trajectories, which must have the same terms. what: of the other one."""
    worst = 0.0
    for mine, theirs in zip(whole.losses, other.losses, strict=True):
        if set(mine) != set(theirs):
            raise Broken(f"{what} the terms are {sorted(theirs)} instead of {sorted(mine)}")
        worst = max(worst, *(abs(mine[name] - theirs[name]) for name in mine))
    return worst


def needs_strategy(subject: Method) -> None:
    if not subject.is_strategy:
        raise NotApplicable("it is an objective")


@law(1, "without past tasks it is sequential training", "a method that changes the first task is compared unfairly")
def first_task(subject: Method) -> str:
    needs_strategy(subject)
    stream = {"tasks": TASKS[:1]}
    return same(subject.trajectory(stream=stream), subject.trajectory(absent=True, stream=stream), "first task")


@law(2, "switched off it is sequential training", "a term that is off must be absent, not multiplied by zero")
def switched_off(subject: Method) -> str:
    needs_strategy(subject)
    off = dict(subject.thing.tags.off)
    if not off:
        raise NotApplicable("its tags name no setting that switches it off")
    same(subject.trajectory(settings=off), subject.trajectory(absent=True), "off")
    mine = subject.trajectory(settings=off, beside=True)
    if mine != subject.trajectory(absent=True, beside=True) or drawn(mine) != drawn(
        subject.trajectory(absent=True, beside=True)
    ):
        raise Broken("while off it draws from another strategy's generator")
    return f"with {off} two tasks are bit-equal, and a neighbour's draws are untouched"


def drawn(trajectory: Trajectory) -> list[float]:
    """What the neighbour drew."""
    strategy = trajectory.run.strategy
    return next(p.drawn for p in getattr(strategy, "parts", (strategy,)) if hasattr(p, "drawn"))


@law(
    3,
    "at a task boundary each penalty is zero, and positive away from it",
    "a penalty keeps what was learned; it has no wishes of its own",
)
def boundary(subject: Method) -> str:
    needs_strategy(subject)
    run = subject.prepare()
    if not run.strategy.uses("penalty"):
        raise NotApplicable("it has no penalty on weights")
    Trajectory(run)
    run.model = adapters.begin_task(run.model, run.config.model.adapter, len(run.stream.tasks), 0)
    view = run.view(run.stream.tasks[0], len(run.stream.tasks), run.objective)
    run.model = run.strategy.before_task(run.model, view)
    weights = trainable(run.model)
    terms = run.strategy.penalty(weights)
    if not terms:
        raise Broken("after two tasks there is no penalty")
    for name, value in terms.items():
        grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True, retain_graph=True)
        slope = max((float(g.abs().max()) for g in grads if g is not None), default=0.0)
        if value.item() != 0.0 or slope != 0.0:
            raise Broken(f"{name} is {value.item():.3g} with a gradient of up to {slope:.3g} at the boundary")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator).to(weight))
    shifted = {name: value.item() for name, value in run.strategy.penalty(weights).items()}
    if min(shifted.values()) <= 0:
        raise Broken(f"after shifting the weights it is {shifted}")
    return f"0 with zero gradient; after a shift of 0.05: {', '.join(f'{v:.3g}' for v in shifted.values())}"


class Guarded(Task):
    """A task that may only be looked at when its turn has come."""

    now: int | None = None
    seen: str | None = None

    def __getattribute__(self, name: str) -> Any:
        if Guarded.now is not None and name in ("train", "valid", "test"):
            index = TASKS.index(object.__getattribute__(self, "name"))
            if name != "train" or index > Guarded.now:
                Guarded.seen = f"looked at {name} of task {index + 1} while task {Guarded.now + 1} was trained"
        return object.__getattribute__(self, name)


@law(
    4,
    "it sees the current training examples only",
    "a look at a test split or at the future makes every number worthless",
)
def look_ahead(subject: Method) -> str:
    run = subject.prepare(stream={"tasks": TASKS})
    tasks = [Guarded(name=t.name, train=t.train, valid=t.valid, test=t.test, scorer=t.scorer) for t in run.stream.tasks]
    run.stream = Stream.of("guarded", tasks)

    def guard(event: Event) -> None:
        if isinstance(event, TaskBegan):
            Guarded.now = event.index
        elif isinstance(event, Learned):
            Guarded.now = None

    Guarded.now, Guarded.seen = None, None
    run.events.listeners.append(guard)
    try:
        run.execute()
    finally:
        Guarded.now = None
    if Guarded.seen:
        raise Broken(Guarded.seen)
    return "three tasks under guard; no other split and no later task was touched"


@law(5, "watching leaves no trace", "a measurement that changes the training measures itself")
def watching(subject: Method) -> str:
    curve = {"schedule": "linear", "every": 1, "examples": 4}
    watched = subject.trajectory(evaluate={"forgetting_curve": curve})
    return same(watched, subject.trajectory(), f"with {len(watched.record['probes']['curves'])} points watched")


@law(
    6,
    "stopped at a task boundary it goes on as if nothing had happened",
    "machines stop; a resumed run must be the same run",
)
def resumed(subject: Method) -> str:
    for bf16 in (False, True):
        how = "in bfloat16: " if bf16 else ""
        changes: dict[str, Any] = {"stream": {"tasks": TASKS}, "train": {"bf16": bf16}}
        whole, run = subject.trajectory(**changes), subject.prepare(**changes)
        stop_after(run, 2)
        try:
            again = Trajectory(Run(run.config, run.folder, None))
        except UserError as error:
            raise Broken(f"{how}the stopped run cannot go on: {error}") from error
        if again != whole:
            raise Broken(
                f"{how}after a stop behind task 2: {again.first_difference(whole)}; is all of its state declared?"
            )
        if comparable(again.record) != comparable(whole.record):
            raise Broken(f"{how}the record differs from the one of the uninterrupted run")
    return "stopped after task 2 of 3 and resumed: the record is bit-equal, in fp32 and in bfloat16"


@law(
    7,
    "the seed decides, and every part draws for itself",
    "otherwise no run can be repeated, and adding a part changes the others",
)
def seeds(subject: Method) -> str:
    drawn_from: list[str] = []

    def watched(seed: int) -> Trajectory:
        run, before = subject.prepare(seed=seed), {}

        def watch(event: Event) -> None:
            if isinstance(event, TaskBegan):
                before.update(global_states())
            elif isinstance(event, Learned):
                drawn_from.extend(name for name, state in global_states().items() if state != before[name])

        run.events.listeners.append(watch)
        return Trajectory(run)

    first, again, other = (watched(seed) for seed in (1, 1, 2))
    if drawn_from:
        raise Broken(f"it draws from the global generator of {drawn_from[0]}; use task.generator(self.name)")
    if first != again:
        raise Broken(f"the same seed twice: {first.first_difference(again)}")
    if first == other:
        raise Broken("another seed gives the same trajectory")
    if drawn(subject.trajectory(beside=True)) != drawn(subject.trajectory(absent=True, beside=True)):
        raise Broken("it draws from another strategy's generator")
    return "equal with the same seed, different with another; no global generator and no neighbour's was touched"


@law(8, "it composes", "whoever stands beside it must not change what it does")
def composes(subject: Method) -> str:
    return same(subject.trajectory(beside=True), subject.trajectory(), "beside a strategy that does nothing")


@law(9, "how a batch is cut does not matter", "otherwise the number of devices becomes a setting of the method")
def micro_batches(subject: Method) -> str:
    if not subject.divisible:
        raise NotApplicable("the objective says that it cannot be cut")
    whole, worst = subject.trajectory(), 0.0
    for size in (1, 3):
        cut = subject.trajectory(train={"per_device_train_batch_size": size})
        worst = max(worst, apart(whole, cut, f"in parts of {size}"))
    if worst > 1e-4:
        raise Broken(f"losses differ by {worst:.2g}; divide sums by part.total, the counts of the whole step")
    return f"micro-batches of 1 and 3 follow the whole batch, largest difference {worst:.1e}"


@law(10, "its state is plain data", "a checkpoint must be readable without running anybody's code")
def plain_state(subject: Method) -> str:
    needs_strategy(subject)
    tensors: dict[str, torch.Tensor] = {}
    try:
        strategy = subject.trajectory().run.strategy
        plain = to_plain(strategy.state(), tensors)
    except TypeError as error:
        raise Broken(str(error)) from error
    fresh = type(strategy)(strategy.config)
    fresh.name = strategy.name
    fresh.load_state(from_plain(plain, tensors))
    again: dict[str, torch.Tensor] = {}
    if to_plain(fresh.state(), again) != plain or any(not torch.equal(tensors[k], again[k]) for k in tensors):
        raise Broken("state -> load_state -> state is not the same")
    return f"{len(tensors)} tensors and plain data, the same after a round trip"


@law(
    11,
    "no hook owns backward, step or zero_grad",
    "a hook that steps breaks accumulation, sharding and every other strategy",
)
def ownership(subject: Method) -> str:
    needs_strategy(subject)
    run = subject.prepare()
    inside: list[str] = []
    touched: list[str] = []

    def watched(name: str, original: Callable) -> Callable:
        def hook(*args: Any, **kwargs: Any) -> Any:
            inside.append(name)
            try:
                return original(*args, **kwargs)
            finally:
                inside.pop()

        return hook

    for name in ("batches", "loss", "penalty", "before_step"):
        if run.strategy.uses(name):
            setattr(run.strategy, name, watched(name, getattr(run.strategy, name)))

    def noted(what: str, original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                touched.append(f"{inside[-1]} calls {what}")
            return original(*args, **kwargs)

        return call

    optimizer = torch.optim.Optimizer
    with (
        mock.patch.object(torch.Tensor, "backward", noted("backward", torch.Tensor.backward)),
        mock.patch.object(optimizer, "zero_grad", noted("zero_grad", optimizer.zero_grad)),
        mock.patch.object(torch.optim.AdamW, "step", noted("step", torch.optim.AdamW.step)),
    ):
        run.execute()
    if touched:
        raise Broken(touched[0])
    return "watched over two tasks"


@law(13, "how rows are packed does not matter", "a setting of speed must not become a setting of the method")
def packed(subject: Method) -> str:
    if not subject.divisible:
        raise NotApplicable("the objective says that it looks at whole rows")
    whole, worst = subject.trajectory(), 0.0
    for train in (
        {"packing": 128},
        {"packing": 128, "per_device_train_batch_size": 1},
        {"gradient_checkpointing": True},
    ):
        try:
            other = subject.trajectory(train=train)
        except UserError as error:
            if "train.packing" in str(error) or "train.gradient" in str(error):
                raise NotApplicable(str(error).split(": ", 1)[1]) from None
            raise
        worst = max(worst, apart(whole, other, f"with {train}"))
    if worst > 1e-4:
        raise Broken(f"losses differ by {worst:.2g}; a row may hold several examples: go by part.asked.examples")
    return f"packed rows, whole and cut, and blocks computed again: largest difference {worst:.1e}"


@law(12, "what is frozen stays", "an adapter method that moves the base model is another method")
def frozen(subject: Method) -> str:
    if subject.is_strategy and not any(subject.thing.tags.life_cycles):
        raise NotApplicable("it takes no adapter, and without one nothing is frozen")
    adapter = subject.adapter or {"r": 2, "lora_alpha": 4, "between_tasks": "continue"}
    run = subject.prepare(model={"adapter": adapter})
    before: dict[str, torch.Tensor] = {}
    moved: list[str] = []

    def compare(event: Event) -> None:
        if isinstance(event, TaskBegan):
            before.clear()
            before.update((n, p.detach().clone()) for n, p in run.model.named_parameters() if not p.requires_grad)
        elif isinstance(event, Learned):
            after = dict(run.model.named_parameters())
            moved.extend(n for n, value in before.items() if n in after and not torch.equal(after[n], value))

    run.events.listeners.append(compare)
    run.execute()
    if moved:
        raise Broken(f"{moved[0]} is frozen and has moved")
    return "with an adapter, every frozen weight is bit-equal after two tasks"


@law(14, "its first task may be trained once with others", "a comparison that shares work must give the same numbers")
def forked(subject: Method) -> str:
    needs_strategy(subject)
    if not all(map(forks, parts_of(build_strategy(subject.config())))):
        raise NotApplicable("its tags do not say that it sees the two ends of the first task alone")
    alone, shared = subject.trajectory(), subject.workplace / "shared"

    def run(name: str, absent: bool) -> Run:
        return Run(subject.config(absent=absent), subject.workplace / name, shared=shared)

    plain, mine = run("plain", True), run("taking", False)
    keys = [key_of(one.config, one.stream, one.identity) for one in (plain, mine)]
    # one that needs the logits of training forwards has that in common with others of its kind
    giving = plain if keys[0] == keys[1] else run("giving", False)
    ask_for(shared, [keys[1], keys[1]])
    giving.execute()
    found = Trajectory(mine)
    if found.record["reused"] == {}:
        raise Broken("no other run has its first training too")
    same(found, alone, "gone on")
    if comparable(found.record) != comparable(alone.record):
        raise Broken("its record is another one than that of a run alone")
    return f"gone on from {found.record['reused']['from']} after task 1: losses, weights and record are bit-equal"
