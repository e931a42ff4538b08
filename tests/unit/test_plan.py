"""What `plan` expects of a run follows from what its objective and strategies say that they cost."""

from itertools import accumulate

import pytest
from tiny import RFT, tiny_config, tiny_run_config, trajectory

from cl_toolkit import compose
from cl_toolkit.data.streams import build_stream
from cl_toolkit.strategies.gem import AGEM
from cl_toolkit.strategies.lwf import LwF
from cl_toolkit.strategies.replay import PowerLaw, Replay
from cl_toolkit.strategy import Cost
from cl_toolkit.study import plan
from cl_toolkit.study.cells import load_run
from cl_toolkit.study.plan import AT_ONCE, SAMPLED, STEP_OVERHEAD, forecast


def expected(**changes):
    """With a thousand parameters and a thousand operations a second, so that the overhead is small beside them."""
    config = tiny_run_config(**changes)
    return forecast(config, build_stream(config), (1000, 1000), 1000.0)


PLAIN = expected()
SECOND = expected(stream={"tasks": ["last"]}).tokens / PLAIN.tokens
"""What the second of two tasks has of all tokens."""


def operations(found):
    """Seconds beyond the overhead of eight steps, in those of plain training."""
    return (found.seconds - 8 * STEP_OVERHEAD) / (PLAIN.seconds - 8 * STEP_OVERHEAD)


@pytest.mark.parametrize(
    ("strategies", "rehearsed", "beside"),
    [
        ({"replay": {"replay_fraction": 0.5}}, 1, 0),
        ({"replay": {"replay_fraction": 0.75}}, 3, 0),
        ({"replay": {"replay_fraction": 0.0}}, 0, 0),
        ({"lwf": {}}, 0, 1 / 3),
        ({"agem": {"memory_batch_size": 4}}, 0, 1),  # batches are of four
        ({"agem": {"memory_batch_size": 8}}, 0, 2),
        ({"der": {"memory_batch_size": 4}}, 1, 0),
        ({"derpp": {"memory_batch_size": 4}}, 2, 0),
        ({"derpp": {"memory_batch_size": 4, "beta": 0.0}}, 1, 0),
        ({"replay": {}, "lwf": {}}, 1, 1 / 3),
        ({"si": {}}, 0, 0),
    ],
)
def test_passes_and_rows(strategies, rehearsed, beside):
    """rehearsed: rows per new one in the second of two tasks, before which there is nothing to rehearse."""
    found = expected(strategies=strategies)
    assert found.steps == PLAIN.steps == 8
    assert found.new_examples == PLAIN.new_examples == PLAIN.rows == 8 * 4
    assert found.rows == PLAIN.rows * (1 + rehearsed / 2)
    assert found.tokens == pytest.approx(PLAIN.tokens * (1 + rehearsed * SECOND))
    assert operations(found) == pytest.approx(1 + rehearsed * SECOND + beside)


def test_the_last_batch_of_an_epoch_is_what_is_left():
    found = expected(train={"global_batch_size": 5, "max_steps": 4})  # of twelve: 5, 5, 2, 5, in both tasks
    assert (found.steps, found.new_examples) == (8, 34)


def test_an_anchor_is_rehearsed_from_the_first_task_on():
    stream = {"tasks": ["max", "last"], "anchors": ["sort"]}
    assert expected(stream=stream, strategies={"replay": {}}).rows == 2 * PLAIN.rows
    for past_alone in ({"replay": {"source": "past"}}, {"der": {"memory_batch_size": 4}}):
        assert expected(stream=stream, strategies=past_alone).rows == 1.5 * PLAIN.rows
    assert expected(stream=stream, strategies={"replay": {"source": "past"}}).passes == 1.5 * PLAIN.passes


