"""What the report may claim: the unit of an interval, corrections, what is never compared, what is never averaged."""

import math
import os

import numpy as np
import pandas as pd
import pytest
from reported import TASKS, failed, joint, record, regime, replay, rft, sentence, study
from scipy import stats

from cl_toolkit.errors import UserError
from cl_toolkit.report import build
from cl_toolkit.report.cautions import cautions
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.estimate import Estimate, holm, paired
from cl_toolkit.report.findings import findings, parted
from cl_toolkit.report.headline import headline
from cl_toolkit.report.latex import results
from cl_toolkit.report.likeness import mixed
from cl_toolkit.report.methods import by_method
from cl_toolkit.report.reading import chance, guessing, trusted
from cl_toolkit.report.sampling import sampling_variance
from cl_toolkit.report.tables import as_csv


def with_identity(run, **parts):
    """The record with an identity, of which these parts are other."""
    same = {"code": {"scorer x": "c"}, "data": dict.fromkeys(TASKS, "d"), "model": "m", "toolkit": {"version": "1"}}
    return run | {"identity": same | parts}


def seeds(make, n=3, **changes):
    return [make(seed=s, kept=k, **changes) for s, k in zip(range(n), (0.6, 0.65, 0.55, 0.62, 0.58), strict=False)]


def test_orders_are_the_outer_unit():
    kept = {"a": (0.6, 0.8), "b": (0.5, 0.5), "c": (0.3, 0.5)}
    runs = [replay(s, k, order=o) for o, pair in kept.items() for s, k in enumerate(pair)]
    base = [record(seed=s, order=o) for o in kept for s in (0, 1)]
    found = paired([trusted(r) for r in runs], [trusted(r) for r in base], "metrics.bwt")
    expected = stats.ttest_1samp([0.5, 0.3, 0.2], 0)
    low, high = expected.confidence_interval(0.95)
    assert (found.n, found.unit, found.mean) == (3, "orders", pytest.approx(1 / 3))
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue))
    text = sentence([*runs, *base], "replay").text
    assert "n=3 orders" in text
    assert "for this order" not in text


def test_two_orders_are_too_few_however_many_seeds():
    runs = [make(seed=s, order=o) for o in "ab" for s in range(5) for make in (record, replay)]
    assert "replay in 2 orders, too few for a verdict" in sentence(runs, "replay").text
    assert any(text.startswith("2 task orders") for text in cautions(Comparison.of(runs)))


def test_an_interval_is_never_narrower_than_the_test_sets_allow():
    assert Estimate.of([0.4] * 3).p == 1
    run = trusted(record(kept=0.5, learned=1.0))
    forgotten, learned = (p * (1 - p) / 200 for p in ((0.5 * 200 + 1) / 202, 201 / 202))
    assert sampling_variance(run, "metrics.acc") == pytest.approx((2 * forgotten + learned) / 9)
    assert sampling_variance(run, "metrics.bwt") == pytest.approx((2 * forgotten + 2 * learned) / 4)
    assert sampling_variance(run, "metrics.learning_accuracy") == pytest.approx(3 * learned / 9)
    assert sampling_variance(run | {"examples_scored": []}, "metrics.acc") == 0
    assert (
        sampling_variance(run | {"bounded": [True, True, False]}, "metrics.acc") == 0
    )  # a distance may lie within 0 and 1
    found = Estimate.of([0.02, 0.02, 0.02], [0.0003] * 3)
    assert found.high - found.mean == pytest.approx(1.96 * 0.01, rel=1e-4)
    assert found.p == pytest.approx(2 * stats.norm.sf(2))


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({}) == {}


def test_every_claim_of_a_page_is_corrected_for_all_of_them():
    made = Comparison.of(study())
    # control's loss; replay and rft twice, joint once against the control; replay against rft. Replay's final accuracy
    # against the control's is asked twice and counted once
    assert made.size == 7
    assert made.against_best("sequential") is made.against_control("replay", "metrics.acc")
    said = " ".join(cautions(Comparison.of(study())))
    assert "The page makes 7 comparisons." in said
    assert f"with 3 seeds from {stats.t.ppf(1 - 0.05 / 7 / 2, 2) / math.sqrt(3):.1f} standard deviations" in said
    ordered = sorted({c.estimate.p: c.corrected for c in made.differences.values()}.items())
    assert all(np.diff([corrected for _, corrected in ordered]) >= 0)


