"""Law 11: what changes one of config, code, data, model and toolkit makes another result; where it ran does not."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from files import call, llama_folder
from tiny import stop_after_a_task, tiny_config

import cl_toolkit as cl
from cl_toolkit import Strategy, UserError
from cl_toolkit.data.streams import build_stream
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.report import build
from cl_toolkit.runs import identity
from cl_toolkit.runs.record import read_record
from cl_toolkit.runs.run import Run
from cl_toolkit.sources import file_source, own_files
from cl_toolkit.study import compare as study
from cl_toolkit.study.cells import load_run, load_study

GUEST = '''
from cl_toolkit import Strategy
from helper import WEIGHT

class Pull(Strategy):
    """Pulls the weights to zero."""
    def penalty(self, weights):
        return {self.name: WEIGHT * sum((w**2).sum() for w in weights.values())}
'''
SCORER = """
def right(example, answer):
    return float(len(answer) < 3)
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A study with everything that a user brings: data, a model's folder, a strategy with a helper, a scorer, a DeepSpeed
    file. Gives its config."""
    monkeypatch.chdir(tmp_path)
    for task in ("a", "b"):
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            lines = [json.dumps({"input": f"{task}{i} {split}", "target": "yn"[i % 2]}) for i in range(4)]
            (folder / f"{split}.jsonl").write_text("\n".join(f'{line[:-1]}, "id": "{split}"}}' for line in lines))
    llama_folder(tmp_path / "model")
    (tmp_path / "mine.py").write_text(GUEST)
    (tmp_path / "helper.py").write_text("WEIGHT = 0.1\n")
    (tmp_path / "score.py").write_text(SCORER)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    return {
        "name": "world",
        "stream": {"name": "jsonl", "path": "data", "scorer": "score.py:right"},
        "model": {"name": "./model"},
        "train": {"max_steps": 1, "global_batch_size": 4, "logging_steps": 1},
        "evaluate": {"max_new_tokens": 4, "forgetting_curve": {"schedule": "off"}},
        "methods": {"mine": {"strategies": {"mine.py:Pull": {}}}},
        "seeds": [0],
    }


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Drawing a page takes longer than a run of these; only the test of the page draws one."""
    if "page" not in request.node.name:
        monkeypatch.setattr(study, "report", lambda folder, found: None)