@pytest.mark.parametrize(("steps", "taken"), [(1, 2), (4, 4), (5, 4)])
def test_steps_are_whole_batches_of_several_updates(tmp_path, steps, taken):
    changes = {"objective": {**RFT, "num_iterations": 2}, "train": {"max_steps": steps}}
    assert expected(**changes).steps == trajectory(tmp_path, **changes).record["cost"]["steps"] == 2 * taken


@pytest.mark.parametrize("stop", [0, 3])
def test_a_machine_that_does_something_else_for_a_while_is_not_taken_for_a_slow_one(monkeypatch, stop):
    clock = accumulate([0.0, *([0.002] * stop), 1.0, *([0.002] * 60)])
    monkeypatch.setattr(plan.time, "perf_counter", lambda: next(clock))
    assert plan.flops_per_second("cpu") == pytest.approx(2 * 512**3 / 0.002)


def test_a_fisher_is_taken_of_the_examples_that_there_are():
    few, all_of_them = (expected(strategies={"ewc": {"fisher_examples": n}}) for n in (6, 200))  # of twelve
    assert all_of_them.seconds - PLAIN.seconds == pytest.approx(2 * (few.seconds - PLAIN.seconds))
    assert operations(few) == pytest.approx(1 + 6 / 16, abs=0.01)


def test_what_replay_lets_the_model_write_takes_time():
    """In each of two tasks twelve answers of six tokens, which stored answers do not need."""
    own = {"source": "self", "max_completion_length": 6}
    more = expected(strategies={"replay": own}).seconds - expected(strategies={"replay": {}}).seconds
    assert more == pytest.approx(2 * 12 * (2 * 6 + SAMPLED * STEP_OVERHEAD * 6 / AT_ONCE))


def test_rollouts():
    found = expected(objective=RFT)
    assert found.tokens == 3 * PLAIN.tokens
    assert operations(found) == pytest.approx(3 * 14 / 6, rel=0.01)
    assert expected(objective={**RFT, "beta": 0.0}).seconds < found.seconds


def test_costs_add_up():
    both = compose(LwF(), Replay(Replay.Config(replay_fraction=0.75)))
    assert both.cost(8) == Cost(forwards=1, rows=3, copies=1)
    assert compose().cost(8) == Cost()
    assert AGEM().cost(16) == Cost(forwards=2, backwards=2, copies=1)
    own = Replay.Config(replay_fraction=0.75, source="self", max_completion_length=8)
    assert Replay(own).cost(8) == Cost(rows=3, written=24)
    assert PowerLaw(PowerLaw.Config(unrestricted=True)).cost(8).rows == pytest.approx(1.62, abs=0.01)


def test_costs_in_words():
    assert str(Cost()) == ""
    assert str(Cost(forwards=1)) == "1 forward per step"
    assert str(Cost(forwards=2, backwards=0.5)) == "2 forwards and 0.5 backwards per step"
    assert str(Cost(rows=1)) == "1 rehearsed row per new row"
    assert (
        str(Cost(rows=2, after_task=200)) == "2 rehearsed rows per new row, 200 examples forward and backward per task"
    )
    assert str(Cost(read_after=9)) == "9 examples forward per task"
    assert str(Cost(calls=32)) == "32 sampled tokens per step"
    assert str(Cost(written=16)) == "up to 16 tokens written before each task per new example"


def test_a_transformer_for_images_meets_each_patch_with_all_its_weights():
    """Sixteen patches and [CLS]: 17 times the operations that a perceptron of as many weights has for a digit."""
    stream = {"name": "digits", "limit": {"train": 40}}
    configs = [load_run(tiny_config() | {"stream": stream, "model": {"name": name}}) for name in ("mlp", "small-vit")]
    net, transformer = (forecast(c, build_stream(c), (1000, 1000), 1000.0) for c in configs)
    assert (net.steps, net.tokens) == (transformer.steps, transformer.tokens)
    overhead = net.steps * STEP_OVERHEAD
    assert transformer.seconds - overhead == pytest.approx(17 * (net.seconds - overhead))
