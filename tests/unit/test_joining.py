"""Several results folders as one report."""

import hashlib

import pytest
from files import call
from reported import failed, joint, record, replay, study, write_study

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.joining import join, labels
from cl_toolkit.report.page import render


def known(run, **changes):
    """The run with an identity. changes: of its config, by dotted key, or of its identity."""
    run["identity"] = {"code": {}, "data": {"sort": "1", "max": "2", "shift": "3"}, "model": {"weights": "w"},
                       "toolkit": {"version": "1"}, "precision": "float32"}  # fmt: skip
    run["config"] |= {"stream": {"name": "skills", "tasks": ["sort", "max", "shift"]}, "evaluate": {"split": "test"}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        place = run["identity"] if section in run["identity"] and section != "model" else run["config"]
        place[section] = {**place[section], name: value}
    return run


def content(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file()}


def test_more_seeds_join_and_give_the_report_of_one_folder_with_all_of_them():
    runs = [known(run) for run in study()]
    first, second = [r for r in runs if r["seed"] < 1], [r for r in runs if r["seed"] >= 1]
    joined = join({"a": first, "b": second})
    assert joined.notes == ()
    assert render(Comparison.of(joined.records), []) == render(Comparison.of(runs), [])


def test_the_command_changes_nothing_that_it_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, seeds in (("a", (0, 1)), ("b", (2, 3))):
        write_study(tmp_path / name, [known(make(seed=seed, probes={})) for make in (record, replay) for seed in seeds])
    before = content(tmp_path)
    code, out, _ = call(monkeypatch, capsys, "report", "a", "b")
    assert code == 0
    assert "n=4 seeds" in " ".join(out.split())
    after = content(tmp_path)
    new = {path.parts[:2] for path in after.keys() - before.keys()}
    assert new == {("results", "a+b")}
    assert {path: after[path] for path in before} == before
    code, _, error = call(monkeypatch, capsys, "report", "a", "b", "--out", "b/joined")
    assert code == 2
    assert "b/joined: lies in b, which is read" in error


def test_methods_of_one_name_that_differ_are_kept_apart():
    a = [known(run) for run in (record(), replay())]
    b = [known(run, train__learning_rate=0.05) for run in (replay(seed=1), replay())]
    joined = join({"a": a, "x/<b>": [known(record(seed=1)), *b, failed("replay") | {"seed": 7}]})
    assert sorted(Comparison.of(joined.records).methods) == ["replay (a)", "replay (x/<b>)", "sequential"]
    assert joined.notes == (
        "replay (a) and replay (x/<b>) are kept apart: train.learning_rate is 0.0003 in given-s0 and 0.05 in given-s1",
    )
    assert {r["method"] for r in joined.records if r["status"] == "failed"} == {"replay (x/<b>)"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stream__tasks": ["sort", "max"]}, 'stream.tasks is ["sort", "max", "shift"] in a and ["sort", "max"] in b'),
        ({"stream__length": 8}, "stream.length is None in a and 8 in b"),
        ({"evaluate__split": "valid"}, "evaluate.split is test in a and valid in b"),
        ({"model__name": "other"}, "model.name is tiny-lm in a and other in b"),
        ({"data__max": "9"}, "data of task max is 2 in a and 9 in b"),
    ],
    ids=["tasks", "setting", "split", "model", "data"],
)
def test_studies_must_share_stream_model_and_evaluation(changes, told):
    a, b = [known(record()), known(replay())], [known(record(), **changes), known(replay(seed=1), **changes)]
    with pytest.raises(UserError) as error:
        join({"a": a, "b": b})
    assert str(error.value) == f"b: cannot be compared with a: {told}"


def test_scores_are_compared_as_they_were_taken():
    b = known(record(scorers=["numeric"] * 3))
    with pytest.raises(UserError, match="scorer of task sort is exact_match in a and numeric in b"):
        join({"a": [known(record())], "b": [b]})


def test_start_models_are_compared_seed_by_seed():
    def weights(run, value):
        known(run)["identity"]["model"] = {"weights": value}
        return run

    drawn = join({"a": [weights(record(), "x")], "b": [weights(record(seed=1), "y")]})
    assert list(Comparison.of(drawn.records).methods) == ["sequential"]
    with pytest.raises(UserError, match=r"start model weights \(seed 0, objective sft\) is x in a and y in b"):
        join({"a": [weights(record(), "x")], "b": [weights(replay(), "y")]})


def test_the_same_run_twice_counts_once():
    a, b = [known(record()), known(replay()), failed("ewc")], [known(record()), known(replay(kept=0.5)), known(joint())]
    b.append(known(record("ewc")))
    joined = join({"a": a, "b": b})
    methods = Comparison.of(joined.records).methods
    assert {method: len(runs) for method, runs in methods.items()} == {
        "sequential": 1,
        "replay": 1,
        "joint": 1,
        "ewc": 1,
    }
    assert methods["replay"][0]["matrix"] == a[1]["matrix"]
    assert [r["status"] for r in joined.records] == ["finished"] * 4
    assert joined.notes == (
        "sequential given-s0 is in a and in b with the same scores; it counts once",
        "replay given-s0 is in a and in b with other scores; it counts once",
    )


def test_folders_are_told_apart_by_as_little_as_it_takes(tmp_path):
    assert labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert labels([tmp_path / "x" / "r", tmp_path / "y" / "r"]) == ["x/r", "y/r"]
    with pytest.raises(UserError, match="is named twice"):
        labels([tmp_path, tmp_path / "a" / ".."])


def test_a_loaded_run_knows_its_folder(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_study(tmp_path / name, [known(record(seed=seed)), known(replay(seed=seed), train__optim=name)])
    found = cl.load(tmp_path / "a", tmp_path / "b")
    assert [str(place.relative_to(tmp_path)) for place in found.places] == [
        "a/runs/replay/given-s0", "a/runs/sequential/given-s0", "b/runs/replay/given-s1", "b/runs/sequential/given-s1",
    ]  # fmt: skip
    assert [r["method"] for r in found.records] == ["replay (a)", "sequential", "replay (b)", "sequential"]