def test_no_winner_is_named_that_cannot_be_told_from_the_next():
    others = [r | {"method": "other"} for r in seeds(replay)[::-1]]
    for run, seed in zip(others, range(3), strict=True):
        run["seed"] = seed
    text = headline(Comparison.of([*(record(seed=s) for s in range(3)), *seeds(replay), *others]))
    assert "other and replay end best and cannot be told apart: mean final accuracy 0.70 ± 0.03 for other" in text
    assert "against 0.43 ± 0.00 for sequential" in text
    third = [r | {"method": "third"} for r in others]
    text = headline(Comparison.of([*(record(seed=s) for s in range(3)), *seeds(replay), *others, *third]))
    assert "other, replay and third end best and none of them can be told from other: mean" in text


def test_of_many_methods_those_come_first_that_tell_a_difference(tmp_path, monkeypatch):
    """A control, replay, and one that ends as the control does: its sentence stands folded once there are many."""
    controls = [record(seed=s) for s in range(3)]
    scores = ("matrix", "metrics", "undefined")
    idle = [r | {"method": "idle"} | {k: c[k] for k in scores} for r, c in zip(seeds(replay), controls, strict=True)]
    made = Comparison.of([*controls, *seeds(replay), *idle])
    assert [[f.method for f in part] for part in parted(findings(made))] == [["sequential", "idle", "replay"], []]
    monkeypatch.setattr("cl_toolkit.report.findings.MANY", 2)
    assert [[f.method for f in part] for part in parted(findings(made))] == [["sequential", "replay"], ["idle"]]
    alone = [r | {"method": "alone", "seed": 7 + i} for i, r in enumerate(idle)]  # beside no run of the control
    first, later = parted(findings(Comparison.of([*made.records, *alone])))
    assert ("alone" in {f.method for f in first}, [f.method for f in later]) == (True, ["idle"])
    page = build(made.records, tmp_path).read_text()
    assert "<summary>1 that cannot be told from their control, a sentence each" in page


def test_a_headline_names_five_of_many():
    alike = [run | {"method": f"like-{i}"} for i in range(8) for run in (record(seed=s) for s in range(3))]
    assert headline(Comparison.of(alike)).endswith("0.43 ± 0.00 for like-4, 0.43 ± 0.00 for like-5 and 2 more.")
    many = [run | {"method": f"replay-{i}"} for i in range(8) for run in seeds(replay)]
    told = headline(Comparison.of([*(record(seed=s) for s in range(3)), *many]))
    assert "for replay-0, 0.43 ± 0.00 for sequential, 0.70" in told  # the control, which ends last
    assert told.endswith("for replay-4 and 3 more.")


@pytest.mark.parametrize("lower", [False, True])
def test_who_owes_its_mean_to_runs_that_others_lack_is_not_called_the_best(lower):
    """Of the three seeds that both have the control ends better; replay has ten more, which went well."""
    sign = {"higher_is_better": [not lower] * 3, "units": ["score"] * 3, "examples_scored": []}
    well, some = (0.2, (0.75, 0.76, 0.75)) if lower else (0.95, (0.6, 0.61, 0.6))
    control = [record(seed=s, kept=k, **sign) for s, k in enumerate((0.7, 0.72, 0.69))]
    lucky = [replay(s, k, **sign) for s, k in enumerate([*some, *[well] * 10])]
    made = Comparison.of([*control, *lucky])
    assert (made.best, made.ahead) == ("replay", ["sequential"])
    text = headline(made)
    assert "none is told to end best: replay has the best mean final score" in text
    assert "of those that both have sequential ends better" in text
    assert "Methods do not have the same runs" in " ".join(cautions(made))
    table = results(made)
    assert "none is told to end best" in table
    assert "textbf" not in table
    same = Comparison.of([*control, *lucky[:3]])
    assert (same.best, same.ahead) == ("sequential", [])
    assert "same runs" not in " ".join(cautions(same))


def test_a_score_that_the_control_lacks_is_not_called_a_run_that_is_not_there():
    control = [record(seed=s, matrix=[[0.1] * 3] * 3 + [["not_evaluated", 0.5, 0.9]]) for s in range(3)]
    text = sentence([*control, *seeds(replay)], "replay").text
    assert "cannot be compared with sequential's: there is no task order and seed for which both are known" in text


