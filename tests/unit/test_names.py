"""Names: given once, known, fit for a folder on every system; numbers of tasks and depths that end."""

import pytest
import yaml
from files import call, write_case

from cl_toolkit import UserError, compare
from cl_toolkit.cli import scaffold
from cl_toolkit.config.plain_yaml import as_plain, parse_overrides, parse_yaml, read_yaml, to_yaml
from cl_toolkit.study.cells import load_run, load_study

MINE = "from cl_toolkit import Strategy\n\n\nclass Mine(Strategy):\n    pass\n"


def refusal(source, *overrides, **options):
    with pytest.raises(UserError) as error:
        load_study(source, overrides, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300, "a message is short, whatever it quotes"
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"seeds": [0, 1, 0]}, "the config: seeds: 0 is given twice"),
        ({"seeds": [True]}, "seeds: expected a list of whole numbers"),
        ({"orders": [["max", "sort"], ["max", "sort"]]}, "the config: orders: max, sort is given twice"),
        ({"methods": {"a": {}, "A": {}}}, "methods: 'a' and 'A' are one name"),
        ({"methods": {"a-b": {}, "a_b": {}}}, "methods: 'a-b' and 'a_b' are one name"),
        ({"methods": {"CON": {}}}, "methods: 'CON': is a name that Windows keeps for itself"),
        ({"methods": {"nul.x": {}}}, "methods: 'nul.x': is a name that Windows keeps"),
        ({"methods": {"m" * 300: {}}}, "expected at most 100 characters"),
        ({"methods": {"m" * 500: 3}}, "expected at most 100 characters"),
        ({"stream": {"tasks": ["x" * 500]}}, "stream.tasks: unknown task 'xxx"),
        ({"methods": {"../up": {}}}, "methods: '../up': expected letters, digits"),
        ({"name": "../up"}, "the config: name: '../up': expected letters, digits"),
        ({"strategies": {1: {}}}, "strategies: unknown strategy '1'"),
        ({"strategies": [1]}, "strategies: expected names or name: settings, got [1]"),
        ({"strategies": ["replay", "replay"], "x": 1}, "x: unknown key"),
        ({"strategies": {"power-law": {}, "power_law": {}}}, "strategies: one is named twice: power-law, power_law"),
        ({"methods": {None: {}}}, "the config: methods: expected keys that are text, got None"),
        ({True: 1}, "the config: a key: expected keys that are text, got True"),
        ({"train": {"max_steps": "x" * 1000}}, "train.max_steps: expected a whole number, got 'xxx"),
        ({"train": {"y" * 1000: 1}}, "train.yyy"),
        ({"methods": {"m": {"strategies": 3}}}, "the config: methods.m: strategies: expected names or name: settings, got 3"),
        ({"methods": {"m": ["x" * 500]}}, "methods.m: expected what differs from the rest, got ['xxx"),
        ({"stream": {"tasks": ["max"] * 1001}}, "stream.tasks: 1001 tasks; expected at most 1000"),
        ({"engine": {"deepspeed": {"fp16": {"enabled": True}}}}, "the config: engine.deepspeed"),
        # words of papers and of other libraries, and capitals
        ({"objective": "GRPO"}, "objective.name: unknown objective 'GRPO'; did you mean 'rft'?"),
        ({"objective": "sdft"}, "objective.name: unknown objective 'sdft'; did you mean 'on_policy'?"),
        ({"strategies": ["wise-ft"]}, "strategies: unknown strategy 'wise_ft'; did you mean 'merge'?"),
        ({"train": {"lr": 1e-4}}, "train.lr: unknown key; did you mean 'learning_rate'?"),
        ({"model": {"adapter": {"lora_rank": 8}}}, "model.adapter.lora_rank: unknown key; did you mean 'r'?"),
        ({"model": {"adapter": {"type": "LoRA"}}}, "model.adapter.type: unknown type 'LoRA'; did you mean 'lora'?"),
        ({"objective": {"name": "on_policy", "beta": 0.1}}, "objective.beta: unknown key; did you mean 'mixture'?"),
        ({"strategies": {"merge": {"alpha": 0.1}}}, "strategies.merge.alpha: unknown key; did you mean 'weight'?"),
        ({"objective": {"name": "rft", "reward_weights": [1]}}, "expected a list of 2: a number, a number, got [1]"),
        ({"model": {"heads": 3}}, "known: adapter, hidden_size, intermediate_size, max_position_embeddings, name, num"),
    ],
)  # fmt: skip
def test_refused_by_name(source, message):
    assert message in refusal(source)


def test_methods_named_twice_or_not_at_all():
    assert refusal("quickstart", methods=["replay", "replay"]) == "methods: replay is given twice"
    assert "expected a list of names, got []" in refusal("quickstart", methods=[])
    assert "expected a list of names, got 'replay'" in refusal("quickstart", methods="replay")
    with pytest.raises(UserError, match=r"overrides: expected a list such as \['train.max_steps=3'\], got 'train"):
        compare("quickstart", overrides="train.max_steps=3")


