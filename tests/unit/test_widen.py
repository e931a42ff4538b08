"""A grid whose best value lies at its edge grows, for all methods by equally many trials."""

import pytest
from files import call
from tiny import tiny_config

from cl_toolkit.config.plain_yaml import to_yaml
from cl_toolkit.study.choice import Outcome, best
from cl_toolkit.study.search import Search, Trial, combinations
from cl_toolkit.study.tune import Tuning
from cl_toolkit.study.widen import beyond, gaps, widened


@pytest.mark.parametrize(
    ("values", "chosen", "step"),
    [
        ([1e-4, 3e-4], 3e-4, 9e-4),
        ([1e-4, 3e-4], 1e-4, 3.33333e-5),
        ([1e-4, 1e-3, 1e-2], 1e-2, 0.1),
        ([0.5, 0.75, 1.0], 1.0, 1.25),
        ([0.5, 0.75, 1.0], 0.5, 0.25),
        ([-1, 0, 1], -1, -2),
        ([16, 32, 64], 64, 128),
        ([1, 30, 1000], 1, None),  # 0.03 is no whole number
        ([16, 32, 64], 32, None),
    ],
)
def test_a_step_beyond_goes_on_as_the_values_do(values, chosen, step):
    found = beyond(values, chosen)
    assert found == step
    assert type(found) in (type(step), type(values[0]))


def test_gaps_beside_a_value_are_halved_towards_it():
    assert list(gaps([1.0, 16.0, 256.0], 16.0))[:4] == [4.0, 64.0, 8.0, 32.0]
    assert list(gaps([0.0, 1.0, 2.0], 2.0))[:2] == [1.5, 1.75]
    assert list(gaps([1, 2, 3], 2)) == [2, 2] * 4  # nothing lies between, which `widened` leaves out


def outcome(method, score, **values):
    trial = Trial(method=method, values=values, difference=values)
    return Outcome(trial, {"acc": score, "learning_accuracy": 0.9})


def grid(method, favourite, **axes):
    """Outcomes of a grid of which one combination is the best."""
    return [outcome(method, 0.9 if values == favourite else 0.5, **values) for values in combinations(axes)]


def further(made, allowed=lambda trial: True):
    found = widened(made, best(made, Search(seed=7, methods={"a": {}})), allowed)
    return [(t.method, t.values) for t in found]


def test_all_methods_get_as_many_further_trials_as_the_one_with_most_edges():
    at_edges = grid("a", {"rate": 0.1, "weight": 100}, rate=[0.001, 0.01, 0.1], weight=[1, 10, 100])
    inside = grid("b", {"rate": 0.01}, rate=[0.001, 0.01, 0.1])
    assert further([*at_edges, *inside]) == [
        ("a", {"rate": 1.0, "weight": 100}),
        ("a", {"rate": 0.1, "weight": 1000}),
        ("b", {"rate": 0.00316228}),
        ("b", {"rate": 0.0316228}),
    ]
    assert further(inside) == []


def test_what_a_key_does_not_take_is_not_tried_and_the_count_is_even():
    share = grid("a", {"share": 1.0}, share=[0.25, 0.5, 1.0])
    other = grid("b", {"rate": 0.1}, rate=[0.001, 0.01, 0.1])

    def allowed(trial):
        return trial.values.get("share", 0) <= 1

    assert further(share, allowed) == []  # the edge is that of the key
    assert further([*share, *other], allowed) == [("a", {"share": 0.707107}), ("b", {"rate": 1.0})]
    words = grid("c", {"mode": "x"}, mode=["x", "y"])
    assert further([*other, *words]) == []  # one method has no further values, so none gets any
    whole = grid("d", {"size": 2}, size=[1, 2])
    assert further(whole, lambda trial: trial.values["size"] < 3) == []


def write(path, **search):
    rates = {"train.learning_rate": [1e-3, 1e-2]}
    shares = {"strategies.replay.replay_fraction": [0.3, 0.9]}
    methods = {"sequential": {}, "replay": {"strategies": ["replay"]}}
    section = {"seed": 7, "methods": {"sequential": rates, "replay": shares}, **search}
    path.write_text(to_yaml(tiny_config(methods=methods, seeds=[0], search=section)))
    return str(path)


def test_values_stay_in_the_range_of_their_key(tmp_path):
    tuning = Tuning.of(write(tmp_path / "my.yaml"))
    trials = tuning.further(0, [])
    made = [Outcome(t, {"acc": a, "learning_accuracy": 0.9}) for t, a in zip(trials, (0.1, 0.2, 0.1, 0.2), strict=True)]
    found = [t.values for t in tuning.further(1, made)]
    assert found == [{"train.learning_rate": 0.1}, {"strategies.replay.replay_fraction": 0.519615}]
    assert tuning.further(2, made) == []
    assert Tuning.of(write(tmp_path / "narrow.yaml", widen=0)).further(1, made) == []


def test_an_interrupted_search_goes_on_with_what_is_there(tmp_path, monkeypatch, capsys):
    from cl_toolkit.study import compare

    source, out = write(tmp_path / "my.yaml"), tmp_path / "out"
    begun = []
    execute = compare.execute_run

    def counted(config, *rest):
        begun.append(config.method)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return execute(config, *rest)

    monkeypatch.setattr(compare, "execute_run", counted)
    assert call(monkeypatch, capsys, "tune", source, "--out", out)[0] != 0
    assert len(begun) == 4
    assert call(monkeypatch, capsys, "tune", source, "--out", out)[0] == 0
    assert len(begun) == 7  # the fourth, and a round of one for each method
    first = (out / "tuned.yaml").read_text()
    assert call(monkeypatch, capsys, "tune", source, "--out", out)[0] == 0
    assert len(begun) == 7
    assert (out / "tuned.yaml").read_text() == first


def test_a_trial_that_fails_is_begun_once_in_a_search(tmp_path, monkeypatch, capsys):
    from cl_toolkit.study import compare

    begun = []
    execute = compare.execute_run

    def failing(config, place, *rest):
        begun.append(config.method)
        if config.train.learning_rate == 1e-3:
            compare.write_failure(config, place, "it diverged")
            return "it diverged"
        return execute(config, place, *rest)

    monkeypatch.setattr(compare, "execute_run", failing)
    code, said, errors = call(monkeypatch, capsys, "tune", write(tmp_path / "my.yaml"), "--out", tmp_path / "out")
    assert code == 1
    assert len(begun) == len(set(begun)) == 6  # two for each method, and a round of one
    assert errors.count("it diverged") == 1
    assert "failed" in said
    monkeypatch.setattr(
        compare, "execute_run", lambda config, place, *rest: compare.write_failure(config, place, "x") or "x"
    )
    code, said, _ = call(monkeypatch, capsys, "tune", write(tmp_path / "my.yaml"), "--out", tmp_path / "none")
    assert code == 1
