"""A-GEM's projection, worked out by hand and on a step of training."""

import pytest
import torch
from pieces import GradientSpy, ask, configured, equal, task_view, tiny_model, train, weights_of

from cl_toolkit import Strategy
from cl_toolkit.errors import UserError
from cl_toolkit.strategies.gem import AGEM, projection

NEW = [ask("ab", "c"), ask("d", "ef")]
OLD = [ask("ab", "x"), ask("d", "yz")]  # the same questions, other answers: the gradients disagree


def projected(g, r):
    g, r = torch.tensor(g), torch.tensor(r)
    return (g - projection(float(g @ r), float(r @ r)) * r).tolist()


def test_the_worked_example():
    assert projected([1.0, 0.0], [-1.0, 1.0]) == [0.5, 0.5]
    assert 0.5 * -1 + 0.5 * 1 == 0  # along r nothing is left


def test_a_step_that_does_no_harm_is_kept():
    assert projected([1.0, 0.0], [1.0, 1.0]) == [1.0, 0.0]
    assert projected([1.0, 0.0], [0.0, 1.0]) == [1.0, 0.0]


def test_a_memory_that_says_nothing_divides_nothing():
    assert projected([1.0, 2.0], [0.0, 0.0]) == [1.0, 2.0]


def filled(**settings):
    strategy = AGEM(AGEM.Config(**settings))
    strategy.store.add(0, OLD, None)
    return strategy


def test_the_step_of_a_model_is_projected_on_the_whole_gradient():
    spy, model = GradientSpy(filled(), OLD), tiny_model()
    train(model, task_view(OLD, max_steps=20), learning_rate=1e-2)
    train(model, task_view(NEW, index=1, max_steps=8), spy, learning_rate=1e-2)
    violated = 0
    for g, r, edited in spy.seen:
        wanted = g - (g @ r) / (r @ r) * r if g @ r < 0 else g
        violated += bool(g @ r < 0)
        assert torch.allclose(edited, wanted, rtol=1e-4, atol=1e-5)
        assert edited @ r >= -1e-4 * r.norm() * edited.norm()
    assert 0 < violated < 8


def test_without_memory_and_switched_off_nothing_is_computed():
    reference = tiny_model()
    train(reference, task_view(NEW, index=1, max_steps=3), Strategy())
    for strategy in (AGEM(), filled(memory_batch_size=0)):
        model, backwards = tiny_model(), []
        train(model, task_view(NEW, index=1, max_steps=3), strategy, lambda s, b=backwards: b.append(s.extra_backwards))
        assert backwards == [0, 0, 0]
        assert equal(weights_of(model), weights_of(reference))


def test_the_memory_batch_is_of_past_examples_only_and_of_the_size_asked_for():
    strategy, asked = filled(memory_batch_size=1), []

    class Step:
        grads = {}  # noqa: RUF012

        def gradient_of(self, examples):
            asked.append(examples)
            return {}

    strategy.before_task(None, task_view(NEW, index=1))
    for _ in range(8):
        strategy.before_step(None, Step())
    assert {len(batch) for batch in asked} == {1}
    assert {e.target for batch in asked for e in batch} == {"x", "yz"}
    assert {e.source for batch in asked for e in batch} == {"memory"}


@pytest.mark.parametrize("settings", [{"memory_batch_size": -1}, {"buffer_size": -1}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(AGEM, **settings)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({}, 2), ({"buffer_size": 1}, 1), ({"buffer_size": 0}, 0), ({"memory_batch_size": 0}, 0)],
)
def test_what_is_kept_of_a_task(settings, wanted):
    """Switched off, or without room, nothing is stored and nothing drawn."""
    strategy, view = AGEM(AGEM.Config(**settings)), task_view(OLD)
    before = view.generator("agem").get_state()
    assert strategy.after_task("model", view) == "model"
    assert len(strategy.store) == wanted
    assert torch.equal(before, view.generator("agem").get_state()) == (wanted != 1)
    assert strategy.store.seen == (2 if wanted else 0)