def test_a_method_that_is_added_can_be_named(tmp_path, monkeypatch, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    kept = load_study("quickstart", methods=["sequential"], add=[f"mine={mine}:Mine"])  # what is added is wanted
    assert kept.methods == ("sequential", "mine")
    study = load_study("quickstart", methods=["sequential", "mine"], add=[f"mine={mine}:Mine"])
    assert study.methods == ("sequential", "mine")
    code, _, said = call(monkeypatch, capsys, "compare", write_case(tmp_path), "--methods", "")
    assert (code, said) == (2, "error: --methods: is empty; expected names with commas between them\n")


def test_keys_of_a_comparison_do_nothing_for_one_run(tmp_path):
    for key in ("seeds=[1,2]", "orders=[[t]]", "search={}"):
        with pytest.raises(UserError, match=rf"command line: {key.split('=')[0]}: belongs to a comparison"):
            load_run(write_case(tmp_path), [key])
    with pytest.raises(UserError, match=r"name: '../up': expected letters"):
        load_run(write_case(tmp_path, name="../up"))


def test_extends_names_the_file(tmp_path):
    for value in ("nope", {}, 3):
        config = write_case(tmp_path, extends=value)
        assert refusal(config).startswith(f"{config}: extends: ")


@pytest.mark.parametrize("name", ["class", "match", "replay", "power-law", "n" * 101])
def test_a_new_strategy_has_a_name_that_can_work(tmp_path, name):
    with pytest.raises(UserError, match=f"new strategy {name[:40].replace('-', '_')}"):
        scaffold.new("strategy", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


# yaml -------------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 200_000, "is nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "is nested too deeply; at most 50 levels"),
        ("a: &a [*a]", "nested too deeply"),
        (LAUGHS, "holds more than 1000000 values"),
        ("a: " + "9" * 6000, "not valid YAML: Exceeds the limit"),
        ("a: !!python/object/apply:os.system ['echo no']", "not valid YAML: could not determine a constructor"),
        ("a: 1\na: 2", "not valid YAML: line 2: found duplicate key a"),
        ("~: 1", "not valid YAML: line 1: a key is no text (~)"),
        ("? [1, 2]\n: 3", "not valid YAML: line 1: a key is no text"),
        ("a: 1\non: true", "line 2: a key is no text (on); put it into quotes"),
        ("01: 1", "line 1: a key is no text (01); put it into quotes"),
        ("a: [", "not valid YAML: "),
    ],
)
def test_yaml_that_is_refused_in_one_line(text, message):
    with pytest.raises(UserError) as error:
        parse_yaml(text, "f.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_keys_are_texts_and_values_are_what_they_look_like():
    assert parse_yaml("1: 1\n'on': true\n'01': 1e-4\nd: 2024-01-01\ne: ${oc.env:HOME}\nf: .5\n", "f") == {
        "1": 1, "on": True, "01": 1e-4, "d": "2024-01-01", "e": "${oc.env:HOME}", "f": 0.5}  # fmt: skip
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}", "f")["c"] == {"b": 1, "d": 2}


def test_what_is_written_is_read_back(tmp_path):
    plain = {"a": "${b", "1": [1e-5, 1e-4, 0.1, 1, True, None, "1e-4", "1", "on", "${x}", "~", "2024-01-01", "ä\u2028\n x"],
             "c": {"d": [[]], "e": {}}}  # fmt: skip
    path = tmp_path / "f.yaml"
    path.write_text(to_yaml(plain), encoding="utf-8")
    assert read_yaml(path) == plain
    shared = [1]
    assert "&" not in to_yaml({"a": shared, "b": shared})
    assert yaml.safe_load(to_yaml({"a": (1, 2)})) == {"a": [1, 2]}


def test_overrides():
    assert parse_overrides(["a.b=1e-4", "a.c=x=y", "a.d=[1,2]", "a.e=", "f=${x}"]) == {
        "a": {"b": 1e-4, "c": "x=y", "d": [1, 2], "e": None}, "f": "${x}"}  # fmt: skip
    for wrong in ("a", "=1", "a..b=1", ".a=1"):
        with pytest.raises(UserError, match="expected key=value"):
            parse_overrides([wrong])
    with pytest.raises(UserError, match=r"command line: a: not valid YAML"):
        parse_overrides(["a=["])


def test_data_of_a_program_takes_the_form_of_a_file():
    assert as_plain({1: (1, [(2,)])}, "here") == {"1": [1, [[2]]]}
    endless: dict = {}
    endless["a"] = endless
    with pytest.raises(UserError, match="nested too deeply"):
        as_plain(endless, "here")
