"""A stopped run goes on only as the run that it was: config, code, data, model and toolkit."""

import pytest
from files import rows, write_case, write_rows
from tiny import stop_after_a_task

from cl_toolkit import UserError
from cl_toolkit.runs import identity, record
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

STRATEGY = """
from cl_toolkit import Strategy
class Mine(Strategy):
    def penalty(self, weights):
        return {"mine": FACTOR * sum((w**2).sum() for w in weights.values())}
"""


@pytest.fixture
def stopped(tmp_path):
    """The config of a run of two tasks that was stopped after the first; its results lie in `out`."""
    (tmp_path / "mine.py").write_text(STRATEGY.replace("FACTOR", "0.0"))
    path = write_case(tmp_path, strategies={f"{tmp_path / 'mine.py'}:Mine": {}})
    write_rows(tmp_path / "data" / "u" / "train.jsonl", rows(target="b"))
    write_rows(tmp_path / "data" / "u" / "test.jsonl", rows(target="b"))
    run = start(tmp_path, path)
    stop_after_a_task(run)
    return path


def start(folder, path):
    return Run(load_run(str(path)), folder / "out", None)


def test_unchanged_it_goes_on(stopped, tmp_path):
    run = start(tmp_path, stopped)
    assert run.execute()["status"] == "finished"
    assert run.record["provenance"]["resumed"]


@pytest.mark.parametrize("task", ["t", "u"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_on_other_data_it_is_refused(stopped, tmp_path, task, split):
    write_rows(tmp_path / "data" / task / f"{split}.jsonl", [*rows(3), {"input": "another", "target": "c"}])
    with pytest.raises(UserError, match=rf"task-1: is of another run \(other data: task {task} has changed\)"):
        start(tmp_path, stopped).execute()


def test_on_other_code_it_is_refused(stopped, tmp_path):
    (tmp_path / "mine.py").write_text(STRATEGY.replace("FACTOR", "9.0"))
    with pytest.raises(UserError, match=r"is of another run \(other code: .*mine\.py"):
        start(tmp_path, stopped).execute()


def test_of_another_config_it_is_refused(stopped, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(path.read_text().replace("max_steps: 1", "max_steps: 2"))
    with pytest.raises(UserError, match=r"is of another run \(another config: train.max_steps: 1 there, 2 here\)"):
        start(tmp_path, stopped).execute()


def test_from_another_model_it_is_refused(stopped, tmp_path, monkeypatch):
    """By what the model is called, and by the weights that it then has."""
    with monkeypatch.context() as patch:
        patch.setattr(record, "fingerprint", lambda model: "others")
        with pytest.raises(UserError, match=r"task-1: started from another model"):
            start(tmp_path, stopped).execute()
    plain = identity.model_identity
    with monkeypatch.context() as patch:
        patch.setattr(identity, "model_identity", lambda *a, **k: {**plain(*a, **k), "content": "others"})
        with pytest.raises(UserError, match=r"is of another run \(another model: model.content"):
            start(tmp_path, stopped).execute()


def test_of_another_toolkit_it_is_refused(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "toolkit", lambda: {"version": "99", "source": "x"})
    with pytest.raises(UserError, match=r"is of another run \(another version of the toolkit: .* there, 99 here"):
        start(tmp_path, stopped).execute()
