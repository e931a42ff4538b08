"""What strategies hold before they have seen a task, and what they remember of one."""

import pytest
from pieces import array_view, ask, points, task_view

from cl_toolkit.registry import STRATEGIES
from cl_toolkit.strategies.lwf import LwF


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
