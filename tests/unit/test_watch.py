"""How far a comparison is, read from its folder by somebody else."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from tiny import tiny_config
from typer.testing import CliRunner

from cl_toolkit import UserError
from cl_toolkit.cli.app import app
from cl_toolkit.cli.watching import told
from cl_toolkit.study.cells import load_study
from cl_toolkit.study.compare import compare
from cl_toolkit.study.watch import TAIL, seconds_left, standing, standings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def write(place, *events, before=""):
    """Events as (seconds before now, name, fraction)."""
    place.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"time": (NOW - timedelta(seconds=ago)).isoformat(), "event": name, "fraction": fraction,
                    **({"task": "one", "step": 7} if name == "step" else {})})
        for ago, name, fraction in events
    ]  # fmt: skip
    (place / "events.jsonl").write_text(before + "\n".join(lines) + "\n")
    return standing("m/s0", place, NOW)


def test_a_run_that_goes_on_has_a_pace_and_a_place(tmp_path):
    found = write(tmp_path, (100, "start", 0.0), (60, "step", 0.2), (50, "note", -1.0), (10, "step", 0.45))
    assert (found.state, found.done, found.task, found.step) == ("running", 0.45, "one", 7)
    assert found.pace == pytest.approx(0.005)


def test_after_a_stop_the_pace_is_that_since(tmp_path):
    found = write(tmp_path, (5000, "step", 0.4), (100, "resumed", -1.0), (90, "step", 0.5), (40, "step", 0.6))
    assert found.pace == pytest.approx(0.002)


def test_who_says_nothing_is_silent_and_who_has_not_begun_waits(tmp_path):
    assert write(tmp_path, (700, "start", 0.0), (601, "step", 0.2)).state == "silent"
    assert standing("m/s0", tmp_path / "none", NOW).state == "waiting"


def test_lines_that_are_cut_off_are_left_out(tmp_path):
    found = write(tmp_path, (20, "step", 0.2), (10, "step", 0.3), before="x" * TAIL + '"half"}\n')
    assert found.done == 0.3
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "fra')
    assert standing("m/s0", tmp_path, NOW).done == 0.3


def test_a_run_has_failed_until_it_goes_on(tmp_path):
    write(tmp_path, (20, "step", 0.2))
    (tmp_path / "record.json").write_text('{"status": "failed"}')
    assert standing("m/s0", tmp_path, NOW).state == "failed"


def test_the_time_left_is_what_is_left_at_the_pace_of_those_that_go_on(tmp_path):
    rows = [
        write(tmp_path / "a", (100, "start", 0.0), (0, "step", 0.5)),  # 0.005 a second
        write(tmp_path / "b", (50, "start", 0.0), (0, "step", 0.25)),  # the same
        write(tmp_path / "c", (100, "start", 0.0), (0, "finished", 1.0)),
        standing("d", tmp_path / "d", NOW),
    ]
    assert seconds_left(rows) == pytest.approx((0.5 + 0.75 + 1) / 0.01)
    assert seconds_left(rows[2:]) is None
    assert list(told(rows))[-1] == "4 runs: 1 finished, 2 running, 1 waiting; about 0:03:45 left"


def test_a_real_comparison_is_over_and_a_name_cannot_write_to_the_terminal(tmp_path):
    study = load_study({**tiny_config(), "methods": {"a": {}, "b": {"train": {"max_steps": 2}}}})
    compare(study, tmp_path)
    assert [row.state for row in standings(tmp_path, datetime.now(UTC))] == ["finished"] * 2
    result = CliRunner().invoke(app, ["watch", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, "2 runs: 2 finished\n")
    (tmp_path / "runs/a/given-s0/events.jsonl").unlink()
    (tmp_path / "runs/a/given-s0/record.json").write_text('{"status": "failed"}')
    assert CliRunner().invoke(app, ["watch", str(tmp_path)]).exit_code == 1
    row = write(tmp_path / "x", (1, "step", 0.5))
    assert "\x1b" not in next(told([row.__class__("a\x1b[31m", "running", 0.5, "t\x1b", 1)]))


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected the folder of a comparison, with study\.json"):
        standings(tmp_path, NOW)