def edited(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def another_model(folder):
    """Other weights of the same size behind the same path."""
    llama_folder(Path(folder), seed=1)


CHANGES = {
    "strategy": (lambda: edited("mine.py", "**2", "**2 * 2"), "other code: mine.py:Pull (strategies.mine.py:Pull)"),
    "helper": (lambda: edited("helper.py", "0.1", "0.2"), "other code: mine.py:Pull"),
    "scorer": (lambda: edited("score.py", "< 3", "< 2"), "other code: score.py:right (scorer of a)"),
    "train data": (lambda: edited("data/b/train.jsonl", '"y"', '"z"'), "other data: task b has changed"),
    "test data": (lambda: edited("data/a/test.jsonl", "a0", "a9"), "other data: task a has changed"),
    "model": (lambda: another_model("model"), "another model: model.model.safetensors"),
    "tokenizer": (lambda: edited("model/tokenizer_config.json", "{", '{"x": 7,'), "another model: model.tokenizer"),
}  # fmt: skip


def run_again(config, **options):
    told = []
    found, failures = study.compare(load_study(config), Path("out"), say=told.append, **options)
    assert failures == []
    return found, told


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_is_run_anew_and_said(world, what):
    change, why = CHANGES[what]
    run_again(world)
    single = cl.run(world, method="mine", out="single")
    first = read_record(Path("out/runs/mine/given-s0/record.json"))
    change()
    found, told = run_again(world)
    assert [t for t in told if why in t], told
    assert read_record(Path("out/runs/mine/given-s0.was-1/record.json")) == first  # nothing is lost
    assert found.records[0]["identity"] != first["identity"]
    with pytest.raises(UserError, match="holds another run") as error:
        cl.run(world, method="mine", out="single")
    assert why.split(":")[0] in str(error.value)
    assert read_record(Path("single/record.json")) == single
    assert run_again(world)[1] == []  # and once more, what is there is kept


def test_a_changed_deepspeed_file_is_another_result(world):
    config = {**world, "engine": {"name": "deepspeed", "deepspeed": "ds.json"}}
    stream = build_stream(load_study(config).runs[0])
    before = identity.identity(load_study(config).runs[0], stream)
    edited("ds.json", "1", "2")
    after = identity.identity(load_study(config).runs[0], stream)
    assert "other code: ds.json (engine.deepspeed)" in identity.changed_parts(before, after)


def test_another_toolkit_is_another_result(world, monkeypatch):
    run_again(world)
    other = {**identity.toolkit(), "version": "9.9"}
    monkeypatch.setattr(identity, "toolkit", lambda: other)
    _, told = run_again(world)
    assert "another version of the toolkit: 0.1.0 there, 9.9 here" in told[0]


@pytest.mark.parametrize(
    "place", [{"train": {"num_threads": 2}}, {"evaluate": {"batch_size": 3}}, {"engine": {"device": "cpu"}}]
)
def test_where_it_ran_is_no_part_of_the_result(world, place):
    run_again(world)
    moved = {**world, **{section: {**world.get(section, {}), **values} for section, values in place.items()}}
    assert run_again(moved)[1] == []


def test_a_resumed_run_of_changed_code_is_refused(world):
    run = Run(load_run(world, method="mine"), Path("stopped"))
    stop_after_a_task(run)
    edited("helper.py", "0.1", "0.3")
    with pytest.raises(UserError, match=r"holds another run \(other code: mine.py:Pull"):
        cl.run(world, method="mine", out="stopped")
    edited("helper.py", "0.3", "0.1")
    assert cl.run(world, method="mine", out="stopped")["status"] == "finished"


def test_a_class_typed_anew_is_another_class(tmp_path):
    def with_weight(weight):
        space = {"Strategy": Strategy, "__name__": "__main__"}
        exec(f"class Pull(Strategy):\n    def penalty(self, weights):\n        return {{self.name: {weight} * sum((w**2).sum() "
             "for w in weights.values())}", space)  # fmt: skip
        return {"pull": {"strategies": {"pull": space["Pull"]}}}

    small = tiny_config(train={"max_steps": 1})
    first = cl.compare(small, methods=with_weight(0.1), out=tmp_path).records[-1]
    same = cl.compare(small, methods=with_weight(0.1), out=tmp_path).records[-1]
    other = cl.compare(small, methods=with_weight(0.2), out=tmp_path).records[-1]
    assert same == first
    assert other["losses"][0]["terms"]["pull"] == pytest.approx(2 * first["losses"][0]["terms"]["pull"])


def test_a_page_is_of_its_own_runs_and_names_the_others(world):
    more = {**world, "methods": {"mine": world["methods"]["mine"], "sequential": {}}, "seeds": [0, 1]}
    run_again(more)
    fewer = {**more, "methods": {"sequential": {}}, "seeds": [0]}
    found, _ = run_again(fewer)
    assert [(r["method"], r["seed"]) for r in found.records] == [("sequential", 0)]
    assert found.notes == ("in this folder, but not of this study: mine/given-s0, mine/given-s1, sequential/given-s1",)
    page = Path("out/report.html").read_text()
    assert "not of this study: mine/given-s0" in page
    loaded = cl.load("out")
    assert loaded.records == found.records
    assert loaded.notes == found.notes
    # a cell that somebody ran with other settings is not of the study either
    cl.run(fewer, method="sequential", overrides=["train.learning_rate=0.5"], out="out/runs/sequential/given-s2")
    assert "sequential/given-s2" in cl.load("out").notes[0]


def test_runs_without_a_study_that_do_not_belong_together_are_never_averaged(world):
    for seed, rate in ((0, 0.1), (1, 0.2)):
        cl.run(
            world,
            method="mine",
            overrides=[f"seed={seed}", f"train.learning_rate={rate}"],
            out=f"cells/runs/mine/s{seed}",
        )
    found = cl.load("cells")
    assert len(found.records) == 2
    with pytest.raises(UserError, match=r"mine.*train.learning_rate"):
        build(found.records, Path("cells"))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "null", "list", "digit"])
