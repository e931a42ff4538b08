"""Every method gets the same number of trials, on validation data, and the best of them."""

import pytest
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.config.plain_yaml import to_yaml
from cl_toolkit.study import choice
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.compare import compare
from cl_toolkit.study.search import Search, Trial, combinations, nested
from cl_toolkit.study.tune import Tuning
from cl_toolkit.study.tuned import write_tuned

RATES = {"train.learning_rate": [1e-3, 1e-2]}
METHODS = {"sequential": {}, "replay": {"strategies": ["replay"]}}


def config(path, **search):
    """A config file with a search."""
    plain = tiny_config(methods=METHODS, seeds=[0], search=search)
    path.write_text(to_yaml(plain))
    return str(path)


def test_combinations_and_nesting():
    assert combinations({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def first_round(source, overrides=()):
    """A search, its first trials, and their comparison."""
    tuning = Tuning.of(source, overrides)
    trials = tuning.further(0, [])
    return tuning, trials, tuning.study(trials)


def test_trials_score_validation_data_with_a_seed_of_their_own(tmp_path):
    fractions = {"strategies.replay.replay_fraction": [0.25, 0.5]}
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES, "replay": fractions})
    _, trials, study = first_round(source)
    assert [t.method for t in trials] == ["sequential"] * 2 + ["replay"] * 2
    assert list(study.methods) == [t.name for t in trials]
    assert {run.evaluate.split for run in study.runs} == {"valid"}
    assert {run.seed.data for run in study.runs} == {7}
    assert [run.train.learning_rate for run in study.runs[:2]] == [1e-3, 1e-2]
    assert [run.strategies[0].settings.replay_fraction for run in study.runs[2:]] == [0.25, 0.5]


def test_a_trial_keeps_its_name_whatever_else_is_tried(tmp_path):
    few = config(tmp_path / "few.yaml", seed=7, methods={"replay": RATES})
    more = config(tmp_path / "more.yaml", seed=7, methods={"replay": {"train.learning_rate": [1e-4, 1e-3, 1e-2]}})
    names = [[t.name for t in first_round(source)[1]] for source in (few, more)]
    assert names[1][1:] == names[0]
    assert len(set(names[1])) == 3


def test_the_best_trial_is_written_as_a_config(tmp_path):
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES, "replay": RATES})
    tuning, trials, study = first_round(source)
    found, failures = compare(study, tmp_path / "trials")
    assert failures == []
    made = choice.outcomes(trials, found.records)
    chosen = choice.best(made, tuning.search)
    accuracy = {r["method"]: r["metrics"]["acc"] for r in found.records}
    assert list(chosen) == ["sequential", "replay"]
    for outcome in chosen.values():
        assert accuracy[outcome.trial.name] == outcome.score("final")
        assert outcome.seconds > 0
        assert outcome.unit == "CPU s"
    assert choice.table(made, chosen).chosen.sum() == 2
    tuned = load_study(str(write_tuned(tuning, tmp_path, study, made, chosen)))
    for run in tuned.runs:
        assert run.train.learning_rate == chosen[run.method].trial.values["train.learning_rate"]
        assert run.evaluate.split == "test"


def test_what_the_command_line_said_of_the_trials_is_in_the_tuned_config(tmp_path):
    source, overrides = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES}), ["train.max_steps=2"]
    tuning, trials, study = first_round(source, overrides)
    made = [choice.Outcome(trials[0], {"acc": 0.5})]
    tuned = load_study(str(write_tuned(tuning, tmp_path, study, made, {"sequential": made[0]})))
    assert {run.train.max_steps for run in tuned.runs} == {2}
    with pytest.raises(UserError, match="command line: strategies"):
        Tuning.of(source, ["strategies.replay.replay_fraction=0.1"])


def trial(number, method="a", **values):
    return Trial(method=method, values=values or {"n": number}, difference={})