def test_alone_in_its_regime_a_ceiling_is_told_by_what_it_is():
    alone = [["not_evaluated"] * 3 for _ in range(3)]
    for i in range(3):
        alone[i][i] = 0.9
    runs = [record("independent", s, regime=regime("independent"), matrix=[[0.1] * 3, *alone]) for s in range(3)]
    assert sentence(runs, "independent").text == "independent reaches a learning accuracy of 0.90 (n=3)."


def test_at_chance_none_learned():
    guessing = [[0.5] * 3] * 4
    runs = [make(seed=s, kept=0.5, learned=0.5, chance=guessing) for s in range(3) for make in (record, replay)]
    assert headline(Comparison.of(runs)) == (
        "None learned: of the methods that learn one task after the other the best, sequential, ends at a mean final "
        "accuracy of 0.50 ± 0.00, not distinguishable from pure guessing (0.50)."
    )
    unknown = [r | {"chance": [["not_evaluated"] * 3] * 4} for r in runs]
    assert "None learned" not in headline(Comparison.of(unknown))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {**dict.fromkeys(TASKS, "d"), "max": "e"}}, "other data for task max"),
        ({"model": "n"}, "another start model"),
        ({"toolkit": {"version": "2"}}, "another toolkit (version: 2 against 1)"),
        ({"code": {"scorer x": "e"}}, "other code of scorer x"),
    ],
)
def test_another_identity_is_not_compared(changes, words):
    runs = [with_identity(record(seed=s)) for s in range(3)] + [with_identity(r, **changes) for r in seeds(replay)]
    text = sentence(runs, "replay").text
    assert text.startswith(f"replay is not compared with sequential: {words}; it ends at a final accuracy of 0.70")
    assert f"replay is not compared ({words})" in headline(
        Comparison.of(runs)
    ) or f"sequential is not compared ({words})" in headline(Comparison.of(runs))
    same = [with_identity(r, code={"scorer x": "c", "replay": "r"}) for r in seeds(replay)]
    assert "forgets less" in sentence([*(with_identity(record(seed=s)) for s in range(3)), *same], "replay").text


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"evaluate": {"max_new_tokens": 8}}, "evaluate.max_new_tokens is 8 against none"),
        ({"prompt": {"template": "x"}}, "prompt.template is x against none"),
        ({"stream": {"scenario": "class"}}, "stream.scenario is class against none"),
        ({"stream": {"order": ["a"]}}, 'stream.order is ["a"] against none'),  # both are called `given`
        ({"evaluate": {"batch_size": 8, "forgetting_curve": {"every": 3}}}, ""),
    ],
)
def test_what_is_scored_otherwise_is_not_compared(section, words):
    runs = seeds(replay)
    for run in runs:
        run["config"] |= section
    text = sentence([*(record(seed=s) for s in range(3)), *runs], "replay").text
    assert (f"is not compared with sequential: {words}" in text) == bool(words)
    few = [r | {"examples_scored": [200, 10, 200]} for r in seeds(replay)]
    text = sentence([*(record(seed=s) for s in range(3)), *few], "replay").text
    assert "10 examples scored of task max, against 200" in text


def test_another_objective_may_have_heads_of_its_own():
    runs = [with_identity(record(seed=s)) for s in range(3)] + [
        with_identity(rft(s), model="with-heads") for s in range(3)
    ]
    assert "not compared" not in sentence(runs, "rft").text


def test_other_settings_of_training_stand_in_the_warning():
    runs = seeds(replay)
    for run in runs:
        run["config"]["train"] = {"learning_rate": 1e-2, "num_threads": 4}
        run["config"]["model"] = {"name": "tiny-lm", "adapter": {"r": 8}}
    finding = sentence([*(record(seed=s) for s in range(3)), *runs], "replay")
    assert "forgets less" in finding.text
    assert (
        "what is trained (an adapter against all weights), train.learning_rate (0.01 against 0.0003)."
        in finding.warning
    )
    assert "num_threads" not in finding.warning
    assert "objective (rft against sft)" in sentence([record(), rft()], "rft").warning


