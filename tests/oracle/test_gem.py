"""GEM's quadratic programme, worked out by hand and on a step of training."""

import numpy as np
import pytest
import torch
from pieces import GradientSpy, ask, configured, task_view, tiny_model, train
from scipy.optimize import minimize

from cl_toolkit.strategies.gem import GEM, multiples, projection

NEW = [ask("ab", "c"), ask("d", "ef")]
OLD = [ask("ab", "x"), ask("d", "yz")]  # the same questions, other answers


def turned(g, past, margin=0.0):
    g, past = np.array(g, float), np.array(past, float)
    return g + past.T @ multiples(past @ past.T, past @ g, margin)


@pytest.mark.parametrize(
    ("g", "past", "margin", "wanted"),
    [
        ((1, 0), [(-1, 1)], 0, (0.5, 0.5)),  # one past task: A-GEM's projection
        ((1, 0), [(-1, 0), (0, -1)], 0, (0, 0)),
        ((1, 1), [(-1, 0), (0, 1)], 0, (0, 1)),  # their mean is at right angles to g, so that A-GEM does nothing
        ((1, 0), [(-1, 1), (0, 2)], 0, (0.5, 0.5)),
        ((1, 0), [(-1, 1)], 0.6, (0.4, 0.6)),  # v >= 0.6 where 0.5 would do
        ((1, 0), [(-1, 1)], 0.5, (0.5, 0.5)),
    ],
)
def test_worked_examples(g, past, margin, wanted):
    assert turned(g, past, margin) == pytest.approx(wanted, abs=1e-5)


def test_the_mean_of_opposed_memories_hides_what_each_says():
    g, past = torch.tensor([1.0, 1.0]), torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    mean = past.mean(0)
    assert projection(float(g @ mean), float(mean @ mean)) == 0


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_it_is_what_a_solver_of_the_primal_finds(margin):
    """At margin 0: the nearest vector to g that opposes no row."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        past, g = rng.normal(size=(4, 9)), rng.normal(size=9)
        found = minimize(
            lambda v, past=past, g=g: 0.5 * v @ past @ past.T @ v + (past @ g) @ v,
            np.full(4, margin + 0.1),
            bounds=[(margin, None)] * 4,
            options={"ftol": 1e-14, "gtol": 1e-10},
        ).x
        assert multiples(past @ past.T, past @ g, margin) == pytest.approx(found, abs=1e-4)
        if margin == 0:
            assert (past @ turned(g, past) >= -1e-4).all()


def test_a_memory_that_says_nothing_and_two_that_say_the_same():
    assert turned((1, 0), [(0, 0)]) == pytest.approx((1, 0))
    assert turned((1, 0), [(-1, 1), (-1, 1)]) == pytest.approx((0.5, 0.5), abs=1e-5)


def filled(**settings):
    strategy = GEM(GEM.Config(**settings))
    strategy.store.add(0, OLD[:1], None)
    strategy.store.add(1, OLD[1:], None)
    return strategy


def test_a_step_of_a_model_opposes_no_past_task():
    spies = [GradientSpy(filled(margin=0.0), [e]) for e in OLD]
    for spy in spies:
        model = tiny_model()
        train(model, task_view(OLD, max_steps=20), learning_rate=1e-2)
        train(model, task_view(NEW, index=2, max_steps=8), spy, learning_rate=1e-2)
    turned_steps = 0
    for steps in zip(*(spy.seen for spy in spies), strict=True):
        g, _, edited = steps[0]
        opposed = any(g @ r < 0 for _, r, _ in steps)
        turned_steps += opposed
        assert opposed or torch.equal(g, edited)
        assert all(edited @ r >= -1e-3 * r.norm() * g.norm() for _, r, _ in steps)
    assert 0 < turned_steps < 8


def test_costs_and_settings():
    strategy = GEM(configured(GEM, memory_batch_size=8))
    assert (strategy.cost(32).forwards, strategy.cost(32).copies_per_task) == (0.25, 1.0)
    assert GEM(configured(GEM, memory_batch_size=0)).cost(32).copies_per_task == 0
