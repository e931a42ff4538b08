"""The front: settings of one method joined, those that no other beats, and who has none."""

import math

import pytest
from reported import failed, record, replay, write_study
from typer.testing import CliRunner

import cl_toolkit as cl
from cl_toolkit.cli.app import app
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.front import Front, Point, draw_front, general_ability, pareto, shared_name


def at(name, rate, learned, kept, make=record, **changes):
    """A run at a rate that learns to `learned` and keeps `kept`; BWT is their difference."""
    made = make(learned=learned, kept=kept, **changes) | {"method": name}
    made["config"]["train"] = {"learning_rate": rate}
    return made


def sweep(*, split="valid"):
    """Sequential: (0.5, -0.1), (0.8, -0.5), (0.7, -0.6); replay: (0.45, -0.2), (0.75, -0.05)."""
    made = [
        at("sequential.1", 1e-4, 0.5, 0.4), at("sequential.2", 1e-3, 0.8, 0.3), at("sequential.3", 1e-2, 0.7, 0.1),
        at("replay.1", 1e-4, 0.45, 0.25, replay), at("replay.2", 1e-3, 0.75, 0.7, replay),
    ]  # fmt: skip
    for run in made:
        run["config"]["evaluate"] = {"split": split}
    return made


def test_who_is_beaten_by_hand():
    def point(x, y):
        return Point("m", "", 1.0, x, y, math.nan)

    found = [point(0.5, -0.1), point(0.8, -0.5), point(0.7, -0.6), point(0.8, -0.5), point(0.75, -0.05)]
    best = pareto([*found, point(math.nan, 0.0)])
    assert [(p.learned, p.kept) for p in best] == [(0.8, -0.5), (0.8, -0.5), (0.75, -0.05)]
    assert pareto(found, "general") == []


def test_what_settings_of_one_method_are_called():
    assert shared_name(["replay-3e-5", "replay-1e-4", "replay-1e-3"]) == "replay"
    assert shared_name(["power-law-3e-5", "power-law-3e-4"]) == "power-law"
    assert shared_name(["ewc.1", "ewc.2"]) == "ewc"
    assert shared_name(["replay-2"]) == "replay-2"
    assert shared_name(["a", "b"]) == "a"


def test_methods_that_differ_in_rate_have_a_front_of_their_own():
    front = Front.of(Comparison.of(sweep(split="test")))
    by_family = [(p.family, p.rate) for p in front.found]
    assert by_family == [("sequential", rate) for rate in (1e-4, 1e-3, 1e-2)] + [
        ("replay", rate) for rate in (1e-4, 1e-3)
    ]
    assert front.sentence() == ("On the front of learning and BWT have a point: sequential (1 of 3), replay (1 of 2).")
    assert "test data" in front.caption
    assert Front.of(Comparison.of([record(), replay()])) is None, "one rate each"


def test_a_method_without_a_point_is_named():
    runs = [*sweep(), at("ewc.1", 1e-4, 0.4, 0.2, replay), at("ewc.2", 1e-3, 0.3, 0.2, replay)]
    for run in runs[-2:]:
        run["config"]["strategies"] = {"ewc": {"weight": 1.0}}
    assert Front.of(Comparison.of(runs)).sentence().endswith("; without one: ewc.")


def test_a_sweep_takes_names_and_colours_from_the_study():
    study = [at("plain", 1e-3, 0.8, 0.3), at("with replay", 1e-3, 0.75, 0.7, replay)]
    front = Front.of(Comparison.of(study), sweep())
    assert {p.family for p in front.found} == {"plain", "with replay"}
    assert front.looks["plain"].color == "#1b2330"
    assert "valid data" in front.caption
    figure = draw_front(front)
    assert len(figure.axes) == 1
    assert {text.get_text() for text in figure.axes[0].texts} == {"1e-3"}


def test_a_setting_that_failed_in_an_order_is_left_out():
    both = [run | {"order": order} for run in sweep()[:3] for order in ("a", "b")]
    found = Front.of(Comparison.of(both[:-1])).found
    assert [p.rate for p in found] == [1e-4, 1e-3]


def test_general_ability_is_what_anchors_and_lm_eval_have_changed_by():
    anchored = {"anchors": ["talk", "text"], "anchor_higher_is_better": [True, False],
                "anchor_matrix": [[0.8, 9.0], [0.6, 9.0], [0.5, 9.0], [0.5, 12.0]]}  # fmt: skip
    assert general_ability(record(**anchored)) == pytest.approx(-0.3)
    alone = {"anchors": ["text"], "anchor_higher_is_better": [False], "anchor_matrix": [[9.0]] * 3 + [[12.0]]}
    assert general_ability(record(**alone)) == pytest.approx(-3.0)
    rows = [{"row": row, "task": "arc", "metric": metric, "value": value}
            for row, value in enumerate((0.5, 0.45, 0.4)) for metric in ("acc", "acc_norm")]  # fmt: skip
    assert general_ability(record(probes={"lm_eval": rows})) == pytest.approx(-0.1)
    assert math.isnan(general_ability(record()))
    runs = [run | anchored for run in sweep()]
    front = Front.of(Comparison.of(runs))
    assert front.kinds() == ["kept", "general"]
    assert len(draw_front(front).axes) == 2


def test_of_a_perplexity_less_is_more():
    lower = {"units": ["perplexity"] * 3, "higher_is_better": [False] * 3}
    runs = [
        at("a-1", 1e-4, 20.0, 25.0, **lower),
        at("a-2", 1e-3, 10.0, 40.0, **lower),
        at("a-3", 1e-2, 11.0, 50.0, **lower),
    ]
    front = Front.of(Comparison.of(runs))
    assert [(p.learned, p.kept) for p in front.found] == [(-20, -5), (-10, -30), (-11, -39)]
    assert [p.rate for p in pareto(front.found)] == [1e-4, 1e-3]


def test_the_command_draws_it_and_refuses_another_stream(tmp_path):
    write_study(tmp_path / "study", [at("sequential", 1e-3, 0.8, 0.3), at("replay", 1e-3, 0.75, 0.7, replay)])
    write_study(tmp_path / "tune", sweep())
    command = ["report", str(tmp_path / "study"), "--sweep", str(tmp_path / "tune")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "study" / "report.html").read_text()
    assert "On the front of learning and BWT have a point: sequential (1 of 3), replay (1 of 2)." in page
    assert (tmp_path / "study" / "plots" / "front.svg").is_file()
    (shown,) = cl.load(tmp_path / "study").plot.front(cl.load(tmp_path / "tune").records)
    assert shown.name == "front"
    other = sweep()
    for run in other:
        run["config"]["stream"] = {"name": "digits"}
    with pytest.raises(cl.UserError, match=r"--sweep: is of another study: stream.name is digits there and None here"):
        Front.of(Comparison.of([record()]), other)
    for runs, words in (
        (sweep()[:1], "no method is tried at two learning rates"),
        ([failed()], "none of its runs has finished"),
    ):
        with pytest.raises(cl.UserError, match=f"--sweep: {words}"):
            Front.of(Comparison.of([record()]), runs)
