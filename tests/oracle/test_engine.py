"""What an engine does with a gradient, worked out by hand: clipping, the schedule, the optimizers' steps. Both engines take
them from the same functions, so that comparing the engines with each other says nothing about them."""

import math

import pytest
import torch
from pieces import ask, task_view, train_settings

from cl_toolkit.engine.torch_engine import TorchEngine, make_optimizer, make_schedule, trainable
from cl_toolkit.objective import Objective
from cl_toolkit.strategy import Strategy, compose
from cl_toolkit.types import Batch, Outputs

CPU = torch.device("cpu")
PLAIN = {
    "optim": "sgd",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
}


class Slope(Objective):
    """The loss is a . x + b . y for weights x, y and what an example's target says, "a b"; its gradient is (a, b)."""

    def encode(self, model, task, examples):
        values = torch.tensor([[float(v) for v in e.target.split()] for e in examples])
        return Batch(inputs={"values": values}, labels=torch.zeros(len(values)), examples=tuple(examples))

    def forward(self, model, part):
        total = (part.inputs["values"] * torch.stack([model.x, model.y])).sum()
        return Outputs(loss=total / part.total["sequences"])


class Weights(torch.nn.Module):
    """Two numbers."""

    def __init__(self, x=0.0, y=0.0):
        super().__init__()
        self.x, self.y = (torch.nn.Parameter(torch.tensor(v)) for v in (x, y))


def steps(targets, strategy=None, model=None, **settings):
    """Take one step per target; (weights before and after each, norms, rates of the steps taken)."""
    model, examples = model or Weights(), [ask(str(i), target) for i, target in enumerate(targets)]
    task = task_view(examples, Slope(), batch_size=1)
    engine = TorchEngine(train_settings(**{**PLAIN, **settings}), CPU)
    path, norms, rates = [(model.x.item(), model.y.item())], [], []
    with engine.open(model, task, len(examples)) as session:
        for example in examples:
            rates.append(session.learning_rate)
            for part in session.parts(task.objective.encode(model, task, [example])):
                session.backward({"slope": task.objective.forward(model, part).loss})
            session.step(strategy or compose())
            norms.append(session.grad_norm)
            path.append((model.x.item(), model.y.item()))
    return path, [None if n is None else float(n) for n in norms], rates


def test_a_gradient_of_length_5_is_clipped_to_1():
    """(3, 4) becomes (0.6, 0.8); a shorter one stays; the norm that is told is the one before."""
    path, norms, _ = steps(["3 4", "0.3 0.4"], max_grad_norm=1.0)
    assert path[1] == pytest.approx((-0.6, -0.8), rel=1e-5)
    assert path[2] == pytest.approx((-0.9, -1.2), rel=1e-5)
    assert norms == pytest.approx([5, 0.5])


def test_a_limit_of_0_does_not_clip_and_measures_nothing():
    path, norms, _ = steps(["3 4"])
    assert path[1] == (-3.0, -4.0)
    assert norms == [None]


def test_clipping_comes_after_before_step_has_edited():
    class Tenfold(Strategy):
        def before_step(self, model, step):
            step.grads["x"] = 10 * step.grads["x"]

    path, norms, _ = steps(["3 0"], Tenfold(), max_grad_norm=6.0)
    assert norms == pytest.approx([30])
    assert path[1] == pytest.approx((-6, 0), rel=1e-5)


def test_a_penalty_is_added_once_and_is_told_apart():
    """0.5 (x - 1)^2 at x = 3 has the gradient 2, beside the loss's 4: x = 3 - 6. y, which the penalty does not read, keeps
    the loss's alone."""
    seen = {}

    class Pull(Strategy):
        def penalty(self, weights):
            return {"pull": 0.5 * (weights["x"] - 1) ** 2}

        def before_step(self, model, step):
            seen["grads"] = {name: step.grads[name].item() for name in step.grads}
            seen["own"] = {name: value.item() for name, value in step.penalty_grads.items()}
            seen["weights"] = {name: value.item() for name, value in step.weights.items()}
            seen["rate"], seen["number"] = step.learning_rate, step.number

    path, *_ = steps(["4 1"], Pull(), Weights(3.0, 0.0))
    assert seen == {
        "grads": {"x": 6.0, "y": 1.0},
        "own": {"x": 2.0},
        "weights": {"x": 3.0, "y": 0.0},
        "rate": 1.0,
        "number": 0,
    }
    assert path[1] == (-3.0, -1.0)


def test_the_rate_falls_linearly_and_each_step_is_taken_at_its_own():
    """Four steps from 0.8 without a warm-up: 0.8, 0.6, 0.4, 0.2."""
    path, _, rates = steps(["1 0"] * 4, learning_rate=0.8, lr_scheduler_type="linear", warmup_ratio=0.0)
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert [x for x, _ in path] == pytest.approx([0, -0.8, -1.4, -1.8, -2.0])


