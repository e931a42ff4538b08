"""Synaptic intelligence on paths that can be followed by hand."""

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, train

from cl_toolkit import Strategy, compose
from cl_toolkit.errors import UserError
from cl_toolkit.strategies.si import SI, importance

EXAMPLES = [ask("ab", "c"), ask("d", "ef")]


class Step:
    """One weight; gradients as given."""

    def __init__(self, weight, grad, penalty=None):
        self.weights, self.grads = {"w": torch.tensor([weight])}, {"w": torch.tensor([grad])}
        self.penalty_grads = {} if penalty is None else {"w": torch.tensor([penalty])}


class Model(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([weight]))


def walked(steps, end, **settings):
    strategy = SI(SI.Config(**{"weight": 0.1, **settings}))
    strategy.before_task(Model(0.0), None)
    for step in steps:
        strategy.before_step(None, Step(*step))
    strategy.after_task(Model(end), None)
    return strategy


def test_the_path_integral_by_hand():
    # w: 0 -> 1 -> 1.5, gradients -2 and -1: omega = 2 * 1 + 1 * 0.5 = 2.5; Omega = 2.5 / (1.5^2 + 0.1)
    strategy = walked([(0.0, -2.0), (1.0, -1.0)], 1.5)
    assert strategy.omega["w"].item() == pytest.approx(2.5 / 2.35)
    assert strategy.anchor["w"].item() == 1.5
    w = torch.tensor([2.5], requires_grad=True)
    value = strategy.penalty({"w": w})["si"]
    value.backward()
    assert value.item() == pytest.approx(0.1 * 2.5 / 2.35)
    assert w.grad.item() == pytest.approx(2 * 0.1 * 2.5 / 2.35)


def test_the_penaltys_part_of_the_gradient_is_left_out():
    plain, pulled = walked([(0.0, -2.0)], 1.0), walked([(0.0, 3.0, 5.0)], 1.0)
    assert plain.omega["w"].item() == pulled.omega["w"].item() == pytest.approx(2 / 1.1)


def test_a_path_that_raised_the_loss_counts_as_nothing():
    assert importance(torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 0.0]), 0.1).tolist() == [0.0, 0.0]
    assert walked([(0.0, 2.0)], 1.0).omega["w"].item() == 0.0


def test_importance_adds_up_over_tasks():
    strategy = walked([(0.0, -2.0)], 1.0)
    strategy.before_task(Model(1.0), None)
    strategy.before_step(None, Step(1.0, -1.0))
    strategy.after_task(Model(3.0), None)
    assert strategy.omega["w"].item() == pytest.approx(2 / 1.1 + 2 / 4.1)
    assert strategy.anchor["w"].item() == 3.0


class Pull(Strategy):
    """A strong penalty beside it."""

    def penalty(self, weights):
        return {"pull": sum((w**2).sum() for w in weights.values())}


def test_along_a_short_path_the_integral_is_the_fall_of_the_loss():
    """Plain gradient descent with a small rate: the sum over all weights of omega is the loss that was lost, whatever
    penalty stands beside it."""
    for beside in ([], [Pull()]):
        model, strategy, view = tiny_model(), SI(), task_view(EXAMPLES, max_steps=50)
        totals = []

        def loss(model=model, view=view):
            with torch.no_grad():
                return view.forward(model, view.encode(EXAMPLES)).loss.item()

        before = loss()

        def noted(model, task, strategy=strategy, totals=totals):
            strategy._walk({n: p.detach().clone() for n, p in model.named_parameters()})
            totals.append(sum(path.sum().item() for path in strategy._path.values()))
            return model

        strategy.after_task = noted
        train(model, view, compose(strategy, *beside), optim="sgd", learning_rate=1e-4, max_grad_norm=0)
        assert totals[0] == pytest.approx(before - loss(), rel=0.05)


def test_switched_off_it_keeps_nothing():
    strategy = walked([(0.0, -2.0)], 1.0, weight=0.0)
    assert strategy.state() == {"omega": {}, "anchor": {}}
    assert strategy.penalty({"w": torch.ones(1)}) == {}


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"damping": 0.0}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(SI, **settings)
