"""Supervised contrastive learning and prototypes, worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from pieces import array_view, configured, contrastive, points, small_encoder, train, weights_of

from cl_toolkit.errors import UserError
from cl_toolkit.models.arrays import MLP
from cl_toolkit.models.encoder import Prototypes
from cl_toolkit.strategies.objectives.supcon import SupCon, augmented, supervised_contrastive


def test_four_equal_vectors_of_one_class():
    z, labels = torch.tensor([[1.0, 0.0]] * 4), torch.zeros(4, dtype=torch.long)
    assert float(supervised_contrastive(z, labels, 0.1)) == pytest.approx(math.log(3))
    assert float(supervised_contrastive(z, labels, 0.1, 0.07)) == pytest.approx(1.569447, abs=5e-6)  # fp32


def test_two_classes_at_right_angles():
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    loss = supervised_contrastive(z, torch.tensor([0, 0, 1, 1]), 1.0)
    assert float(loss) == pytest.approx(math.log((math.e + 2) / math.e))
    assert float(loss) == pytest.approx(0.551445, abs=1e-6)


def test_each_anchor_has_its_own_sum_and_the_mean_of_its_partners():
    """Three of one class and two of another: with the sum of another anchor the terms would be others."""
    z = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(2)), dim=1)
    labels = [0, 0, 0, 1, 1]
    similar, expected = (z @ z.T / 0.5).tolist(), []
    for i in range(5):
        total = sum(math.exp(similar[i][a]) for a in range(5) if a != i)
        partners = [j for j in range(5) if j != i and labels[j] == labels[i]]
        expected.append(-sum(math.log(math.exp(similar[i][j]) / total) for j in partners) / len(partners))
    found = supervised_contrastive(z, torch.tensor(labels), 0.5)
    assert float(found) == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_a_step_is_not_cut():
    assert not SupCon.divisible


def test_an_anchor_without_a_partner_does_not_count():
    z = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    similar = (z @ z.T).tolist()
    expected = []
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        total = sum(math.exp(similar[i][a]) for a in range(5) if a != i)
        expected.append(-math.log(math.exp(similar[i][j]) / total))
    assert float(supervised_contrastive(z, labels, 1.0)) == pytest.approx(sum(expected) / 4, rel=1e-5)
    alone = torch.randn(3, 2, requires_grad=True)
    loss = supervised_contrastive(alone, torch.tensor([0, 1, 2]), 1.0)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, alone)[0].abs().max() == 0


def test_the_pull_moves_prototypes_and_not_features():
    head = Prototypes(2)
    head.grow(["a"], torch.Generator().manual_seed(0), torch.zeros(()))
    with torch.no_grad():
        head.class_61.copy_(torch.tensor([0.0, 2.0]))
    h = torch.tensor([[3.0, 4.0]], requires_grad=True)
    scores, cosine = head(h)
    assert float(1 - cosine.detach()) == pytest.approx(0.2)  # cos((3, 4), (0, 2)) = 0.8
    assert float(scores.detach()) == pytest.approx(4.0)  # h.p/|p|
    toward_h, toward_p = torch.autograd.grad((1 - cosine).sum(), [h, head.class_61], allow_unused=True)
    assert toward_h is None
    assert toward_p.abs().max() > 0


def test_scaling_a_prototype_changes_nothing():
    head, h = Prototypes(3), torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    head.grow(["0", "1"], torch.Generator().manual_seed(0), torch.zeros(()))
    before = [t.clone() for t in head(h)]
    with torch.no_grad():
        head.class_30.mul_(3)
    for a, b in zip(before, head(h), strict=True):
        torch.testing.assert_close(a, b)
    scores, cosine = head(2 * h)
    torch.testing.assert_close(scores, 2 * before[0])
    torch.testing.assert_close(cosine, before[1])


def test_the_loss_of_a_step():
    supcon = contrastive(base_temperature=None, prototype_weight=2.0)
    model = small_encoder(supcon)
    view = array_view(points(), supcon)
    supcon.before_task(model, view)
    batch = view.encode(points()[:6], model)
    out = model(**batch.inputs)
    expected = supervised_contrastive(out.projected, batch.labels, 0.1)
    expected += 2 * sum(1 - out.pull[i, label] for i, label in enumerate(batch.labels.tolist())) / 6
    torch.testing.assert_close(supcon.forward(model, batch).loss, expected)


def test_rehearsed_examples_pull_their_prototypes_too():
    supcon = contrastive()
    model = small_encoder(supcon)
    view = array_view(points(), supcon)
    supcon.before_task(model, view)
    old = [replace(e, source="memory") for e in points() if e.y == 2]
    batch = view.encode([*(e for e in points() if e.y < 2), *old], model)
    supcon.forward(model, batch).loss.backward()
    grads = {n: p.grad for n, p in model.prototypes.named_parameters()}
    assert all(grad.abs().max() > 0 for grad in grads.values())


def test_a_class_without_a_prototype_is_contrasted_and_not_pulled():
    supcon = contrastive()
    model = small_encoder(supcon)
    supcon.before_task(model, array_view([e for e in points() if e.y < 2], supcon))
    batch = array_view(points(), supcon).encode(points(), model)
    assert sorted(set(batch.labels.tolist())) == [0, 1, 2]
    assert model(**batch.inputs).pull.shape == (12, 2)
    assert supcon.forward(model, batch).loss.isfinite()


def test_answers_that_mostly_stand_alone_are_told_of():
    one_each = list({e.y: e for e in points()}.values())
    a, b, c = one_each
    few = "{} of {} examples are the only ones with their answer: no other is like them"
    for augment, examples, says in (
        ("none", one_each, few.format(3, 3)),
        ("none", [a, b, c, replace(a, id="again"), replace(a, id="more")], ""),
        ("none", [a, b, c, *(replace(a, target=name) for name in "xy"), replace(a, id="again")], few.format(4, 6)),
        ("noise", one_each, ""),
    ):
        supcon = contrastive(augment=augment)
        supcon.before_task(small_encoder(supcon), array_view(examples, supcon))
        assert [note.split(": ", 1)[1] for note in supcon.noticed()] == [says] * bool(says)


def test_prototypes_grow_and_are_read_from_the_weights_alone():
    head, draw = Prototypes(4), torch.Generator().manual_seed(0)
    like = torch.zeros(())
    head.grow(["b", "a"], draw, like)
    kept = head.class_61.detach().clone()
    head.grow(["a", "ü", "c"], draw, like)
    assert head.classes == ["a", "b", "c", "ü"]  # whatever order they came in
    torch.testing.assert_close(head.class_61.detach(), kept, rtol=0, atol=0)
    again = Prototypes(4)
    again.load_state_dict(head.state_dict())
    assert again.classes == head.classes
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), head.parameters(), strict=True))


def test_classes_that_lie_apart_are_learned():
    supcon = contrastive()
    model = small_encoder(supcon)
    view = array_view(points(60), supcon, batch_size=30, max_steps=60)
    train(model, view, learning_rate=1e-2)
    logits = model(**view.codec.prompts(points(60)).inputs).logits
    right = [model.classes[int(i)] == e.target for i, e in zip(logits.argmax(1), points(60), strict=True)]
    assert sum(right) / 60 > 0.8


def test_two_views_and_their_generator():
    supcon = contrastive(augment="shift")
    images = points(6, size=(1, 8, 8))
    model = supcon.equip(MLP(hidden_size=8).load(0), 0)
    before = weights_of(model)
    view = array_view(images, supcon)
    supcon.before_task(model, view)
    batch = view.encode(images, model)
    assert batch.inputs["x"].shape == (12, 1, 8, 8)
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2] * 2
    assert len(batch.examples) == 12
    again = array_view(images, supcon)
    assert torch.equal(again.encode(images, model).inputs["x"], batch.inputs["x"])
    assert not torch.equal(again.encode(images, model).inputs["x"], batch.inputs["x"])
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items() if name in before)


def test_a_shift_moves_by_at_most_one_pixel():
    image = torch.zeros(1, 8, 8)
    image[0, 4, 4] = 1
    moved = augmented(image.repeat(200, 1, 1, 1), "shift", torch.Generator().manual_seed(0))
    places = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert places == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"base_temperature": -1.0}, {"prototype_weight": -1.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        configured(SupCon, **wrong)
