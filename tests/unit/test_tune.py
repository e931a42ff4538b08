"""Every method gets the same number of trials, on validation data, and the best of them."""

import pytest
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.config.plain_yaml import to_yaml
from cl_toolkit.study import choice, tune
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.compare import compare

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
    found, failures = compare(study, tmp_path / "trials")
    records = found.records
    assert failures == []
    chosen = choice.best(trials, records)
    accuracy = {r["method"]: r["metrics"]["acc"] for r in records}
    assert list(chosen) == ["sequential", "replay"]
    for outcome in chosen.values():
        assert accuracy[outcome.trial.name] == outcome.score
    assert choice.table(trials, records).chosen.sum() == 2
    tuned = load_study(str(tune.write_tuned(source, tmp_path, trials, chosen)))
    for run in tuned.runs:
        assert run.train.learning_rate == chosen[run.method].trial.values["train.learning_rate"]
        assert run.evaluate.split == "test"


def test_what_the_command_line_said_of_the_trials_is_in_the_tuned_config(tmp_path):
    source, overrides = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES}), ["train.max_steps=2"]
    _, trials = tune.trials(source, overrides)
    chosen = {"sequential": choice.Outcome(trials[0], 0.5, {"acc": 0.5})}
    tuned = load_study(str(tune.write_tuned(source, tmp_path, trials, chosen, overrides)))
    assert {run.train.max_steps for run in tuned.runs} == {2}
    with pytest.raises(UserError, match="command line: strategies"):
        tune.trials(source, ["strategies.replay.replay_fraction=0.1"])


def trial(number, **values):
    return tune.Trial(name=f"a.{number}", method="a", values=values, difference={})


def run(number, acc, learning=0.9, order="given", status="finished"):
    metrics = {"acc": acc, "bwt": -0.1, "learning_accuracy": learning}
    return {"method": f"a.{number}", "order": order, "status": status} | ({"metrics": metrics} if acc else {})


def test_a_trial_counts_by_its_mean_over_task_orders():
    records = [run(1, 0.9), run(1, 0.1, order="b"), run(2, 0.6), run(2, 0.5, order="b")]
    chosen = choice.best([trial(1), trial(2)], records)["a"]
    assert (chosen.trial.name, chosen.score) == ("a.2", pytest.approx(0.55))


def test_of_equal_trials_the_first_is_chosen():
    trials = [trial(1), trial(2), trial(3)]
    records = [run(1, 0.2), run(2, 0.5), run(3, 0.5)]
    assert choice.best(trials, records)["a"].trial.name == "a.2"
    records[1] = run(2, None, status="failed")
    assert choice.best(trials, records)["a"].trial.name == "a.3"


def test_a_trial_that_hardly_learns_is_not_chosen_for_what_it_cannot_forget():
    trials = [trial(1), trial(2), trial(3)]
    records = [run(1, 0.51, learning=0.64), run(2, 0.27, learning=0.93), run(3, 0.30, learning=0.88)]
    assert choice.best(trials, records)["a"].trial.name == "a.3"
    assert choice.LEARNING_MARGIN == 0.05
    joint = [run(1, 0.5, learning=None), run(2, 0.6, learning=None)]
    assert choice.best(trials[:2], joint)["a"].trial.name == "a.2"
    perplexity = [r | {"higher_is_better": [False]} for r in (run(1, 9.0, 4.0), run(2, 8.0, 4.3), run(3, 9.5, 3.9))]
    assert choice.best(trials, perplexity)["a"].trial.name == "a.1"


@pytest.mark.parametrize("rest", [[], [("b", "failed"), ("c", "failed")], [("b", "finished"), ("c", "running")]])
def test_a_trial_that_failed_or_is_missing_in_one_order_is_never_chosen(rest):
    trials = [trial(1, rate=1e-4), trial(2, rate=1e-1)]
    records = [run(1, 0.6, order=order) for order in "abc"]
    records += [run(2, 0.65, order="a"), *(run(2, 0.65, order=o, status=status) for o, status in rest)]
    assert choice.best(trials, records)["a"].trial.name == "a.1"
    assert list(choice.table(trials, records).status) == ["finished", "failed"]
    assert choice.best(trials[1:], records) == {}
    assert choice.remarks(trials[1:], {}, ["a"])[1] == "every trial failed, settings as in the config: a"


def test_the_edge_of_an_axis_and_methods_without_a_search_are_named(tmp_path):
    trials = [trial(i, rate=rate, mode=mode) for i, (rate, mode) in enumerate(((1, "x"), (2, "y"), (3, "x")), 1)]
    chosen = {"a": choice.Outcome(trials[2], 0.5, {"acc": 0.5})}
    lines = choice.remarks(trials, chosen, ["a", "ewc", "si"])
    assert "within 0.05" in lines[0]
    assert lines[1:] == [
        "a: rate=3 is the largest value tried; a better one may lie beyond",
        "not searched, settings as in the config: ewc, si",
    ]
    assert len(choice.remarks(trials, {"a": choice.Outcome(trials[1], 0.5, {"acc": 0.5})}, ["a"])) == 1
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES})
    _, found = tune.trials(source)
    text = tune.write_tuned(
        source, tmp_path, found, {"sequential": choice.Outcome(found[1], 0.5, {"acc": 0.5})}
    ).read_text()
    assert "# not searched, settings as in the config: replay" in text
    assert "# sequential: train.learning_rate=0.01 is the largest value tried" in text


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (["evaluate.split=test"], {}),
        ([], {"evaluate": {"split": "test"}}),
        ([], {"methods": {"sequential": {"evaluate": {"split": "test"}}}}),
        ([], {"search": {"seed": 7, "methods": {"sequential": {"evaluate.split": ["test"]}}}}),
    ],
)
def test_the_test_split_is_refused(tmp_path, overrides, changes):
    from omegaconf import OmegaConf

    plain = {"methods": METHODS, "seeds": [0], "search": {"seed": 7, "methods": {"sequential": RATES}}} | changes
    path = tmp_path / "my.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(tiny_config(**plain))))
    with pytest.raises(UserError, match=r"evaluate\.split: .*validation data alone"):
        tune.trials(str(path), overrides)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"seed": 0, "methods": {"sequential": RATES}}, "search.seed: 0 is one of the comparison's seeds"),
        (
            {"seed": 7, "orders": ["given"], "methods": {"sequential": RATES}},
            "search.orders: max, last is one of the comparison's orders; choose another",
        ),
        (
            {"seed": 7, "orders": "reversed", "methods": {"sequential": RATES}},
            "search: orders: expected a list of task lists",
        ),
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


def test_trials_may_have_orders_that_the_comparison_does_not_use(tmp_path):
    plain = {
        "methods": METHODS,
        "orders": ["given"],
        "search": {"seed": 7, "orders": ["reversed"], "methods": {"sequential": RATES}},
    }
    path = tmp_path / "my.yaml"
    path.write_text(to_yaml({**tiny_config(), **plain}))
    study, _ = tune.trials(str(path))
    assert {run.order for run in study.runs} == {"last+max"}
    assert study.plain["orders"] == ["reversed"]
