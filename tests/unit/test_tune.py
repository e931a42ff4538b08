"""Every method gets the same number of trials, on validation data, and the best of them."""

import pytest
from tiny import tiny_config

from cl_toolkit import UserError, tune
from cl_toolkit.plain_yaml import to_yaml
from cl_toolkit.study import compare
from cl_toolkit.study_config import load_study

RATES = {"train.learning_rate": [1e-3, 1e-2]}
METHODS = {"sequential": {}, "replay": {"strategies": ["replay"]}}


def config(path, **search):
    """A config file with a search."""
    plain = tiny_config(methods=METHODS, seeds=[0], search=search)
    path.write_text(to_yaml(plain))
    return str(path)


def test_combinations_and_nesting():
    assert tune.combinations({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]
    assert tune.nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_trials_score_validation_data_with_a_seed_of_their_own(tmp_path):
    fractions = {"strategies.replay.replay_fraction": [0.25, 0.5]}
    study, trials = tune.trials(
        config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES, "replay": fractions})
    )
    assert [t.name for t in trials] == ["sequential.1", "sequential.2", "replay.1", "replay.2"]
    assert {run.evaluate.split for run in study.runs} == {"valid"}
    assert {run.seed.data for run in study.runs} == {7}
    assert [run.train.learning_rate for run in study.runs[:2]] == [1e-3, 1e-2]
    assert [run.strategies[0].settings.replay_fraction for run in study.runs[2:]] == [0.25, 0.5]


def test_the_best_trial_is_written_as_a_config(tmp_path):
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES, "replay": RATES})
    study, trials = tune.trials(source)
    records, failures = compare(study, tmp_path / "trials")
    assert failures == []
    chosen = tune.best(trials, records)
    accuracy = {r["method"]: r["metrics"]["acc"] for r in records}
    for method, (trial, score) in chosen.items():
        assert score == max(value for name, value in accuracy.items() if name.startswith(f"{method}."))
        assert accuracy[trial.name] == score
    assert tune.table(trials, records).chosen.sum() == 2
    tuned = load_study(str(tune.write_tuned(source, tmp_path, chosen)))
    for run in tuned.runs:
        assert run.train.learning_rate == chosen[run.method][0].values["train.learning_rate"]
        assert run.evaluate.split == "test"


def test_what_the_command_line_said_of_the_trials_is_in_the_tuned_config(tmp_path):
    source, overrides = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES}), ["train.max_steps=2"]
    _, trials = tune.trials(source, overrides)
    tuned = load_study(str(tune.write_tuned(source, tmp_path, {"sequential": (trials[0], 0.5)}, overrides)))
    assert {run.train.max_steps for run in tuned.runs} == {2}
    with pytest.raises(UserError, match="command line: strategies"):
        tune.trials(source, ["strategies.replay.replay_fraction=0.1"])


def test_a_trial_counts_by_its_mean_over_task_orders():
    trials = [tune.Trial(name=f"a.{i}", method="a", values={}, difference={}) for i in (1, 2)]
    scores = (("a.1", 0.9), ("a.1", 0.1), ("a.2", 0.6), ("a.2", 0.5))
    records = [{"method": m, "status": "finished", "metrics": {"acc": acc}} for m, acc in scores]
    trial, score = tune.best(trials, records)["a"]
    assert (trial.name, score) == ("a.2", pytest.approx(0.55))


def test_of_equal_trials_the_first_is_chosen():
    trials = [tune.Trial(name=f"a.{i}", method="a", values={}, difference={}) for i in (1, 2, 3)]
    records = [{"method": f"a.{i}", "status": "finished", "metrics": {"acc": acc}} for i, acc in ((1, 0.2), (2, 0.5))]
    records.append({"method": "a.3", "status": "finished", "metrics": {"acc": 0.5}})
    assert tune.best(trials, records)["a"][0].name == "a.2"
    records[1]["status"] = "failed"
    assert tune.best(trials, records)["a"][0].name == "a.3"


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"seed": 0, "methods": {"sequential": RATES}}, "search.seed: 0 is one of the comparison's seeds"),
        ({"seed": 7, "methods": {"sequential": RATES, "replay": {"train.max_steps": [1]}}}, "same number of trials"),
        ({"seed": 7, "methods": {"repaly": RATES}}, "unknown method 'repaly'; did you mean 'replay'"),
        ({"seed": 7, "methods": {"replay": {"train.learning_rate": 0.1}}}, r"expected key: \[values\]"),
        ({"seed": 7, "methods": {"replay": {"train.learning_rat": [0.1]}}}, "train.learning_rat: unknown key"),
        ({"seeds": 7}, "search.seeds: unknown key"),
        ({"seed": 7, "methods": {}}, "search.methods: is empty"),
    ],
)
def test_a_wrong_search_is_refused(tmp_path, search, words):
    with pytest.raises(UserError, match=words):
        tune.trials(config(tmp_path / "my.yaml", **search))


def test_without_a_search_there_is_nothing_to_tune():
    with pytest.raises(UserError, match="search: is empty"):
        tune.trials("quickstart")
