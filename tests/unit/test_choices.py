"""A report says how the settings of its methods were chosen."""

import re
import shutil

import pytest
from files import call
from reported import joint, record, replay, study
from tiny import tiny_config

from cl_toolkit import UserError, api
from cl_toolkit.config.plain_yaml import read_yaml, to_compact_yaml, to_yaml
from cl_toolkit.report.cautions import cautions
from cl_toolkit.report.choices import choices, grid, section
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.page import render
from cl_toolkit.report.paragraph import setup

RULE = "the best final score among the trials whose learning accuracy is within 0.05 of the method's best"
COMMON = {
    "rule": RULE, "stream_of": None, "stream": "skills", "tasks": ["max", "sort"], "orders": ["given"], "split": "valid",
    "seed": 100, "unit": "CPU s", "remarks": ["By score averaged over time the same trials would be chosen."],
}  # fmt: skip


def tried(rate, acc=0.5, seconds=2.0):
    metrics = {"acc": acc, "learning_accuracy": 0.9} if acc else {}
    return {"values": {"train.learning_rate": rate}, "metrics": metrics, "seconds": seconds}


def searched(made, rate=3e-4, **common):
    """The record with a search of three trials, of which the one with this rate was chosen."""
    own = {"values": {"train.learning_rate": rate}, "trials": [tried(1e-4), tried(3e-4, 0.7), tried(1e-1, None, 0.0)]}
    return made | {"chosen": {**COMMON, **common, "own": own}}


def test_the_page_has_rule_data_cost_and_every_trial():
    records = [searched(record(seed=s)) for s in range(3)] + [searched(replay(s)) for s in range(3)]
    comparison = Comparison.of(records)
    (found,) = section(comparison)
    assert found["told"] == (
        "Settings were chosen on validation data of the same stream (skills: max, sort). Every method had 3 trials, with seed "
        f"100, task order given. Of a method's trials the one was chosen that has {RULE}; one that failed is never chosen. "
        "The search took 8 CPU s."
    )
    assert [(m["name"], m["values"], m["trials"], m["spent"]) for m in found["methods"]] == [
        (name, [("train.learning_rate", "0.0003")], 3, "4") for name in ("sequential", "replay")
    ]
    assert grid(choices(comparison)[0].own["replay"]) == {
        "columns": ["train.learning_rate", "ACC", "Learning acc.", "seconds"],
        "rows": [["0.0001", "0.50", "0.90", "2"], ["0.0003", "0.70", "0.90", "2"], ["0.1", "-", "-", "failed"]],
        "chosen": 1,
    }
    text = render(comparison, [])
    assert "How settings were chosen" in text
    assert text.count("What was tried for") == 2
    assert len(re.findall(r"<td>chosen</td>", text)) == 2
    assert not [line for line in cautions(comparison) if "searched" in line or "search chose" in line]


def test_without_a_search_the_page_has_no_such_section():
    assert "How settings were chosen" not in render(Comparison.of(study()), [])


def test_methods_without_a_search_and_with_other_settings_are_named():
    records = [searched(record(), rate=1e-4), replay() | {"chosen": {**COMMON, "own": None}}, joint()]
    said = cautions(Comparison.of(records))
    assert "Settings were searched for the other methods, and not for replay, joint." in said
    assert "sequential ran with train.learning_rate 0.0003; the search chose 0.0001." in said


def test_a_section_that_was_searched_as_a_whole_is_compared_by_what_the_search_said_of_it():
    whole = {"values": {"train": {"learning_rate": 3e-4}}, "trials": [tried(3e-4)]}
    made = record() | {"chosen": {**COMMON, "own": whole}}
    made["config"]["train"]["max_steps"] = 5
    assert not [line for line in cautions(Comparison.of([made])) if "search chose" in line]
    made["config"]["train"]["learning_rate"] = 1e-3
    assert [line for line in cautions(Comparison.of([made])) if "search chose" in line]


def test_a_paper_says_it_too():
    comparison = Comparison.of([searched(record(), stream_of="/home/ann/other.yaml"), replay()])
    text = setup(comparison, {}, lambda text: str(text).rpartition("/")[2], whole=True)
    assert "chosen on validation data of another stream, that of other.yaml (skills: max, sort)." in text
    assert "Settings were not searched for replay." in text
    assert "Say how these settings were chosen" not in text
    assert "Say how these settings were chosen" in setup(Comparison.of(study()), {}, str, whole=True)


def test_joined_studies_keep_their_searches_apart():
    comparison = Comparison.of([searched(record()), searched(replay(), seed=101)])
    assert [(c.common["seed"], list(c.own)) for c in choices(comparison)] == [(100, ["sequential"]), (101, ["replay"])]
    assert "For replay:" in setup(comparison, {}, str, whole=True)


def test_compact_yaml_reads_back(tmp_path):
    plain = {"a": {"values": {"x": 1e-5, "y": "${z}", "n": None}, "l": [1, True, "no"]}, "text": "a: b, # c"}
    (tmp_path / "a.yaml").write_text(to_compact_yaml(plain))
    assert read_yaml(tmp_path / "a.yaml") == plain
    assert len(to_compact_yaml(plain).splitlines()) == 4


@pytest.fixture
def tuned(tmp_path, monkeypatch, capsys):
    """A config whose settings were chosen by a search."""
    methods = {"sequential": {}, "replay": {"strategies": ["replay"]}, "ewc": {"strategies": ["ewc"]}}
    rates = {"train.learning_rate": [1e-3, 3e-3, 9e-3]}
    section = {"seed": 7, "widen": 0, "methods": {"sequential": rates, "replay": rates}}
    (tmp_path / "my.yaml").write_text(to_yaml(tiny_config(methods=methods, seeds=[0], search=section)))
    assert call(monkeypatch, capsys, "tune", tmp_path / "my.yaml", "--out", tmp_path / "trials")[0] == 0
    return tmp_path / "trials" / "tuned.yaml"


def test_what_a_search_tried_goes_with_the_folder_of_the_comparison(tuned, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "compare", tuned, "--out", tmp_path / "here")[0] == 0
    shutil.move(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "trials")
    assert call(monkeypatch, capsys, "report", tmp_path / "there", "--paper", tmp_path / "paper")[0] == 0
    page = (tmp_path / "there" / "report.html").read_text()
    assert page.count("What was tried for") == 2
    assert "not searched, settings as in the config: ewc" in page
    assert "Settings were searched for the other methods, and not for ewc." in page
    assert "Every method had 3 trials" in (tmp_path / "paper" / "setup.tex").read_text()
    (found,) = choices(Comparison.of(api.load(tmp_path / "there").records))
    assert found.trials == [3]
    assert all(trial["seconds"] > 0 for part in found.own.values() for trial in part["trials"])


def test_a_config_that_extends_it_has_it_and_a_damaged_one_is_refused(tuned, tmp_path):
    from cl_toolkit.study.cells import load_study

    (tmp_path / "more.yaml").write_text(f"extends: {tuned}\nseeds: [1]\n")
    assert set(load_study(str(tmp_path / "more.yaml")).plain["chosen"]["methods"]) == {"sequential", "replay"}
    tuned.write_text(tuned.read_text().replace("  seed: 7", "  seed: x"))
    with pytest.raises(UserError, match=r"tuned\.yaml: chosen\.seed: expected a whole number"):
        load_study(str(tuned))