def test_a_damaged_record_is_named_and_treated_as_absent(world, damage):
    run_again({**world, "methods": {"sequential": {}}, "seeds": [0, 1]})
    path = Path("out/runs/sequential/given-s0/record.json")
    whole = path.read_bytes()
    digit = (
        whole.replace(b'"acc": 0.', b'"acc": 1.') if b'"acc": 0.' in whole else whole.replace(b'"acc": 1', b'"acc": 2')
    )
    content = {"cut": whole[:-40], "flip": bytes([whole[0], whole[1] ^ 1]) + whole[2:], "empty": b"", "null": b"null",
               "list": b"[]", "digit": digit}[damage]  # fmt: skip
    assert content != whole
    path.write_bytes(content)
    loaded = cl.load("out")
    assert [r["seed"] for r in loaded.records] == [1]
    assert any("given-s0/record.json: is damaged" in note for note in loaded.notes)
    found, told = run_again({**world, "methods": {"sequential": {}}, "seeds": [0, 1]})
    assert [r["seed"] for r in found.records] == [0, 1]
    assert any("record.json.damaged-1" in text for text in told)
    assert path.with_name("record.json.damaged-1").read_bytes() == content


def test_a_cell_by_itself_is_the_cell_of_the_study(world, tmp_path):
    config = {**world, "orders": [["a", "b"], ["b", "a"]]}
    path = tmp_path / "world.yaml"
    path.write_text(yaml.safe_dump(config))
    whole, _ = study.compare(load_study(path), Path("results/world"))
    alone = cl.run(path, method="mine", order="b+a", out="alone")
    assert identity.settled(alone["config"]) == identity.settled(whole.records[1]["config"])
    assert (alone["order"], alone["matrix"], alone["identity"]) == (
        whole.records[1]["order"], whole.records[1]["matrix"], whole.records[1]["identity"])  # fmt: skip
    assert cl.run(path, method="mine", order="2") == whole.records[1]  # its folder is the study's: it is there already
    with pytest.raises(UserError, match=r"--order a\+c: no such order; did you mean 'a\+b'"):
        cl.run(path, method="mine", order="a+c")


