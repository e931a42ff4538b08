"""What replay keeps and rehearses: the most surprising examples, past tasks, the stream's anchors."""

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, train

from cl_toolkit.strategies.replay import Replay, SurpriseReplay, surprise

EXAMPLES = [ask("ab", "c"), ask("d", "ef"), ask("gh", "ijk"), ask("l", "m"), ask("no", "p"), ask("q", "rstu")]


def by_hand(model, example):
    """The mean -log p of the answer's tokens, the end mark among them, from the logits of one row."""
    view = task_view([example])
    batch = view.encode([example], model)
    with torch.no_grad():
        logits = model.eval()(**batch.inputs).logits[0, :-1]
    labels = batch.labels[0, 1:]
    told = labels != -100
    return float(-torch.log_softmax(logits, -1)[told].gather(1, labels[told][:, None]).mean())


def test_the_store_holds_the_most_surprising_examples():
    model, replay = tiny_model(), SurpriseReplay(configured(SurpriseReplay, buffer_size=3))
    train(model, task_view(EXAMPLES, max_steps=10), learning_rate=1e-2)
    found = surprise(model, task_view(EXAMPLES, batch_size=4), EXAMPLES)
    wanted = [by_hand(model, e) for e in EXAMPLES]
    assert found == pytest.approx(wanted, rel=1e-4)
    replay.after_task(model, task_view(EXAMPLES))
    kept = {e.id for _, e in replay.store.items}
    assert kept == {EXAMPLES[i].id for i in sorted(range(6), key=lambda i: -wanted[i])[:3]}
    later = [ask("v", "w"), ask("x", "y")]
    replay.after_task(model, task_view(later, index=1))
    sizes = {index: len(group) for index, group in replay.store.by_task().items()}
    assert sizes == {0: 2, 1: 1}
    first = [e.id for e in replay.store.by_task()[0]]
    assert first == [
        EXAMPLES[i].id for i in sorted(range(6), key=lambda i: -wanted[i])[:2]
    ]  # the most surprising of them


def test_of_a_large_task_so_many_are_looked_at():
    model, replay = tiny_model(), SurpriseReplay(configured(SurpriseReplay, buffer_size=3, candidates=4))
    worth = replay.worth(model, task_view(EXAMPLES))
    assert sorted(w == -1 for w in worth) == [False] * 4 + [True] * 2
    assert [w for w in worth if w != -1] == pytest.approx(
        [by_hand(model, e) for e, w in zip(EXAMPLES, worth, strict=True) if w != -1], rel=1e-4
    )
    assert replay.cost(32).read_after == 4
    for size in (0, None):  # nothing is chosen, and nothing is looked at
        without = SurpriseReplay(configured(SurpriseReplay, buffer_size=size))
        assert (without.cost(32).read_after, without.worth(model, task_view(EXAMPLES))) == (0, ())


def test_the_model_is_as_it_was_when_it_has_been_asked():
    model, view = tiny_model().train(), task_view(EXAMPLES)
    state = torch.get_rng_state()
    surprise(model, view, EXAMPLES)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("source", "kept", "first"), [("all", {-1, 0, 1}, True), ("past", {0, 1}, False), ("general", {-1}, True)]
)
@pytest.mark.parametrize("cls", [Replay, SurpriseReplay])
def test_what_is_rehearsed(cls, source, kept, first):
    """Anchors are there from the start, so that general examples stand beside the first task too."""
    replay, model = cls(configured(cls, source=source)), tiny_model()
    for index in (-1, 0):
        view = task_view(EXAMPLES[index * 2 + 2 : index * 2 + 4], index=index)
        if index == 0:
            rehearsed = replay.batches(model, view, view.batches())[0]
            assert any(e.source == "memory" for e in rehearsed) == first
        replay.after_task(model, view)
    replay.after_task(model, task_view(EXAMPLES[4:], index=1))
    assert set(replay.store.by_task()) == kept
