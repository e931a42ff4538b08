"""Every fault that a user can make: exit code 2, one line that names the place and what was expected, no traceback; and the
answer comes at once."""

import json
import os
import resource
import subprocess
import sys

import pytest
import yaml
from tiny import tiny_config

from cl_toolkit.cli import app as cli

GUESTS = "class Other:\n    pass\n\n\ndef helper():\n    pass\n"


@pytest.fixture
def data(tmp_path):
    """A folder with one small JSONL task `t`."""
    folder = tmp_path / "data"
    (folder / "t").mkdir(parents=True)
    for split in ("train", "test"):
        lines = [json.dumps({"input": f"question {i}", "target": "yes"}) for i in range(4)]
        (folder / "t" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def config(tmp_path, data):
    """A config file that works, on that folder."""
    path = tmp_path / "my.yaml"
    settings = tiny_config(train={"max_steps": 1})
    settings["stream"] = {"name": "jsonl", "path": str(data)}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the command line; gives exit code and stderr."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cl-toolkit", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return run


def refused(answer, *parts):
    code, said = answer
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    for part in parts:
        assert part in said


def test_what_works_works(call, config, tmp_path):
    assert call("compare", config, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_metric_without_a_value_says_why(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cl-toolkit", "run", str(config), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "\nbwt                  undefined: " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compare", "run", "plan", "show"])
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.learning_rat=1", ["command line: train.learning_rat", "did you mean 'learning_rate'?"]),
        ("train.max_steps=many", ["command line: train.max_steps", "expected a whole number, got 'many'"]),
        ("train.max_steps", ["train.max_steps", "expected key=value"]),
        ("stream.tasks=[u]", ["command line: stream.tasks: unknown task 'u'", "t"]),
        ("stream.path=no/such/folder", ["stream.path: no/such/folder: no such folder"]),
        ("objective.name=stf", ["command line: objective.name: unknown objective 'stf'; did you mean 'sft'?"]),
    ],
)
def test_a_wrong_setting(call, config, command, override, parts):
    refused(call(command, config, override), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trian: {}", ["my.yaml: trian: unknown key; did you mean 'train'?"]),
        ("train: {bf16: maybe}", ["my.yaml: train.bf16: expected true or false or auto, got 'maybe'"]),
        ("strategies: [replya]", ["my.yaml: strategies: unknown strategy 'replya'; did you mean 'replay'?"]),
        ("strategies: [replay, power_law]", ["my.yaml: strategies: replay and power_law cannot be used together"]),
        ("methods: {m: {strategies: [replay, power-law]}}", ["my.yaml: ", "m", "cannot be used together"]),
        ("orders: [[a, b]]", ["my.yaml: stream.order: unknown task 'a'"]),
        ("a: [", ["my.yaml: not valid YAML", ", line "]),
    ],
)
def test_a_wrong_file(call, config, text, parts):
    config.write_text(text)
    refused(call("compare", config), *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--seeds", "0,x"], ["--seeds 0,x: expected whole numbers with commas between them"]),
        (["--seeds", ""], ["seeds: expected a list of whole numbers"]),
        (["--methods", "sequental"], ["unknown method 'sequental'; did you mean 'sequential'?"]),
        (["--add", "mine"], ["--add mine: expected name=file.py:Class"]),
        (["--add", "mine=guests.py"], ["--add mine=guests.py: expected name=file.py:Class"]),
        (["--add", "mine=no.py:Mine"], ["no.py: no such file"]),
        (["--add", "mine=guests.py:Mine"], ["guests.py has no 'Mine'", "Other"]),
        (["--add", "mine=guests.py:Other"], ["guests.py:Other is not a strategy"]),
        (["--add", "mine=guests.py:helper"], ["guests.py:helper is not a strategy"]),
        (["--add", "sequential=guests.py:Other"], ["there is already a method 'sequential'"]),
        (["--add", "a/b=guests.py:Other"], ["a/b"]),
    ],
)
def test_a_wrong_option(call, config, tmp_path, options, parts):
    (tmp_path / "guests.py").write_text(GUESTS)
    refused(call("compare", config, *options), *parts)


def test_a_missing_file(call, tmp_path):
    refused(call("compare", "no/such.yaml"), "no/such.yaml: no such config file")
    refused(call("compare", "quikstart"), "quikstart: neither a file nor a shipped config; did you mean 'quickstart'?")
    refused(call("report", tmp_path), f"{tmp_path}: no run records of this study here")
    refused(call("answers", tmp_path / "no"), "no run records of this study here")
    refused(call("compare", "quickstart", "model.name=./no/model", "model.warmup=null"), "model")


