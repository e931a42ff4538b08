"""Settings that are drawn by Optuna: as many for each method, and the same ones when the command is repeated."""

import math
import sys

import pytest
from files import call
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.config.plain_yaml import to_yaml
from cl_toolkit.study.choice import Outcome, merits
from cl_toolkit.study.search import Search, Span, Trial
from cl_toolkit.study.tune import Tuning

pytest.importorskip("optuna", reason="optuna is not installed here; the extra `tune` has it")
from cl_toolkit.study.sampler import AT_RANDOM, drawn

RATE = Span(low=1e-5, high=1e-1, log=True)
AXES = {"rate": RATE, "size": Span(low=1, high=8), "mode": [["x"], None, 2]}


def search(axes, goodness, number, seed=0):
    """So many trials one after the other, the first ones at random."""
    known = [(v, goodness(v)) for v in drawn(axes, [], min(AT_RANDOM, number), seed)]
    while len(known) < number:
        (values,) = drawn(axes, known, 1, seed)
        known.append((values, goodness(values)))
    return known


def test_what_is_drawn_lies_in_its_range_and_comes_again():
    found = drawn(AXES, [], 40, seed=3)
    assert found == drawn(AXES, [], 40, seed=3)
    assert found != drawn(AXES, [], 40, seed=4)
    assert len({str(values) for values in found}) == 40
    rates = [values["rate"] for values in found]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert 10 <= sum(rate < 1e-3 for rate in rates) <= 30  # evenly over ratios
    assert all(rate == float(f"{rate:.6g}") for rate in rates)
    assert {values["size"] for values in found} <= set(range(1, 9))
    assert {str(values["mode"]) for values in found} == {"['x']", "None", "2"}


def test_later_trials_lie_where_earlier_ones_were_good():
    def goodness(values):
        return None if values["rate"] > 3e-2 else -abs(math.log10(values["rate"]) + 3)  # 1e-3 is the best

    means = []
    for seed in range(5):
        off = [abs(math.log10(v["rate"]) + 3) for v, _ in search({"rate": RATE}, goodness, 30, seed)]
        means.append((sum(off[:AT_RANDOM]) / AT_RANDOM, sum(off[-AT_RANDOM:]) / AT_RANDOM))
    assert sum(later for _, later in means) < 0.6 * sum(first for first, _ in means)


def test_lists_are_tried_out_to_the_last_combination():
    axes = {"a": [1, 2], "b": ["x", "y", "z"]}
    found = [values for values, _ in search(axes, lambda values: 0.5, 6)]
    assert sorted(map(str, found)) == sorted(str({"a": a, "b": b}) for a in (1, 2) for b in "xyz")
    assert drawn(axes, [(values, 0.5) for values in found], 1, 0) == []


def test_a_trial_that_learns_too_little_is_worse_than_all_that_learn():
    def outcome(acc, learned):
        return Outcome(Trial(method="a", values={}, difference={}), {"acc": acc, "learning_accuracy": learned})

    own = [outcome(0.3, 0.90), outcome(0.9, 0.5), outcome(0.4, 0.88), Outcome(outcome(0, 0).trial), outcome(0.8, 0.2)]
    found = merits(own, Search(seed=7, methods={"a": {}}))
    assert found == [0.3, pytest.approx(-0.1), 0.4, None, pytest.approx(-0.4)]


def write(path, **section):
    rates = {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    both = rates | {"strategies.replay.replay_fraction": [0.25, 0.5]}
    given = {"seed": 7, "sampler": "tpe", "trials": 3, "methods": {"sequential": rates, "replay": both}} | section
    plain = tiny_config(methods={"sequential": {}, "replay": {"strategies": ["replay"]}}, seeds=[0], search=given)
    path.write_text(to_yaml(plain))
    return str(path)


def test_every_method_gets_as_many_trials_and_a_repeated_command_trains_none(tmp_path, monkeypatch, capsys):
    from cl_toolkit.study import compare, sampler, tune

    begun = []
    execute = compare.execute_run
    monkeypatch.setattr(
        compare, "execute_run", lambda config, *rest: begun.append(config.method) or execute(config, *rest)
    )
    for module in (sampler, tune):  # so that the last trial is one that looks at results
        monkeypatch.setattr(module, "AT_RANDOM", 2)
    source, out = write(tmp_path / "my.yaml"), tmp_path / "out"
    assert call(monkeypatch, capsys, "tune", source, "--out", out)[0] == 0
    assert [sum(name.startswith(method) for name in begun) for method in ("sequential", "replay")] == [3, 3]
    first = (out / "tuned.yaml").read_text()
    code, said, _ = call(monkeypatch, capsys, "tune", source, "--out", out)
    assert (code, len(begun)) == (0, 6)
    assert (out / "tuned.yaml").read_text() == first
    assert "value tried" not in said  # a range has no edge that it stops at


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"trials": None}, "search.trials: missing; expected how many"),
        ({"sampler": "grid"}, "search.trials: is for sampler: tpe"),
        ({"widen": 2}, "search.widen: 2 does nothing with sampler tpe"),
        ({"criterion": "learning", "margin": 0.1}, r"search.margin: 0\.1 does nothing with criterion learning"),
        ({"sampler": "grid", "trials": None}, r"train\.learning_rate: a range is for search\.sampler: tpe"),
        ({"methods": {"replay": {"train.learning_rate": [1e-3]}}}, "replay: has 1 combinations; every method gets 3"),
        ({"methods": {"replay": {"train.learning_rate": {"low": 1e-3, "high": 1e-4}}}}, "low: expected less than high"),
        (
            {"methods": {"replay": {"train.learning_rate": {"low": 0, "high": 0.1, "log": True}}}},
            "low: expected a number above 0",
        ),
        ({"methods": {"replay": {"train.learning_rate": {"low": 0.1}}}}, r"learning_rate\.high: missing"),
        (
            {"methods": {"replay": {"strategies.replay.replay_fraction": {"low": 0.1, "high": 1.5}}}},
            r"strategies\.replay\.replay_fraction: expected a number in \[0, 1\), got 1\.5",
        ),
        (
            {"trials": 5, "methods": {"replay": {"train.max_steps": {"low": 2, "high": 4}}}},
            "has 3 combinations; every method gets 5 trials",
        ),
    ],
)
def test_a_wrong_range_is_refused(tmp_path, section, words):
    with pytest.raises(UserError, match=words):
        Tuning.of(write(tmp_path / "my.yaml", **section))


def test_without_optuna_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs optuna: pip install 'cl-toolkit\[tune\]'"):
        Tuning.of(write(tmp_path / "my.yaml"))


def test_a_setting_that_says_no_where_there_is_nothing_is_no_idle_one():
    assert Search(seed=1, methods={}, sampler="tpe", trials=2, widen=0, criterion="learning", margin=0.0).widen == 0