def test_runs_of_one_method_that_differ_in_more_than_seed_and_order_are_never_averaged(tmp_path):
    runs = [with_identity(record(seed=s)) for s in range(3)]
    runs[2]["config"]["seed"] = 2
    runs[1]["config"] |= {"train": {"learning_rate": 3e-4, "num_threads": 2}, "stream": {"order": ["b"]}}
    assert mixed(by_method(runs)) == {}
    other = with_identity(record(seed=3), data={**dict.fromkeys(TASKS, "d"), "sort": "e"})
    assert mixed(by_method([*runs, other])) == {"sequential": "data sort is d in given-s0 and e in given-s3"}
    other = with_identity(record(seed=3))
    other["config"]["train"]["learning_rate"] = 0.05
    words = "method sequential: train.learning_rate is 0.0003 in given-s0 and 0.05 in given-s3"
    for averages in (Comparison.of, lambda records: build(records, tmp_path)):
        with pytest.raises(UserError, match=words):
            averages([*runs, other])


def test_a_start_model_may_depend_on_the_seed_alone():
    models = [("a", 0, "given"), ("b", 1, "given"), ("c", 2, "given")]
    runs = [with_identity(record(seed=s, order=o), model=m) for m, s, o in models]
    assert mixed(by_method(runs)) == {}
    changed = with_identity(record(seed=0, order="other"), model="z")
    assert mixed(by_method([*runs, changed])) == {
        "sequential": "start model is {'': 'a'} in given-s0 and {'': 'z'} in other-s0"
    }
    one = [with_identity(record(seed=s), model="a") for s in range(2)]
    assert "start model" in mixed(by_method([*one, with_identity(record(seed=2), model="z")]))["sequential"]


def test_guessing_is_read_row_by_row():
    levels = [
        ["not_evaluated"] * 3,
        [0.5, "not_evaluated", "not_evaluated"],
        [0.3, 0.3, "not_evaluated"],
        [0.2, 0.2, 0.5],
    ]
    run = record(chance=levels)
    assert chance(run) == pytest.approx(0.3)
    assert np.isnan(guessing(run)[1, 2])
    assert guessing(run)[2, 0] == 0.3
    for other in ([0.1] * 3, [[0.1] * 3] * 3, None, [[0.1] * 2] * 4):
        assert math.isnan(chance(run | {"chance": other}))


def test_metrics_come_from_the_matrix():
    wrong = record() | {"metrics": {"acc": 7.0}}
    assert Comparison.of([wrong]).ranking.loc["sequential", "acc"] == pytest.approx(1.3 / 3)
    assert Comparison.of([wrong]).ranking.loc["sequential", "bwt"] == pytest.approx(-0.7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 99}, "sequential/given-s0: schema_version is 99; this version reads"),
        ({"matrix": [[math.nan] * 3] * 4}, "sequential/given-s0: matrix: the cell of row 0, task 1 is missing"),
        ({"matrix": None}, "sequential/given-s0: matrix"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_by_name(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        build([record() | change], tmp_path)


def test_text_that_a_spreadsheet_would_run_is_escaped():
    cells = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "x=1", "−1"]
    table = pd.DataFrame({"=name": cells, "n": [-1.5] * len(cells)})
    lines = as_csv(table)
    for cell in cells[:6]:
        assert f"'{cell}" in lines
    assert "'=name" in lines
    assert "\nx=1,-1.5" in lines
    assert "'-1.5" not in lines


def test_nothing_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("summary.csv", "report.html"):
        os.symlink(outside, folder / name)
    build([record()], folder)
    assert outside.read_text() == "mine"
    assert not (folder / "report.html").is_symlink()
    linked = tmp_path / "linked"
    linked.mkdir()
    os.symlink(tmp_path, linked / "plots")
    with pytest.raises(UserError, match="plots: is a link"):
        build([record()], linked)


def test_cautions_say_only_what_applies():
    assert not [
        text
        for text in cautions(Comparison.of(study()))
        if "rows" in text or "start model" in text or "prompts" in text
    ]
    runs = [with_identity(record(seed=s), model="m") | {"truncated_prompts": 7, "cut_answers": {"sort": 90, "max": 6}}
            for s in range(3)]  # fmt: skip
    all_at_once = [with_identity(joint(s)) for s in range(3)]
    for run in all_at_once:
        run["cost"]["examples"] = 500
    text = " ".join(cautions(Comparison.of([*runs, *all_at_once, failed("x")])))
    assert "One start model and one training set for all seeds" in text
    assert "In a run 7 prompts were longer than prompt.max_prompt_length" in text
    assert "In a run 96 (4% of the answers) answers were cut" in text
    assert "joint was trained on 500 rows, sequential on 960" in text
    assert "1 of 7 runs did not finish" in text