def run(trial, acc, learning=0.9, average=None, order="given", status="finished"):
    metrics = {"acc": acc, "bwt": -0.1, "learning_accuracy": learning, "average_incremental_accuracy": average}
    return {"method": trial.name, "order": order, "status": status} | ({"metrics": metrics} if acc else {})


def search(**changes):
    return Search(seed=7, methods={"a": {}}, **changes)


def best(trials, records, **changes):
    """The trial that is chosen for each method."""
    found = choice.best(choice.outcomes(trials, records), search(**changes))
    return {method: outcome.trial for method, outcome in found.items()}


def test_a_trial_counts_by_its_mean_over_task_orders():
    one, two = trial(1), trial(2)
    records = [run(one, 0.9), run(one, 0.1, order="b"), run(two, 0.6), run(two, 0.5, order="b")]
    chosen = choice.best(choice.outcomes([one, two], records), search())["a"]
    assert (chosen.trial, chosen.score("final")) == (two, pytest.approx(0.55))


def test_of_equal_trials_the_first_is_chosen():
    trials = [trial(1), trial(2), trial(3)]
    records = [run(t, acc) for t, acc in zip(trials, (0.2, 0.5, 0.5), strict=True)]
    assert best(trials, records)["a"] == trials[1]
    records[1] = run(trials[1], None, status="failed")
    assert best(trials, records)["a"] == trials[2]


def test_a_trial_that_hardly_learns_is_not_chosen_for_what_it_cannot_forget():
    trials = [trial(1), trial(2), trial(3)]
    rows = ((0.51, 0.64), (0.27, 0.93), (0.30, 0.88))
    records = [run(t, acc, learned) for t, (acc, learned) in zip(trials, rows, strict=True)]
    assert best(trials, records)["a"] == trials[2]
    assert search().margin == 0.05
    assert best(trials, records, margin=0.3)["a"] == trials[0]
    assert best(trials, records, margin=0.0)["a"] == trials[1]
    assert best(trials, records, criterion="learning")["a"] == trials[1]
    joint = [run(trials[0], 0.5, learning=None), run(trials[1], 0.6, learning=None)]
    assert best(trials[:2], joint)["a"] == trials[1]
    rows = ((9.0, 4.0), (8.0, 4.3), (9.5, 3.9))
    records = [run(t, *row) | {"higher_is_better": [False]} for t, row in zip(trials, rows, strict=True)]
    assert best(trials, records)["a"] == trials[0]


def test_a_second_criterion_that_would_decide_otherwise_is_told():
    a, b, c, d = trial(1), trial(2), trial(1, "b"), trial(2, "b")
    joint = trial(1, "joint")
    records = [
        run(a, 0.6, average=0.7),
        run(b, 0.5, average=0.8),
        run(c, 0.5, average=0.9),
        run(d, 0.4, average=0.6),
        run(joint, 0.9, learning=None),
    ]
    made = choice.outcomes([a, b, c, d, joint], records)
    assert choice.flips(made, search()) == (
        "By score averaged over time another trial would be chosen for a, and the order of methods would be b, a, and not a, b."
    )
    assert choice.flips(made, search(criterion="average")) == (
        "By final score another trial would be chosen for a, and the order of methods would be a, b, and not b, a."
    )
    assert best([a, b, c, d, joint], records, criterion="average") == {"a": b, "b": c, "joint": joint}
    told = "By score averaged over time the same trials would be chosen, in the same order of methods."
    assert choice.flips([made[0], made[4]], search()) == told
    equal = [run(a, 0.5, average=0.7), run(c, 0.5, average=0.8)]  # by the first neither is before the other
    assert choice.flips(choice.outcomes([a, c], equal), search()) == told
    assert choice.flips(choice.outcomes([c, a], equal[::-1]), search()) == told
    frame = choice.rankings(made, search()).set_index("method")
    assert list(frame["place by final"]) == [1, 2, 3]
    assert list(frame["place by average"].fillna(0)) == [0, 2, 1]
    assert list(frame["final score"]) == [0.9, 0.6, 0.5]
    level = choice.outcomes([a, c, joint], [run(a, 0.6), run(c, 0.6), run(joint, 0.5)])
    assert list(choice.rankings(level, search())["place by final"]) == [1, 1, 3]
    rounded = [run(a, 0.3), run(b, (0.2 + 0.4) / 2), run(c, 0.3)]  # b's is larger by rounding alone
    level = choice.outcomes([a, b, c], rounded)
    assert best([a, b, c], rounded) == {"a": a, "b": c}
    assert list(choice.rankings(level, search())["place by final"]) == [1, 1]