GOOD = '{"input": "q", "target": "a"}'
LINES = [
    ("not json", "not JSON: Expecting value at column 1"),
    ('{"input": "q", "target": "a"', "not JSON: "),
    ('{"input": "q"}', "the field 'target' is missing"),
    ('{"input": "q", "taget": "a"}', "the field 'target' is missing; found 'input', 'taget'"),
    ('{"input": "q", "target": ""}', "target: expected text that is not empty, got ''"),
    ('{"input": "q", "target": "  "}', "target: expected text that is not empty"),
    ('{"input": "q", "target": 3}', "target: expected text that is not empty, got 3"),
    ('{"target": "a"}', "expected a field 'instruction' or 'input'"),
    ('{"input": "q", "target": "a", "choices": ["b"]}', "target: 'a' is not one of the choices ['b']"),
    ('{"input": "q", "target": "a", "choices": "abc"}', "choices: expected a list of texts, got 'abc'"),
    ('{"input": "q", "target": "a", "choices": ["a", 1]}', "choices: expected a list of texts, got ['a', 1]"),
    ("[1]", "expected an object with fields, got list"),
    ('{"messages": []}', "messages: expected at least two turns, the last one by the assistant"),
    ('{"messages": [{"role": "user", "content": "q"}]}', "messages: expected at least two turns"),
    ('{"messages": [{"role": "bot", "content": "q"}, {"role": "assistant", "content": "a"}]}', "role: expected system"),
    ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}', "messages[0]: content: expected text"),
    ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}', "messages: the last turn"),
    ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "choices": ["b"]}',
     "target: 'a' is not one of the choices ['b']"),
    ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "f"}',
     "tools: expected JSON, got 'f'"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_wrong_line_of_data_names_file_and_line(call, config, data, line, message):
    path = data / "t" / "train.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    refused(call("compare", config), f"{path}:3: ", message)


@pytest.mark.parametrize("command", ["compare", "run", "plan", "show"])
def test_an_empty_file_of_a_task(call, config, data, command):
    for split in ("train", "test"):
        (data / "t" / f"{split}.jsonl").write_text("\n")
        refused(call(command, config), f"{data / 't'}", ".jsonl: is empty; expected at least one example")


def test_other_faults_of_data(call, config, data):
    (data / "t" / "test.jsonl").write_bytes(b'{"input": "\xff", "target": "a"}\n')
    refused(call("compare", config), "test.jsonl:1: not UTF-8")
    (data / "t" / "test.jsonl").unlink()
    refused(call("compare", config), "task t: has no test examples to be scored on (evaluate.split: test)")
    refused(call("compare", config, "stream.scorer=exact"), "unknown scorer 'exact'")
    refused(call("compare", config, "evaluate.split=train"), "evaluate.split: expected test | valid, got 'train'")
    (data / "t" / "train.jsonl").unlink()
    refused(call("compare", config), "expected folders <task>/train.jsonl, found none")


def test_choices_need_choices(call, config):
    refused(call("compare", config, "stream.scorer=choices"), "task t: the scorer choices needs choices")


def test_a_template_that_cannot_be_filled(call, config, data):
    refused(
        call("compare", config, "prompt.template='{qestion}'"),
        "prompt.template: cannot be filled from",
        "train.jsonl:1",
    )


def test_a_refused_comparison_leaves_nothing_behind(call, config, data, tmp_path):
    (data / "t" / "test.jsonl").write_text("not json\n")
    refused(call("compare", config, "--out", tmp_path / "out"), "test.jsonl:1")
    assert not list((tmp_path / "out").glob("runs/*/*/record.json"))


# as a process of its own ------------------------------------------------------------------------------------------


def process(*arguments, code=None):
    """(exit code, stdout, stderr, CPU seconds) of a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "cl_toolkit"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout, done.stderr, seconds


HEAVY = """
import sys
from cl_toolkit.cli import app as cli
sys.argv = ["cl-toolkit", *sys.argv[1:]]
try:
    cli.main()
finally:
    found = {"torch", "transformers", "peft", "deepspeed", "pandas", "matplotlib"} & set(sys.modules)
    print("heavy:", sorted(found), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["list", "--json"],
        ["compare", "quickstart", "train.learning_rat=1"],
        ["compare", "--help"],
    ],
    ids=" ".join,
)
def test_the_answer_comes_at_once_without_heavy_libraries(arguments):
    # against what the command line stands on, since processors differ; a busy one makes CPU time longer too: three tries
    both = ((process(*arguments)[3], process(code="import typer, omegaconf, pydantic")[3]) for _ in range(3))
    assert any(seconds < 5 * bare for seconds, bare in both)
    assert process(*arguments, code=HEAVY)[2].endswith("heavy: []\n")


def test_debug_shows_the_traceback_and_nothing_else_does():
    wrong = ["compare", "quickstart", "train.learning_rat=1"]
    code, out, err, _ = process(*wrong)
    assert (code, out) == (2, "")
    assert err == "error: command line: train.learning_rat: unknown key; did you mean 'learning_rate'?\n"
    for arguments in (["--debug", *wrong], [*wrong, "--debug"]):
        code, _, err, _ = process(*arguments)
        assert code != 0
        assert "Traceback (most recent call last)" in err
        assert "did you mean 'learning_rate'?" in err


def test_an_error_of_the_toolkit_itself_is_one_line_too(monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("cl_toolkit.cli.show.catalogue", fail)
    monkeypatch.setattr(sys, "argv", ["cl-toolkit", "list"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: RuntimeError: first second (--debug shows the traceback)\n"


def test_what_a_record_says_is_shown_on_a_terminal_and_not_obeyed():
    from cl_toolkit.cli.console import printable

    assert printable("a\x1b[31mb\x00\u2028\u202ec\nd\te ü 🎈") == "a\\x1b[31mb\\x00\\u2028\\u202ec\nd\te ü 🎈"
