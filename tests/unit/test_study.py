"""Comparisons: what is there is kept, what differs is moved aside, a failure stops nobody, and how many run at once does
not matter."""

import dataclasses
import json
import sys

import pytest
import yaml
from tiny import RFT, tiny_config

import cl_toolkit as cl
from cl_toolkit import Strategy, UserError
from cl_toolkit.cli import app as cli
from cl_toolkit.runs.record import comparable
from cl_toolkit.study import compare as study
from cl_toolkit.study.cells import load_study

METHODS = {"sequential": {}, "replay": {"strategies": {"replay": {"replay_fraction": 0.5}}}}


def config(**changes):
    return tiny_config(**{"train": {"max_steps": 2}, "methods": METHODS, **changes})


def compare(folder, changes=None, **options):
    """(records, failures, what was told about each run)."""
    told = {}
    found, failures = study.compare(
        load_study(config(**(changes or {}))),
        folder,
        update=lambda run, f, what: told.__setitem__(run, what),
        **options,
    )
    return found.records, failures, told


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/*/record.json")}


def test_a_comparison_writes_what_the_design_says(tmp_path):
    records, failures, _ = compare(tmp_path, {"seeds": [0, 1]})
    assert failures == []
    assert [(r["method"], r["seed"]) for r in records] == [(m, s) for m in METHODS for s in (0, 1)]
    for method in METHODS:
        for seed in (0, 1):
            assert (tmp_path / "runs" / method / f"given-s{seed}" / "record.json").is_file()
            assert not (tmp_path / "runs" / method / f"given-s{seed}" / "checkpoints").exists()
    assert {"study.yaml", "summary.csv", "report.html"} <= {p.name for p in tmp_path.iterdir()}
    written = yaml.safe_load((tmp_path / "study.yaml").read_text(encoding="utf-8"))
    assert [r.plain for r in load_study(written).runs] == [r.plain for r in load_study(config(seeds=[0, 1])).runs]


def test_what_matches_is_not_run_again_and_what_is_new_is_added(tmp_path):
    compare(tmp_path)
    before = files(tmp_path)
    records, _, told = compare(tmp_path, {"seeds": [0, 1]})
    assert told == {"sequential/given-s0": "already there", "replay/given-s0": "already there",
                    "sequential/given-s1": "finished", "replay/given-s1": "finished"}  # fmt: skip
    assert len(records) == 4
    assert {p: t for p, t in files(tmp_path).items() if p in before} == before


def test_what_does_not_match_is_moved_aside(tmp_path):
    compare(tmp_path)
    old = json.loads((tmp_path / "runs/replay/given-s0/record.json").read_text())
    other = {"methods": {**METHODS, "replay": {"strategies": {"replay": {"replay_fraction": 0.25}}}}}
    for round_, changes in ((1, other), (2, None)):
        records, _, told = compare(tmp_path, changes)
        assert told == {"sequential/given-s0": "already there", "replay/given-s0": "finished"}
        assert [r["method"] for r in records] == ["sequential", "replay"]  # what was moved aside is not reported
        assert len(list((tmp_path / "runs/replay").glob("given-s0.was-*"))) == round_
    assert json.loads((tmp_path / "runs/replay/given-s0.was-1/record.json").read_text()) == old
    assert records[1]["config"]["strategies"]["replay"]["replay_fraction"] == 0.5


GUESTS = '''
import torch
from cl_toolkit import Strategy

class Fails(Strategy):
    """Fails in its second task."""
    def before_task(self, model, task):
        if task.index == 1:
            raise RuntimeError("in the middle\\nof it")
        return model

class Pull(Strategy):
    """Pulls the weights to zero."""
    def penalty(self, weights):
        return {self.name: 0.1 * sum((w**2).sum() for w in weights.values())}
'''


@pytest.fixture
def guests(tmp_path):
    path = tmp_path / "guests.py"
    path.write_text(GUESTS)
    return path


def test_one_failing_run_does_not_stop_the_others(tmp_path, guests):
    methods = {"fails": {"strategies": [f"{guests}:Fails"]}, **METHODS}
    records, failures, told = compare(tmp_path / "out", {"methods": methods})
    ((run, error),) = [(f.run, f.error) for f in failures]
    assert run == "fails/given-s0"
    assert f"Fails: before_task: Fails: RuntimeError: in the middle of it ({guests}:9)" in error
    assert told["fails/given-s0"] == "failed"
    assert {r["method"]: r["status"] for r in records} == {"fails": "failed", **dict.fromkeys(METHODS, "finished")}
    assert records[0]["error"] == error
    place = tmp_path / "out/runs/fails/given-s0"
    assert "raise RuntimeError" in (place / "traceback.txt").read_text()
    assert (tmp_path / "out/report.html").is_file()
    again = compare(tmp_path / "out", {"methods": methods})[2]
    assert again == {
        "fails/given-s0": "failed",
        "sequential/given-s0": "already there",
        "replay/given-s0": "already there",
    }
    guests.write_text(GUESTS.replace("task.index == 1", "False"))  # mended, it is another strategy and begins anew
    records, failures, _ = compare(tmp_path / "out", {"methods": methods})
    assert failures == []
    assert {r["status"] for r in records} == {"finished"}
    assert records[0]["matrix"] == records[1]["matrix"]


def test_the_exit_code_says_that_a_run_failed(tmp_path, guests, monkeypatch, capsys):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(config()))

    def call(*extra):
        monkeypatch.setattr(sys, "argv", ["cl-toolkit", "compare", str(path), "--out", str(tmp_path / "out"), *extra])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr()

    code, said = call("--add", f"bad={guests}:Fails", "--add", f"good={guests}:Pull")
    assert code == 1
    assert "failed: bad/given-s0: strategies." in said.err
    assert "before_task: Fails: RuntimeError: in the middle of it" in said.err
    code, said = call("--add", f"good={guests}:Pull")
    assert code == 0
    assert "good" in said.out
    record = json.loads((tmp_path / "out/runs/good/given-s0/record.json").read_text())
    assert set(record["losses"][0]["terms"]) == {"sft", "Pull"}


def test_two_at_a_time_is_bit_equal_to_one_at_a_time(tmp_path):
    methods = {"replay": METHODS["replay"], "rft": {"objective": RFT}}
    one, _, _ = compare(tmp_path / "one", {"methods": methods})
    two, failures, told = compare(tmp_path / "two", {"methods": methods}, jobs=2)
    assert failures == []
    assert set(told.values()) == {"finished"}
    assert [comparable(r) for r in two] == [comparable(r) for r in one]


def test_the_api_takes_a_class_of_the_notebook(tmp_path):
    class Pull(Strategy):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config:
            weight: float = 0.1

        def penalty(self, weights):
            return {self.name: self.config.weight * sum((w**2).sum() for w in weights.values())}

    mine = {"pull": {"strategies": {"pull": Pull}}, "hard": {"strategies": {"pull": Pull(Pull.Config(weight=3.0))}}}
    found = cl.compare(config(), methods=mine, out=tmp_path / "out")
    by_method = {r["method"]: r for r in found.records}
    assert list(by_method) == ["sequential", "replay", "pull", "hard"]
    first = {m: by_method[m]["losses"][0]["terms"].get("pull") for m in by_method}
    assert first["sequential"] is None
    assert first["hard"] == pytest.approx(30 * first["pull"])
    assert by_method["hard"]["config"]["strategies"]["pull"]["weight"] == 3.0
    assert sorted(found.table().index) == sorted(by_method)
    assert len(found.metrics) == 4
    assert cl.load(tmp_path / "out").records == found.records
    with pytest.raises(UserError, match="works with jobs = 1 only"):
        cl.compare(config(), methods=mine, out=tmp_path / "other", jobs=2)


def test_settings_of_the_command_line_reach_an_object_or_are_refused(tmp_path):
    class Pull(Strategy):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config:
            weight: float = 0.1

    mine = {"pull": {"strategies": {"pull": Pull}}}
    with pytest.raises(UserError, match=r"strategies.pull: is an object"):
        load_study(config(), ["strategies.pull.weight=3"], methods=mine)


def test_run_and_load(tmp_path):
    record = cl.run(config(), method="replay", out=tmp_path / "r")
    assert record["method"] == "replay"
    assert cl.run(config(), method="replay", out=tmp_path / "r") == record
    assert cl.load(tmp_path / "r").records == [record]
    with pytest.raises(UserError, match="no run records"):
        cl.load(tmp_path)


def test_a_name_can_be_registered_for_this_process(tmp_path):
    from cl_toolkit.registry import STRATEGIES

    class Nothing(Strategy):
        pass

    try:
        assert cl.register("does-nothing", Nothing) is Nothing
        methods = {"sequential": {}, "nothing": {"strategies": ["does_nothing"]}}
        one, two = cl.compare(config(methods=methods), out=tmp_path).records
        assert one["matrix"] == two["matrix"]
        assert one["losses"] == two["losses"]
    finally:
        del STRATEGIES._sources["does_nothing"]


def test_an_order_is_a_run_of_its_own(tmp_path):
    orders = {"orders": [["max", "last"], ["last", "max"]], "methods": {"sequential": {}}}
    records, _, _ = compare(tmp_path, orders)
    assert [(r["order"], r["tasks"]) for r in records] == [("max+last", ["max", "last"]), ("last+max", ["last", "max"])]
    given, _, _ = compare(tmp_path / "given", {"methods": {"sequential": {}}})
    assert given[0]["matrix"] == records[0]["matrix"]
