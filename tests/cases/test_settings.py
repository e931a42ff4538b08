"""Settings that meant something else, or nothing: refused by name."""

import pytest
from files import call, write_case

from cl_toolkit import UserError
from cl_toolkit.api import run
from cl_toolkit.data.streams import build_stream
from cl_toolkit.study.cells import load_run


def refusal(config, *overrides):
    with pytest.raises(UserError) as error:
        load_run(config, overrides)
    return str(error.value)


def test_a_limit_of_minus_one(tmp_path):
    said = refusal(write_case(tmp_path, stream={"limit": {"train": -1, "test": -1}}))
    assert "c.yaml: stream.limit.train: expected null or 1 or more, got -1" in said


def test_negative_clipping(tmp_path):
    said = refusal(write_case(tmp_path, train={"max_grad_norm": -1}))
    assert "c.yaml: train.max_grad_norm: expected 0 or more, got -1" in said


def test_a_scorer_of_no_task(tmp_path):
    said = refusal(write_case(tmp_path, stream={"scorer": {"t1": "numeric"}}))
    assert "c.yaml: stream.scorer: no task 't1'; did you mean 't'?" in said
    config = write_case(tmp_path, stream={"scorer": {"t": "numeric"}})
    assert build_stream(load_run(config)).tasks[0].scorer == "numeric"


def test_a_task_that_is_named_by_a_number(tmp_path):
    config = write_case(tmp_path, stream={"scorer": {1: "numeric"}})
    (tmp_path / "data" / "t").rename(tmp_path / "data" / "1")
    assert build_stream(load_run(config)).tasks[0].scorer == "numeric"
    record = run(str(config), out=tmp_path / "out")
    assert run(str(config), out=tmp_path / "out") == record, "the same config is the same run"


def test_a_dollar_brace_is_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "xyzzy")
    template = "price ${input} ${{oc.env:SECRET}}"
    config = write_case(tmp_path, prompt={"template": template})
    assert load_run(config).prompt.template == template
    code, said, _ = call(monkeypatch, capsys, "show", config, "--n", 1)
    assert code == 0
    assert "price $question 0 ${oc.env:SECRET}" in said
    code, _, _ = call(monkeypatch, capsys, "compare", config, "--out", tmp_path / "out")
    assert code == 0
    assert "${{oc.env:SECRET}}" in (tmp_path / "out" / "study.yaml").read_text()
    assert "xyzzy" not in (tmp_path / "out" / "study.yaml").read_text()
    assert load_run(config, ["prompt.template=pay ${input}"]).prompt.template == "pay ${input}"
