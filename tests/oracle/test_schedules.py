"""Learning rates over a stream, worked out by hand: tables of rates at each step of each stage."""

import math

import pytest
import torch
from pieces import train_settings
from tiny import stop_after_a_task, tiny_config, tiny_run_config

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.engine.schedules import SCHEDULES, Infinite, Standing, needs_end
from cl_toolkit.engine.torch_engine import make_optimizer, make_schedule
from cl_toolkit.runs.run import Run

STEPS = (4, 8, 2)
"""Of three tasks of different sizes."""


def of_stage(place=None, steps=4, **settings):
    """The rates that an optimizer really has at the steps of a stage."""
    train = train_settings(**{"learning_rate": 2.0, "optim": "sgd", "lr_over": "stream", **settings})
    optimizer = make_optimizer(train, [torch.nn.Parameter(torch.ones(1))])
    schedule, found = make_schedule(train, optimizer, steps, *([place] if place else [])), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def over(stages=STEPS, **settings):
    """The same of each stage of a stream; what is to come is told only where the schedule asks."""
    asked = needs_end(train_settings(**{"lr_over": "stream", **settings}))
    return [
        of_stage(Standing(stages[:k], sum(stages[k + 1 :]) if asked else 0), steps, **settings)
        for k, steps in enumerate(stages)
    ]


WARM = {"warmup_ratio": 0.5}
HAND = {
    "constant_with_warmup": (WARM, [[0, 1, 2, 2], [2] * 8, [2, 2]]),
    "linear": ({}, [[2 - i / 7 for i in range(4)], [2 - i / 7 for i in range(4, 12)], [2 / 7, 1 / 7]]),
    "cosine": ({}, [[1 + math.cos(math.pi * i / 14) for i in part] for part in (range(4), range(4, 12), (12, 13))]),
    # 2 sqrt(2 / n) for a warm-up of 2 steps: at step 8 it is 1
    "inverse_sqrt": (
        WARM,
        [[0, 1, 2, 2 * math.sqrt(2 / 3)], *([2 * math.sqrt(2 / n) for n in part] for part in (range(4, 12), (12, 13)))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND)
def test_one_schedule_goes_over_tasks_of_different_sizes(name):
    settings, expected = HAND[name]
    for found, wanted in zip(over(lr_scheduler_type=name, **settings), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-12)


def infinite(stages=(8, 4), warmup_ratio=0.25, **settings):
    chosen = Infinite(**{"cooldown_ratio": 0.5, "constant": 0.5, "anneal_ratio": 0.5, "minimum": 0.125, **settings})
    return over(stages, lr_scheduler_type="infinite", lr_scheduler_kwargs=chosen, warmup_ratio=warmup_ratio)


def test_the_infinite_schedule_has_four_phases():
    """Eight steps: 2 up to the peak of 2, 4 down to the half by a cosine, constant; then four, of which the last two are
    annealed from 1 towards 0.25: by the square root of a quarter at half the way."""
    wave = [1.5 + 0.5 * math.cos(math.pi * i / 4) for i in range(4)]
    first, second = infinite()
    assert first == pytest.approx([0, 1, *wave, 1, 1])
    assert second == pytest.approx([1, 1, 1, 0.5])


def test_each_stage_may_be_annealed_and_the_next_begins_at_the_constant_rate():
    """Of eight steps the last four: at step 4 the rate is 1.5, in the middle of cooling down, and falls to 0.25 by its sixth
    part in four steps."""
    first, second = infinite(anneal_stages=True)
    sixth = [1.5 * (1 / 6) ** (i / 4) for i in range(4)]
    assert first == pytest.approx([0, 1, 2, 1.5 + 0.5 * math.sqrt(0.5), *sixth])
    assert second == pytest.approx([1, 1, 1, 0.5])


def test_an_infinite_schedule_without_its_phases_is_a_warm_up():
    plain = infinite(cooldown_ratio=0.0, constant=1.0, anneal_ratio=0.0, minimum=0.1)
    assert plain == over((8, 4), lr_scheduler_type="constant_with_warmup", warmup_ratio=0.25)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant"}))
def test_over_one_stage_it_is_the_schedule_of_the_stage(name):
    """Bit for bit, and that of transformers, which is asked here as it always was."""
    from transformers import get_scheduler

    settings = {"lr_scheduler_type": name, "warmup_ratio": 0.25}
    assert over((8,), **settings) == over((8,), lr_over="stage", **settings)
    if name != "infinite":
        optimizer, found = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0), []
        schedule = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=8)
        for _ in range(8):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert over((8,), lr_over="stage", **settings) == [found]