def test_source_of_a_module_with_a_package_of_ones_own(tmp_path, monkeypatch):
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("X = 1\n")
    (tmp_path / "guest.py").write_text("import json\nimport torch\nfrom mypackage.inner import X\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [p.name for p in own_files((tmp_path / "guest.py").resolve())] == ["guest.py", "__init__.py", "inner.py"]
    before = file_source(tmp_path / "guest.py")
    (package / "inner.py").write_text("X = 2\n")
    assert file_source(tmp_path / "guest.py") != before


RELATIVE = ("from .inner import X", "from . import inner", "from .deep import x", "from .deep.x import X")
ABSOLUTE = ("import plain.inner", "from plain.deep.x import X")


@pytest.mark.parametrize("line", [*RELATIVE, *ABSOLUTE])
@pytest.mark.parametrize("regular", [True, False])
def test_the_source_of_a_package_is_all_of_it(tmp_path, line, regular):
    (tmp_path / "plain" / "deep").mkdir(parents=True)
    (tmp_path / "plain" / "inner.py").write_text("X = 1\n")
    (tmp_path / "plain" / "deep" / "x.py").write_text("X = 1\n")
    if regular:
        (tmp_path / "plain" / "__init__.py").touch()
    guest = tmp_path / "plain" / "guest.py" if line in RELATIVE else tmp_path / "guest.py"
    guest.write_text(line + "\n")
    before = file_source(guest)
    edited(tmp_path / "plain" / ("deep/x.py" if "deep" in line else "inner.py"), "1", "2")
    assert file_source(guest) != before


def test_another_device_that_computes_in_another_precision_gives_another_result(world, monkeypatch):
    """`train.bf16: auto` on a GPU that has bfloat16, and here; and a record that says neither."""
    config = load_study(world).runs[0]
    here = identity.identity(config, build_stream(config))
    assert here["precision"] == "float32"
    monkeypatch.setattr(identity, "in_bf16", lambda train, device: True)
    there = identity.identity(config, build_stream(config))
    why = identity.changed_parts(here, there)
    assert why == "another precision (train.bf16): precision: 'float32' there, 'bfloat16' here"
    del here["precision"]
    assert "another precision" in identity.changed_parts(here, there)


@pytest.mark.parametrize("place", ["dist-packages", "site-packages"])
def test_a_library_installed_elsewhere_is_not_ones_own(tmp_path, monkeypatch, place):
    (tmp_path / place / "biglib").mkdir(parents=True)
    (tmp_path / place / "biglib" / "__init__.py").touch()
    (tmp_path / "guest.py").write_text("import biglib\n")
    monkeypatch.syspath_prepend(tmp_path / place)
    assert [p.name for p in own_files((tmp_path / "guest.py").resolve())] == ["guest.py"]


@pytest.mark.parametrize("name", ["tempfile", "yaml", "__main__"])
def test_a_helper_called_as_a_library_is_leaves_the_library_alone(tmp_path, name):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__init__.py").touch()
    (tmp_path / "plain" / f"{name}.py").write_text("WEIGHT = 0.1\n")
    (tmp_path / f"{name}.py").write_text("WEIGHT = 0.1\n")
    (tmp_path / "mine.py").write_text(GUEST.replace("from helper", f"import {name}\nfrom plain.{name}"))
    before = sys.modules[name]
    assert STRATEGIES.get(f"{tmp_path}/mine.py:Pull", "here").__name__ == "Pull"
    assert sys.modules[name] is before


def test_the_command_line_says_what_has_changed(world, tmp_path, monkeypatch, capsys):
    path = tmp_path / "world.yaml"
    path.write_text(yaml.safe_dump({**world, "methods": {"sequential": {}}}))
    assert call(monkeypatch, capsys, "run", path, "--out", "single")[0] == 0
    edited("data/a/train.jsonl", '"y"', '"q"')
    code, _, errors = call(monkeypatch, capsys, "run", path, "--out", "single")
    assert code == 2
    assert errors.strip().splitlines()[-1].startswith("error: single: holds another run (other data: task a")


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_changes_while_a_comparison_runs_is_refused_and_what_is_done_stays(world, jobs):
    """The first run edits the file that the others are made with; they would be other runs, and are not made."""
    Path("mine.py").write_text(
        f"from pathlib import Path\n{GUEST}    def after_task(self, model, task):\n        path = Path('helper.py')\n"
        "        path.write_text(path.read_text() + '# edited\\n')\n        return model\n"
    )
    config = {**world, "seeds": [0, 1]}
    found, failures = study.compare(load_study(config), Path("out"), jobs=jobs)
    if jobs == 1:
        assert [(r["seed"], r["status"]) for r in found.records] == [(0, "finished"), (1, "failed")]
        assert "mine.py:Pull (strategies.mine.py:Pull) has changed since this comparison began" in failures[0].error
    assert not list(Path("out/runs").glob("*/*.was-*"))
    for record in found.records:
        assert record["status"] == "failed" or record["identity"] == found.records[0]["identity"]


def test_what_happened_since_the_runs_is_said_by_a_report(world):
    run_again(world)
    assert cl.load("out").notes == ()
    edited("helper.py", "0.1", "0.2")
    answers = Path("out/runs/mine/given-s0/answers/row-1.jsonl")
    answers.write_text(answers.read_text().replace("a0", "a7"))
    notes = cl.load("out").notes
    assert any("mine.py:Pull (strategies.mine.py:Pull) has changed since these runs" in note for note in notes)
    assert any("row-1.jsonl: is missing, damaged or edited" in note for note in notes)
    Path("out/study.json").unlink()
    assert any("study.json is missing" in note for note in cl.load("out").notes)
