"""OGD: the basis by hand, and steps that leave the logits of past examples as they are."""

import pytest
import torch
from pieces import GradientSpy, ask, configured, equal, task_view, tiny_model, train, weights_of

from cl_toolkit import Strategy
from cl_toolkit.errors import UserError
from cl_toolkit.strategies.ogd import OGD, beyond, flat, orthonormal

OLD, NEW = [ask("ab", "c"), ask("d", "ef")], [ask("ab", "x"), ask("de", "yz")]


def test_the_basis_by_hand():
    basis = orthonormal([], map(torch.tensor, ([3.0, 4.0, 0.0], [6.0, 8.0, 0.0], [0.0, 0.0, 2.0])))
    assert torch.allclose(
        torch.stack(basis), torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    )  # the second says nothing new
    assert torch.allclose(beyond(basis, torch.tensor([1.0, 0.0, 5.0])), torch.tensor([0.64, -0.48, 0.0]))
    assert len(orthonormal(basis, [torch.zeros(3)])) == 2


def test_many_directions_stay_orthonormal():
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 500, generator=generator) + 1e-2 * torch.randn(40, 500, generator=generator)
    basis = torch.stack(orthonormal([], near))
    assert torch.allclose(basis @ basis.T, torch.eye(40), atol=1e-5)


def true_logits(model, examples):
    """The sum of the true tokens' logits of each example, and its gradient by all weights."""
    values, view = [], task_view(examples)
    batch = view.encode(examples, model)
    for row in range(len(examples)):
        part = batch.rows([row])
        values.append(view.forward(model, part).logits.gather(1, part.asked.labels[:, None]).sum())
    return values


def test_a_step_leaves_the_logits_of_past_examples_as_they_are():
    model, strategy = tiny_model(), OGD()
    train(model, task_view(OLD, max_steps=10), strategy, learning_rate=1e-2)
    model.eval()
    assert len(strategy.basis) == 2
    assert strategy.extra_parameters == 2 * sum(p.numel() for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    past = [flat(torch.autograd.grad(v, trained)) for v in true_logits(model, OLD)]
    before = [float(v.detach()) for v in true_logits(model, OLD)]
    spy = GradientSpy(strategy, NEW)
    train(model, task_view(NEW, index=1, max_steps=1), spy, learning_rate=1e-4, optim="sgd", max_grad_norm=0.0)
    ((g, _, edited),) = spy.seen
    for v in past:
        v = v.double()
        assert abs(edited @ v) < 1e-4 * g.norm() * v.norm()
        assert abs(g @ v) > 1e-3 * g.norm() * v.norm()
    moved = [abs(float(v.detach()) - b) for v, b in zip(true_logits(model.eval(), OLD), before, strict=True)]
    plain = tiny_model()
    train(plain, task_view(OLD, max_steps=10), learning_rate=1e-2)
    train(plain, task_view(NEW, index=1, max_steps=1), learning_rate=1e-4, optim="sgd", max_grad_norm=0.0)
    plainly = [abs(float(v.detach()) - b) for v, b in zip(true_logits(plain.eval(), OLD), before, strict=True)]
    print(moved, plainly)
    assert max(moved) < 0.05 * max(plainly)  # what is left is of second order


def test_without_a_past_nothing_is_edited():
    reference, model = tiny_model(), tiny_model()
    for strategy, trained in ((Strategy(), reference), (OGD(), model)):
        train(trained, task_view(NEW, max_steps=3), strategy)
    assert equal(weights_of(model), weights_of(reference))


def test_of_weights_that_are_frozen_by_now_nothing_is_asked():
    """Directions are cut to the weights that move, and made orthonormal again."""
    strategy = OGD()
    strategy.sizes = {"a": 2, "b": 1}
    strategy.basis = orthonormal([], map(torch.tensor, ([3.0, 0.0, 4.0], [0.0, 1.0, 0.0])))
    assert strategy._among({"a": 0, "b": 0}) == (["a", "b"], strategy.basis)
    moving, basis = strategy._among({"a": 0})
    assert moving == ["a"]
    assert torch.allclose(torch.stack(basis), torch.eye(2))
    assert strategy._among({"b": 0})[1][0].tolist() == [1.0]


def test_a_weight_that_is_gone_or_new_is_told():
    strategy, model = OGD(), tiny_model()
    strategy.name, strategy.sizes = "ogd", {"layer.0": 2}
    with pytest.raises(UserError, match=r"strategies.ogd: layer.0 was trained in a past task and is not there now"):
        strategy.before_task(model, task_view(NEW, index=1))
    with pytest.raises(UserError, match=r"strategies.ogd: .* was not trained in the first task but is trained now"):
        strategy.after_task(model, task_view(NEW, index=1))


def test_costs():
    assert OGD(configured(OGD, examples=3)).cost(32).after_task == 3
    assert OGD(configured(OGD, examples=0)).cost(32).copies_per_task == 0
