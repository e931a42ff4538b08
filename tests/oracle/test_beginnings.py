"""What strategies hold before they have seen a task, and what they remember of one."""

import pytest
from pieces import array_view, ask, configured, contrastive, points, task_view, tiny_model, train

from cl_toolkit.errors import UserError
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.strategies.lwf import LwF
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategies.replay import PowerLaw


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_before_the_first_task_nothing_is_kept(name):
    cls = STRATEGIES.get(name, "test")
    strategy = cls()
    assert strategy.extra_parameters == 0
    assert len(getattr(strategy, "store", ())) == 0
    again = cls()
    again.load_state(strategy.state())
    assert again.state() == strategy.state()


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_settings_are_by_keyword_and_stay_as_they_are(name):
    cls = STRATEGIES.get(name, "test")
    config = cls.Config()
    field = next(iter(vars(config)))
    with pytest.raises(AttributeError):
        setattr(config, field, None)
    with pytest.raises(TypeError):
        cls.Config(1)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_what_switches_a_strategy_off_is_a_nothing_of_its_settings(name):
    tags = STRATEGIES.get(name, "test").tags
    assert tags.off
    assert not any(tags.off.values())


# those that work with a language model as it is
ON_TEXT = [name for name in STRATEGIES if STRATEGIES.get(name, "test").tags.needs <= SFT.gives]


@pytest.mark.parametrize("name", ON_TEXT)
@pytest.mark.parametrize("off", [True, False])
def test_a_task_gives_the_model_back(name, off):
    cls, model = STRATEGIES.get(name, "test"), tiny_model()
    strategy, view = (
        cls(cls.Config(**cls.tags.off) if off else None),
        task_view([ask("a", "b"), ask("c", "d")], validation=lambda model: {}),
    )
    assert strategy.build(model, 0) is model
    assert strategy.before_task(model, view) is model
    assert strategy.after_task(model, view) is model


@pytest.mark.parametrize("name", ["der", "derpp"])
def test_before_memory_der_has_no_term(name):
    strategy, view = STRATEGIES.get(name, "test")(), task_view([ask("a", "b"), ask("c", "d")])
    seen = []
    train(tiny_model(), view, strategy, lambda session: seen.append(set(session.losses)))
    assert seen == [{"sft"}]


def test_an_exponential_schedule_needs_an_exponent_and_the_others_do_not():
    assert configured(PowerLaw, schedule="exponential", exponent=1.0).exponent == 1
    assert configured(PowerLaw, schedule="power_law", exponent=0.0).exponent == 0
    with pytest.raises(UserError, match="exponent: expected a number above 0"):
        configured(PowerLaw, schedule="exponential", exponent=0.0)


def test_text_is_not_augmented():
    with pytest.raises(UserError, match=r"objective\.augment: shift is for images"):
        contrastive(augment="shift").equip(tiny_model(), 0)


def test_lwf_remembers_classes_of_arrays_and_counts_tasks():
    strategy = LwF()
    assert strategy.after_task("model", array_view(points(6, classes=2))) == "model"
    strategy.after_task("model", array_view(points(6, classes=3)))
    assert (strategy.past, strategy.classes) == (2, [0, 1, 2])
    other = LwF()
    other.load_state(strategy.state())
    assert (other.past, other.classes) == (2, [0, 1, 2])
    text = LwF()
    text.after_task("model", task_view([ask("a", "b")]))
    assert (text.past, text.classes) == (1, [])
