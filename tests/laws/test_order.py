"""The order of strategies in a config does not matter: every pair that may be combined, both ways."""

from itertools import combinations

import pytest
from longer import AT_EACH_HOOK
from tiny import anchors_for, tiny_config, trajectory

from cl_toolkit import Strategy, UserError, compose
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.strategy import LIFE_CYCLES, Tags
from cl_toolkit.study.cells import load_run

# three tasks: what the second leaves behind is felt in the third. SGD, since Adam would blow up a gradient that is 0 up to the
# order of a sum.
SMALL = {
    "stream": {"tasks": ["max", "last", "sort"], "train_size": 8},
    "train": {"max_steps": 2, "optim": "sgd", "learning_rate": 0.05},
    "evaluate": {"tasks": "seen", "limit": 1},
}
FELT = {"ewc": {"weight": 100.0}, "si": {"weight": 300.0}, "agem": {"memory_batch_size": 4}}


def settings_of(names):
    """A config with these strategies, in this order, and with what they need."""
    tags = [STRATEGIES.get(name, "test").tags for name in names]
    adapter = next((c for c in LIFE_CYCLES if all(c in t.life_cycles for t in tags)), None)
    model = {**tiny_config()["model"], **({"adapter": {"r": 2, "between_tasks": adapter}} if adapter else {})}
    fitting = (o for o in OBJECTIVES if all(t.needs <= OBJECTIVES.get(o, "test").gives for t in tags))
    objective = {"name": next(fitting, "sft")}
    stream = {**SMALL["stream"], **anchors_for(*names)}
    return {
        **SMALL,
        "stream": stream,
        "model": model,
        "objective": objective,
        "strategies": {n: FELT.get(n, {}) for n in names},
    }


def may_be_combined(a, b):
    try:
        load_run(tiny_config(**settings_of((a, b))))
    except UserError:
        return False
    return True


PAIRS = [pair for pair in combinations(STRATEGIES, 2) if may_be_combined(*pair)]


def marked(pair):
    """Pairs of one strategy at each hook are followed always, theirs with all others in `make test-long`, the others' in
    `make grid` alone."""
    mark = {0: [pytest.mark.grid], 1: [pytest.mark.long], 2: []}[len(set(pair) & set(AT_EACH_HOOK))]
    return pytest.param(*pair, marks=mark)


def final(names, folder, **train):
    settings = settings_of(names)
    done = trajectory(folder, **settings | {"train": {**SMALL["train"], **train}})
    assert done.record["status"] == "finished"
    return done.run.model.state_dict()


def test_most_pairs_may_be_combined():
    assert len(PAIRS) > len(list(combinations(STRATEGIES, 2))) / 2
    assert ("agem", "si") in PAIRS or ("si", "agem") in PAIRS


@pytest.mark.parametrize(("a", "b"), [marked(pair) for pair in PAIRS])
def test_the_order_of_a_pair_does_not_matter(a, b, tmp_path):
    one, other = final((a, b), tmp_path / "ab"), final((b, a), tmp_path / "ba")
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6


class Noted(Strategy):
    """Notes when it is asked."""

    def __init__(self, name, seen):
        super().__init__()
        self.name, self.seen = name, seen

    def before_step(self, model, step):
        self.seen.append(self.name)


class Editor(Noted):
    tags = Tags(edits_gradient=True)


def test_all_have_read_the_gradient_before_one_edits_it():
    seen = []
    compose(Editor("a", seen), Noted("d", seen), Editor("b", seen), Noted("c", seen)).before_step(None, None)
    assert seen == ["c", "d", "a", "b"]


def test_a_strategy_that_edits_the_gradient_says_so(tmp_path):
    """What stands in `step.grads` after `before_step` is what stood there, unless the tag says otherwise."""
    from cl_toolkit.engine.torch_engine import _Gradients

    written, write = set(), _Gradients.__setitem__
    with pytest.MonkeyPatch.context() as patch:
        for name in STRATEGIES:
            patch.setattr(
                _Gradients,
                "__setitem__",
                lambda self, key, value, who=name: (written.add(who), write(self, key, value))[1],
            )
            final((name,), tmp_path / name, max_steps=8, learning_rate=0.3)
    assert written == {name for name in STRATEGIES if STRATEGIES.get(name, "test").tags.edits_gradient}