def test_each_stage_has_its_own_peak():
    """2 times 1, 0.5 and 0.25; a list's last goes on."""
    by_factor = over(lr_over="stage", lr_scheduler_type="constant", lr_per_stage=0.5)
    assert by_factor == [[2.0] * 4, [1.0] * 8, [0.5] * 2]
    by_list = over(lr_over="stage", lr_scheduler_type="linear", lr_per_stage=(1.0, 0.5))
    assert by_list == [[2, 1.5, 1, 0.5], [1 - i / 8 for i in range(8)], [1, 0.5]]
    fallen = over(lr_scheduler_type="linear", lr_per_stage=(1.0, 7.0))
    assert fallen[1] == pytest.approx([7 * (2 - i / 7) for i in range(4, 12)])


def test_who_needs_to_know_the_end():
    def asked(name, **settings):
        return needs_end(train_settings(lr_scheduler_type=name, **{"lr_over": "stream", **settings}))

    assert [name for name in SCHEDULES if asked(name)] == [
        "cosine",
        "cosine_with_restarts",
        "infinite",
        "linear",
        "polynomial",
    ]
    assert not any(asked(name, lr_over="stage") for name in SCHEDULES)
    assert not asked("infinite", lr_scheduler_kwargs=Infinite(anneal_ratio=0.0))
    assert not asked("infinite", lr_scheduler_kwargs=Infinite(anneal_stages=True))


# runs ---------------------------------------------------------------------------------------------------------------


def config(**changes):
    """Tasks of 12 examples in batches of 4; the rate of each step is logged."""
    sizes = {"max_steps": -1, "global_batch_size": 4, "logging_steps": 1}
    train = {**sizes, "learning_rate": 1.0, "optim": "sgd", **changes.pop("train", {})}
    return tiny_config(train=train, **changes)


def rates_of(record):
    """Task -> the rate of each step."""
    found = {}
    for row in record["losses"]:
        found.setdefault(row["task"], []).append(row["learning_rate"])
    return list(found.values())


LINEAR = {"lr_over": "stream", "lr_scheduler_type": "linear"}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # deepspeed imports torch._inductor
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_run_goes_down_one_line_on_either_engine(engine, tmp_path):
    pytest.importorskip(engine, reason="deepspeed is not installed here (it is for Linux)")
    record = cl.run(config(train=LINEAR, engine={"name": engine}), out=tmp_path)
    steps = [row["steps"] for row in record["adapters"]]
    first, second = rates_of(record)
    assert first == pytest.approx([1 - i / sum(steps) for i in range(steps[0])])
    assert second == pytest.approx([1 - i / sum(steps) for i in range(steps[0], sum(steps))])


def test_a_run_that_was_stopped_goes_on_at_its_rate(tmp_path):
    whole = cl.run(config(train=LINEAR), out=tmp_path / "whole")
    stop_after_a_task(Run(tiny_run_config(**{"train": config(train=LINEAR)["train"]}), tmp_path / "stopped", None))
    resumed = cl.run(config(train=LINEAR), out=tmp_path / "stopped")
    assert "resumed" in resumed["provenance"]
    assert (resumed["losses"], resumed["matrix"]) == (whole["losses"], whole["matrix"])


def test_a_model_that_begins_anew_begins_its_schedule_anew(tmp_path):
    """So that a stream of such models grows, too."""
    alone = {"train": LINEAR, "evaluate": {"tasks": "seen"}}
    for tasks in (["max"], ["max", "last"]):
        record = cl.run(config(stream={"view": "independent", "tasks": tasks}, **alone), out=tmp_path)
    first, second = rates_of(record)
    assert first == second == pytest.approx([1 - i / len(first) for i in range(len(first))])


def test_a_stream_grows_unless_its_schedule_had_ended(tmp_path):
    def grow(name, **train):
        changes = {"train": {"lr_over": "stream", **train}, "evaluate": {"tasks": "seen"}}
        for tasks in (["max"], ["max", "last"]):
            record = cl.run(config(stream={"tasks": tasks}, **changes), out=tmp_path / name)
        return rates_of(record)

    warm = grow("warm", lr_scheduler_type="constant_with_warmup", warmup_ratio=1.0)
    assert warm[1] == [1.0] * len(warm[1]), "no second warm-up"
    with pytest.raises(UserError, match="the schedule linear over the stream ends with the last of them"):
        grow("linear", lr_scheduler_type="linear")
