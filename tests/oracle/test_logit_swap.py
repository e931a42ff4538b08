"""The logit swap, worked out by hand, and its teacher."""

import copy

import pytest
import torch
from pieces import ask, configured, equal, task_view, tiny_model, train, weights_of

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.logits import target_logits
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.logit_swap import LogitSwap, swap
from cl_toolkit.types import Batch, Outputs

EXAMPLES = [ask("ab", "c"), ask("d", "efg"), ask("gh", "i")]


def logit_swap(**settings):
    strategy = LogitSwap(LogitSwap.Config(**settings))
    strategy.name = "logit_swap"
    return strategy


def swapped(z, y):
    return swap(torch.tensor([z]), torch.tensor([y]))[0].tolist()


def test_the_worked_example():
    assert swapped([2.0, 1.0, 0.0], 2) == [0.0, 1.0, 2.0]
    assert swapped([2.0, 1.0, 0.0], 1) == [1.0, 2.0, 0.0]
    assert swapped([2.0, 1.0, 0.0], 0) == [2.0, 1.0, 0.0]
    teacher = torch.softmax(torch.tensor(swapped([2.0, 1.0, 0.0], 2)), -1)
    student = torch.log_softmax(torch.tensor([2.0, 1.0, 0.0]), -1)
    assert teacher.tolist() == pytest.approx([0.09003, 0.24473, 0.66524], abs=1e-5)
    cross_entropy, entropy = -(teacher * student).sum().item(), -(teacher * teacher.log()).sum().item()
    assert cross_entropy == pytest.approx(1.982816, abs=1e-5)
    assert entropy == pytest.approx(0.832396, abs=1e-5)
    assert cross_entropy - entropy == pytest.approx(1.150421, abs=1e-5)
    assert -student[2].item() == pytest.approx(2.407606, abs=1e-5)


def test_what_the_swap_keeps():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 7
    once = swap(logits, labels)
    assert torch.equal(once.sort(-1).values, logits.sort(-1).values)  # so max, log-sum-exp and entropy too
    assert torch.equal(once.argmax(-1), labels)
    assert torch.equal(swap(once, labels), once)


def test_a_tie_with_the_label_swaps_nothing():
    assert swapped([1.0, 5.0, 5.0], 2) == [1.0, 5.0, 5.0]


def test_the_logits_before_a_token_are_those_that_predict_it_and_others_do_not_count():
    logits = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    labels = torch.tensor([[-100, -100, 1, 2], [-100, 0, -100, -100]])

    def says(**inputs):
        return Outputs(loss=torch.zeros(()), logits=inputs["given"])

    batch = Batch({"given": logits}, labels, tuple(EXAMPLES[:2]))
    assert batch.asked.labels.tolist() == [1, 2, 0]
    assert batch.asked.examples.tolist() == [0, 0, 1]
    assert torch.equal(target_logits(says, batch), torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]]))
    classes = Batch({"given": torch.eye(2)}, torch.tensor([1, -100]), tuple(EXAMPLES[:2]))
    assert target_logits(says, classes).tolist() == [[1, 0]]


def term(strategy, model, view, examples=EXAMPLES):
    batch = view.encode(examples)
    return strategy.loss(model, batch, view.forward(model, batch))["logit_swap"]


def test_the_models_own_greedy_answer_costs_nothing():
    model, strategy = tiny_model(), logit_swap()
    view = task_view(EXAMPLES)
    strategy.before_task(model, view)
    batch = view.encode(EXAMPLES)
    with torch.no_grad():
        best = model(**batch.inputs).logits.argmax(-1)
    batch.labels[:, 1:] = torch.where(batch.labels[:, 1:] >= 0, best[:, :-1], -100)
    value = strategy.loss(model, batch, view.forward(model, batch))["logit_swap"]
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    grads = torch.autograd.grad(value, list(model.parameters()))
    assert max(float(g.abs().max()) for g in grads) < 1e-5
    assert term(strategy, model, view).item() > 1e-2  # true answers are not the greedy ones


def stacked(model, strategy, view):
    """Two adapters that have been moved, as in the middle of the second task."""
    for index in (0, 1):
        model = adapters.begin_task(model, Adapter(r=2, between_tasks="stack"), index, 0)
        strategy.before_task(model, view)
        with torch.no_grad():
            for _, _, b, _ in adapters.pairs(model):
                b.fill_(0.1)
    return model


@pytest.mark.parametrize("kind", ["full", "continue", "stack"])
def test_the_teacher_is_the_model_before_the_first_task(kind):
    original = tiny_model()
    model, strategy, view = copy.deepcopy(original), logit_swap(weight=0.3), task_view(EXAMPLES)
    if kind == "stack":
        model = stacked(model, strategy, view)
    elif kind == "continue":
        model = adapters.begin_task(model, Adapter(r=2), 0, 0)
    strategy.before_task(model, view)
    if kind != "stack":
        train(model, task_view(EXAMPLES, max_steps=5), strategy, learning_rate=1e-2)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    batch, state = view.encode(EXAMPLES), weights_of(model)
    out = view.forward(model, batch)
    value = strategy.loss(model, batch, out)["logit_swap"]
    with torch.no_grad():
        teacher = original(**batch.inputs).logits[:, :-1][batch.labels[:, 1:] != -100]
        p = torch.softmax(swap(teacher, batch.labels[batch.labels != -100]), -1)
        expected = (p * (p.log() - torch.log_softmax(out.logits, -1))).sum(-1).mean()
    assert value.item() == pytest.approx(0.3 * expected.item(), rel=1e-4)
    assert equal(weights_of(model), state)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trained
    full = sum(p.numel() for p in model.parameters())
    assert strategy.extra_parameters == (full if kind == "full" else 0)


def test_the_original_survives_a_resume():
    model, first, second = tiny_model(), logit_swap(), logit_swap()
    first.before_task(model, task_view(EXAMPLES))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.2)
    second.load_state(first.state())
    second.before_task(model, task_view(EXAMPLES, index=1))
    view = task_view(EXAMPLES)
    assert term(first, model, view).item() == term(second, model, view).item()


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"temperature": 0.0}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(LogitSwap, **settings)