@pytest.mark.parametrize("rest", [[], [("b", "failed"), ("c", "failed")], [("b", "finished"), ("c", "running")]])
def test_a_trial_that_failed_or_is_missing_in_one_order_is_never_chosen(rest):
    trials = [trial(1, rate=1e-4), trial(2, rate=1e-1)]
    records = [run(trials[0], 0.6, order=order) for order in "abc"]
    records += [run(trials[1], 0.65, order="a"), *(run(trials[1], 0.65, order=o, status=status) for o, status in rest)]
    made = choice.outcomes(trials, records)
    chosen = choice.best(made, search())
    assert chosen["a"].trial == trials[0]
    assert list(choice.table(made, chosen).status) == ["finished", "failed"]
    assert best(trials[1:], records) == {}


def test_the_edge_of_an_axis_and_methods_without_a_search_are_named(tmp_path):
    rates = {"train.learning_rate": [1e-3, 1e-2, 1e-1]}
    tuning, trials, study = first_round(config(tmp_path / "my.yaml", seed=7, methods={"sequential": rates}))
    made = [choice.Outcome(t, {"acc": 0.5, "learning_accuracy": 0.9}) for t in trials]
    lines = tuning.remarks(made, {"sequential": made[2]})
    assert "within 0.05" in tuning.rule
    assert lines == [  # there is no second criterion to rank by
        "sequential: 3 of 3 trials are equally good; the first of them was taken",
        "sequential: train.learning_rate=0.1 is the largest value tried; a better one may lie beyond",
        "not searched, settings as in the config: replay",
    ]
    assert len(tuning.remarks(made, {"sequential": made[1]})) == 2
    apart = [
        choice.Outcome(t, {"acc": a, "learning_accuracy": 0.9}) for t, a in zip(trials, (0.5, 0.6, 0.5), strict=True)
    ]
    assert len(tuning.remarks(apart, {"sequential": apart[1]})) == 1
    failed = tuning.remarks([choice.Outcome(t) for t in trials], {})
    assert "every trial failed, settings as in the config: sequential" in failed
    text = write_tuned(tuning, tmp_path, study, made, {"sequential": made[2]}).read_text()
    assert "# not searched, settings as in the config: replay" in text
    assert "# sequential: train.learning_rate=0.1 is the largest value tried" in text


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
        Tuning.of(str(path), overrides)


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
        ({"seed": 7, "methods": {"replay": None}}, r"expected key: \[values\], got None"),
        ({"seed": 7, "methods": {"replay": {"train.learning_rate": [0.1, 0.1]}}}, "learning_rate: 0.1 is given twice"),
        ({"seed": 7, "methods": {}}, "search.methods: is empty"),
    ],
)
def test_a_wrong_search_is_refused(tmp_path, search, words):
    with pytest.raises(UserError, match=words):
        Tuning.of(config(tmp_path / "my.yaml", **search))


@pytest.mark.parametrize("axis", [{"evaluate": [{"split": "test"}]}, {"evaluate.limit": [1, 2]}, {"name": ["a", "b"]}])
def test_what_all_trials_have_in_common_is_not_searched(tmp_path, axis):
    """A section that is tried as a whole must be no way to the test split."""
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": axis})
    with pytest.raises(UserError, match=f"search.methods.sequential: {next(iter(axis))}: all trials have the same"):
        Tuning.of(source)


