"""Slow weights on paths that can be followed by hand."""

from types import SimpleNamespace

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, train, weights_of
from tiny import trajectory
from torch import nn

from cl_toolkit import Strategy, compose
from cl_toolkit.errors import UserError
from cl_toolkit.strategies.ema import EMA

EXAMPLES = [ask("ab", "c"), ask("d", "efg"), ask("gh", "i")]


class Model(nn.Module):
    def __init__(self, weight, dtype=torch.float32):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([weight], dtype=dtype))


def learned(strategy, model, path):
    """Train a task: the weight stands at each number of the path after one update. Where it began."""
    strategy.before_task(model, None)
    began = model.w.item()
    for number, weight in enumerate(path):
        strategy.before_step(None, SimpleNamespace(number=number, weights=dict(model.named_parameters())))
        model.w.data.fill_(weight)
    strategy.after_task(model, None)
    return began


def test_the_average_by_hand():
    """beta 1/2, 0 -> 1 -> 3: 0, 0.5, 1.75, which is the model; the fast weights go on from 3."""
    strategy, model = EMA(EMA.Config(decay=0.5)), Model(0.0)
    assert learned(strategy, model, [1.0, 3.0]) == 0.0
    assert model.w.item() == 1.75
    assert learned(strategy, model, [4.0]) == 3.0
    assert model.w.item() == (1.75 + 4.0) / 2
    assert strategy.extra_parameters == 2


def test_from_the_slow_weights_on():
    strategy, model = EMA(EMA.Config(decay=0.5, begin="slow")), Model(0.0)
    learned(strategy, model, [1.0, 3.0])
    assert learned(strategy, model, [4.0]) == 1.75
    assert model.w.item() == (1.75 + 4.0) / 2
    assert strategy.state() == {"fast": {}}
    assert strategy.extra_parameters == 1


def test_steps_too_small_for_bf16_add_up():
    """1,000 steps of 0.1 % towards 2: 1 - 0.999^1000 of the way, which bf16 alone would not have begun."""
    strategy, model = EMA(EMA.Config(decay=0.999)), Model(1.0, torch.bfloat16)
    learned(strategy, model, [2.0] * 1000)
    assert model.w.item() == pytest.approx(2 - 0.999**1000, abs=0.008)


def test_an_anchor_has_no_average_and_off_is_off():
    for strategy in (EMA(), EMA(EMA.Config(decay=0.0))):
        model = Model(1.0)
        if not strategy.config.decay:
            learned(strategy, model, [2.0])
        strategy.after_task(model, None)
        assert model.w.item() == (1.0 if strategy.config.decay else 2.0)
        assert not strategy.extra_parameters


class Path(Strategy):
    """Remembers the weights after each update."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_step(self, model, step):
        self.seen.append({name: w.detach().clone() for name, w in step.weights.items()})

    def after_task(self, model, task):
        self.seen.append(weights_of(model))
        return model


def test_in_training_it_is_the_average_of_the_path():
    model, path = tiny_model(), Path()
    train(model, task_view(EXAMPLES, max_steps=6), compose(path, EMA(EMA.Config(decay=0.9))), learning_rate=1e-2)
    assert len(path.seen) == 7
    slow = {name: w.double() for name, w in path.seen[0].items()}
    for seen in path.seen[1:]:
        slow = {name: 0.9 * w + 0.1 * seen[name].double() for name, w in slow.items()}
    found = weights_of(model)
    assert max(float((found[name] - w).abs().max()) for name, w in slow.items()) < 1e-6


def test_the_fast_weights_take_the_path_of_sequential_training(tmp_path):
    """With replay too: the losses are equal bit for bit, and what is scored is not."""
    for beside in ({}, {"replay": {}}):
        where = tmp_path / ("replay" if beside else "alone")
        plain = trajectory(where / "plain", strategies=beside)
        found = trajectory(where / "ema", strategies={"ema": {"decay": 0.5}, **beside})
        assert found.losses == plain.losses
        assert found.weights != plain.weights
        slow = trajectory(where / "slow", strategies={"ema": {"decay": 0.5, "begin": "slow"}, **beside})
        assert slow.losses[:4] == plain.losses[:4]
        assert slow.losses[4:] != plain.losses[4:]


@pytest.mark.parametrize("other", ["ewc", "si", "lwf", "derpp"])
def test_who_looks_at_the_weights_sees_the_same_in_either_order(other, tmp_path):
    names = ["ema", other]
    one, two = (trajectory(tmp_path / str(i), strategies={n: {} for n in names[::i]}) for i in (1, -1))
    assert one == two


@pytest.mark.parametrize("settings", [{"decay": -0.1}, {"decay": 1.0}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(EMA, **settings)