def test_a_warm_up_climbs_over_its_share_of_the_steps():
    """A quarter of eight steps: 0, 1/2, then 1 for good; with `linear` it then falls by 1/6 a step."""
    _, _, rates = steps(["1 0"] * 8, lr_scheduler_type="constant_with_warmup", warmup_ratio=0.25)
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1])
    _, _, rates = steps(["1 0"] * 8, lr_scheduler_type="linear", warmup_ratio=0.25)
    assert rates == pytest.approx([0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_a_cosine_falls_by_half_a_wave():
    _, _, rates = steps(["1 0"] * 4, lr_scheduler_type="cosine", warmup_ratio=0.0)
    assert rates == pytest.approx([(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


def adamw_by_hand(w, grads, rate, first, second, eps, decay):
    """Loshchilov & Hutter 2019, algorithm 2: the decay is apart from the gradient."""
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
        w = w - rate * decay * w - rate * (m / (1 - first**t)) / (math.sqrt(v / (1 - second**t)) + eps)
    return w


def test_two_steps_of_adamw_by_hand():
    """At w = 2: rate 0.1, betas 0.5 and 0.75, eps 1, decay 0.1, gradients 4 and 2. First step: 2 - 0.02 - 0.1 * 4/5 = 1.9.
    Second: m = (2 * 0.5 + 1) / 0.75 = 8/3, v = (4 * 0.75 + 1) / 0.4375 = 64/7."""
    settings = {"optim": "adamw_torch", "learning_rate": 0.1, "weight_decay": 0.1}
    betas = {"adam_beta1": 0.5, "adam_beta2": 0.75, "adam_epsilon": 1.0}
    path, *_ = steps(["4 0", "2 0"], model=Weights(2.0), **settings, **betas)
    assert path[1][0] == pytest.approx(1.9)
    assert path[2][0] == pytest.approx(1.9 * 0.99 - 0.1 * (8 / 3) / (math.sqrt(64 / 7) + 1))
    assert path[2][0] == pytest.approx(adamw_by_hand(2.0, [4, 2], 0.1, 0.5, 0.75, 1.0, 0.1))


def test_a_step_of_sgd_has_neither_momentum_nor_memory():
    """2 - 0.1 (4 + 0.5 * 2) = 1.5, then 1.5 - 0.1 (2 + 0.5 * 1.5) = 1.225."""
    path, *_ = steps(["4 0", "2 0"], model=Weights(2.0), learning_rate=0.1, weight_decay=0.5)
    assert [x for x, _ in path] == pytest.approx([2, 1.5, 1.225])


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_what_both_engines_take_has_every_setting_of_train(optim):
    settings = {"learning_rate": 0.3, "adam_beta1": 0.2, "adam_beta2": 0.4, "adam_epsilon": 0.5, "weight_decay": 0.6}
    [group] = make_optimizer(train_settings(optim=optim, **settings), [torch.nn.Parameter(torch.ones(1))]).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.6)
    if optim == "adamw_torch":
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.2, 0.4), 0.5, False)
    else:
        assert (group["momentum"], group["nesterov"]) == (0, False)


def test_the_warm_up_is_rounded_to_whole_steps():
    train = train_settings(**PLAIN | {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.2})
    optimizer = make_optimizer(train, [torch.nn.Parameter(torch.ones(1))])
    schedule, rates = make_schedule(train, optimizer, 8), []  # 1.6 steps
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.0, 0.5, 1.0]


def test_frozen_weights_are_neither_trained_nor_clipped_with():
    model = Weights(1.0, 1.0)
    model.y.requires_grad = False
    assert list(trainable(model)) == ["x"]
    path, norms, _ = steps(["3 400"], model=model, max_grad_norm=1.0)
    assert norms == pytest.approx([3])
    assert path[1] == pytest.approx((0.0, 1.0), abs=1e-5)


def test_the_gradient_on_other_examples_is_theirs_and_leaves_the_steps_own():
    seen = {}

    class Ask(Strategy):
        def before_step(self, model, step):
            other = step.gradient_of([ask("m", "7 0"), ask("n", "9 2")])
            seen.update(
                other={n: g.item() for n, g in other.items()}, own={n: step.grads[n].item() for n in step.grads}
            )

    path, *_ = steps(["3 4"], Ask())
    assert seen == {"other": {"x": 8.0, "y": 1.0}, "own": {"x": 3.0, "y": 4.0}}
    assert path[1] == (-3.0, -4.0)


def test_after_a_task_no_gradient_is_left():
    model = Weights()
    steps(["1 2"], model=model)
    assert model.x.grad is None
    assert model.y.grad is None
    assert model.training