def test_equal_numbers_are_given_twice(tmp_path):
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": {"train.learning_rate": [1, 1.0]}})
    with pytest.raises(UserError, match="1 is given twice"):
        Tuning.of(source)


def test_without_a_search_there_is_nothing_to_tune():
    with pytest.raises(UserError, match="search: is empty"):
        Tuning.of("quickstart")


def test_trials_may_have_orders_that_the_comparison_does_not_use(tmp_path):
    plain = {
        "methods": METHODS,
        "orders": ["given"],
        "search": {"seed": 7, "orders": ["reversed"], "methods": {"sequential": RATES}},
    }
    path = tmp_path / "my.yaml"
    path.write_text(to_yaml({**tiny_config(), **plain}))
    _, _, study = first_round(str(path))
    assert {run.order for run in study.runs} == {"last+max"}
    assert study.plain["orders"] == ["reversed"]


def sister(path, **stream):
    """A config with another stream."""
    plain = tiny_config(methods={"other": {}}, seeds=[0], evaluate={"max_new_tokens": 5, "batch_size": 3})
    plain["stream"] = {"name": "skills", "tasks": ["sort", "vowels"], "train_size": 12, "test_size": 6, **stream}
    path.write_text(to_yaml(plain))
    return str(path)


def test_settings_can_be_chosen_on_the_stream_of_another_config(tmp_path):
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES})
    on = sister(tmp_path / "other.yaml")
    tuning = Tuning.of(source, ["train.max_steps=2"], on)
    trials = tuning.further(0, [])
    study = tuning.study(trials)
    own = load_study(source)
    assert tuning.title == "my-tune-on-other"
    assert [run.method for run in study.runs] == [t.name for t in trials]
    for run in study.runs:
        assert (run.stream.name, run.stream.tasks) == ("skills", ("sort", "vowels"))
        assert run.evaluate.max_new_tokens == 5  # as long as its answers are
        assert (run.evaluate.split, run.train.max_steps) == ("valid", 2)
        assert run.evaluate.batch_size == own.runs[0].evaluate.batch_size
        assert run.plain["model"] == own.runs[0].plain["model"]
    made = [choice.Outcome(t, {"acc": 0.5, "learning_accuracy": 0.9}) for t in trials]
    path = write_tuned(tuning, tmp_path, study, made, {"sequential": made[1]})
    assert f"# chosen on validation data of the stream of {on}: " in path.read_text()
    tuned = load_study(str(path))
    assert tuned.runs[0].stream == own.runs[0].stream
    assert tuned.runs[0].train.learning_rate == 1e-2


@pytest.mark.parametrize("limit", [None, 4])
def test_another_stream_with_the_same_data_is_refused(tmp_path, limit):
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES})
    plain = tiny_config(methods=METHODS, seeds=[3], name="twin")
    plain["stream"] = {**plain["stream"], "tasks": ["last", "sort"], "limit": {"train": limit}}
    (tmp_path / "twin.yaml").write_text(to_yaml(plain))
    with pytest.raises(UserError, match=r"--on .*twin\.yaml: the comparison has the same data, as last there"):
        Tuning.of(source, (), str(tmp_path / "twin.yaml"))


def test_what_is_of_one_stream_is_not_said_of_two(tmp_path):
    source = config(tmp_path / "my.yaml", seed=7, methods={"sequential": RATES})
    with pytest.raises(UserError, match="command line: stream: is of one stream"):
        Tuning.of(source, ["stream.limit.train=3"], sister(tmp_path / "other.yaml"))
    with pytest.raises(UserError, match="quickstrat: neither a file nor a shipped config; did you mean 'quickstart'"):
        Tuning.of(source, (), "quickstrat")
