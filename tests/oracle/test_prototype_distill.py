"""Relation distillation, worked out by hand and against a second model as the teacher."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from pieces import array_view, contrastive, equal, points, small_encoder, train, weights_of

from cl_toolkit.strategies.prototype_distill import PrototypeDistill, relation

FIRST, SECOND = [e for e in points() if e.y < 2], [e for e in points() if e.y == 2]


def test_the_worked_example():
    before, now = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert float(relation(before, now, "classes")) == pytest.approx(0.055472, abs=1e-6)
    assert float(relation(before, now, "samples")) == pytest.approx(0.060057, abs=1e-6)
    assert float(relation(2 * before, 2 * now, "classes", kappa=2.0)) == pytest.approx(0.055472, abs=1e-6)
    assert float(relation(before, before, "classes")) == 0.0


def two_tasks(strategy, index=1, **settings):
    """An encoder that has learned the first task, and the losses of the second."""
    supcon = contrastive()
    model = small_encoder(supcon)
    train(model, array_view(FIRST, supcon, max_steps=5), strategy, learning_rate=1e-2)
    seen = []
    view = array_view(SECOND, supcon, index=index, max_steps=4)
    train(model, view, strategy, lambda session: seen.append(session.losses), learning_rate=1e-2, **settings)
    return model, seen


def test_absent_in_the_first_task_and_zero_at_the_first_step_of_the_second():
    strategy, seen = PrototypeDistill(), []
    supcon = contrastive()
    model = small_encoder(supcon)
    train(model, array_view(FIRST, supcon, max_steps=2), strategy, lambda session: seen.append(session.losses))
    assert all(set(terms) == {"supcon"} for terms in seen)
    assert strategy.past == [["0", "1"]]
    _, second = two_tasks(PrototypeDistill())
    assert second[0]["prototypedistill"] == 0.0
    assert second[-1]["prototypedistill"] > 1e-5


def test_weight_0_is_supcon_alone():
    model, _ = two_tasks(PrototypeDistill(PrototypeDistill.Config(weight=0.0)))
    other, _ = two_tasks(None)
    assert equal(weights_of(model), weights_of(other))


@pytest.mark.parametrize("axis", ["classes", "samples"])
def test_it_is_what_a_second_model_as_teacher_gives(axis):
    """The teacher is swapped in between the forward and the backward of the student; its gradient must not notice."""
    strategy = PrototypeDistill(PrototypeDistill.Config(relation_axis=axis, kappa=0.5))
    supcon = contrastive()
    model = small_encoder(supcon)
    train(model, array_view(FIRST, supcon, max_steps=5), strategy, learning_rate=1e-2)
    twin, teacher = copy.deepcopy(model), copy.deepcopy(model).eval()
    seen, view = [], array_view(SECOND, supcon, index=1, max_steps=4)
    # plain gradients: the first step's for past prototypes is 0 up to rounding, which Adam would blow up
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0}
    train(model, view, strategy, lambda session: seen.append(session.losses), **settings)

    view = array_view(SECOND, supcon, index=1, max_steps=4)
    supcon.before_task(twin, view)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    for step, examples in enumerate(view.batches()):
        batch = view.encode(examples, twin)
        out = supcon.forward(twin, batch)
        h = teacher(**batch.inputs).features
        old = torch.nn.functional.normalize(torch.stack(list(teacher.prototypes.parameters())), dim=1)
        new = torch.nn.functional.normalize(torch.stack(list(twin.prototypes.parameters())[:2]), dim=1)
        before, now = h @ old.T, out.features @ new.T
        if axis == "samples":
            before, now = before / h.norm(dim=1, keepdim=True), now / out.features.norm(dim=1, keepdim=True)
        dim = 1 if axis == "classes" else 0
        p, q = torch.softmax(before / 0.5, dim).detach(), torch.softmax(now / 0.5, dim)
        distilled = 4.0 * (p * (p.log() - q.log())).sum(dim).mean()
        assert seen[step]["prototypedistill"] == pytest.approx(float(distilled.detach()), rel=1e-3, abs=1e-5)
        (out.loss + distilled).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=name)


def test_past_prototypes_move_without_past_data():
    strategy = PrototypeDistill()
    supcon = contrastive()
    model = small_encoder(supcon)
    train(model, array_view(FIRST, supcon, max_steps=5), strategy, learning_rate=1e-2)
    before = {n: p.detach().clone() for n, p in model.prototypes.named_parameters()}
    train(model, array_view(SECOND, supcon, index=1, max_steps=4), strategy, learning_rate=1e-2)
    after = dict(model.prototypes.named_parameters())
    assert all((before[name] - after[name]).abs().max() > 0 for name in before)
    assert set(after) - set(before) == {"class_32"}


def test_a_past_prototypes_length_does_not_matter_and_a_features_does():
    h, p = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.nn.functional.normalize(torch.eye(2), dim=1)
    now = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert float(relation(h @ p.T, now, "classes")) != pytest.approx(float(relation(2 * h @ p.T, now, "classes")))


@pytest.mark.parametrize(("axis", "wanted"), [("classes", 1.0), ("samples", 5.0)])
def test_the_loss_reads_past_columns_of_new_rows_and_divides_by_the_features_length(axis, wanted):
    """Scores (c, 0) and (0, c) of two new samples, features of length 5: along samples they are divided by it. The second
    column is of no past class, the third row is rehearsed: neither enters."""
    scores = torch.tensor([[10.0, 99.0, 0.0], [0.0, -99.0, 10.0], [7.0, 7.0, -7.0]])
    before = SimpleNamespace(logits=scores, features=torch.tensor([[3.0, 4.0]] * 3))
    now = SimpleNamespace(logits=scores / 2, features=torch.tensor([[3.0, 4.0]] * 3))

    class Model:
        classes = ("a", "new", "b")

        def __call__(self):
            return before

    strategy = PrototypeDistill(PrototypeDistill.Config(weight=3.0, relation_axis=axis))
    strategy.past, strategy.teacher = [["a", "b"]], nullcontext
    part = SimpleNamespace(inputs={}, source=lambda name: torch.tensor([True, True, False]))
    value = strategy.loss(Model(), part, now)["prototypedistill"]
    square = torch.tensor([[10.0, 0.0], [0.0, 10.0]]) / wanted
    assert float(value) == pytest.approx(3 * float(relation(square, square / 2, axis)), rel=1e-5)
    assert float(value) > 0.01


def test_what_is_past_survives_a_stop():
    strategy = PrototypeDistill()
    strategy.past = [["0", "1"]]
    other = PrototypeDistill()
    other.load_state(strategy.state())
    assert other.past == [["0", "1"]]
