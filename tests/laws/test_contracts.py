"""Whatever a config can name keeps the laws of its kind; who blunders is caught by the law that is broken."""

from importlib.util import find_spec
from pathlib import Path

import cheats_data
import cheats_models
import cheats_watchers
import pytest
import torch
from files import llama_folder, write_idx, write_rows
from transformers import BertConfig, BertForMaskedLM

from cl_toolkit.check import check
from cl_toolkit.check.suites import SUITES
from cl_toolkit.engine.choose import ENGINES, EngineKind
from cl_toolkit.errors import UserError
from cl_toolkit.models.tiny import byte_tokenizer

SUPPORT = Path(cheats_data.__file__).parent
OTHERS = {suite.kind: suite for suite in SUITES if suite.kind not in ("strategy", "objective")}
"""Strategies and objectives have test_laws.py."""
CHEATS = {
    "stream": ("cheats_data.py", cheats_data.STREAMS),
    "scorer": ("cheats_data.py", cheats_data.SCORERS),
    "probe": ("cheats_watchers.py", cheats_watchers.PROBES),
    "tracker": ("cheats_watchers.py", cheats_watchers.TRACKERS),
    "model": ("cheats_models.py", cheats_models.KINDS),
}
HONEST = {
    "stream": "cheats_data.py:Words",
    "scorer": "cheats_data.py:shares_letters",
    "probe": "cheats_watchers.py:Lengths",
    "tracker": "cheats_watchers.py:Keeps",
    "model": "cheats_models.py:Small",
}


def broken(results):
    return {r.law.number: r.seen for r in results if r.passed is False}


NAMES = [(kind, name) for kind, suite in OTHERS.items() for name in suite.names() if name != "deepspeed"]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_what_is_registered_keeps_its_laws(kind, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert broken(check(name, settings=needed(name, tmp_path))) == {}


def needed(name, folder):
    """Settings without a default, and a small number of skills."""
    if name == "skills":
        return {"train_size": 200}
    if name == "jsonl":
        for task in ("one", "two"):
            for i, split in enumerate(("train", "test")):
                write_rows(
                    folder / task / f"{split}.jsonl", [{"input": f"{task} {i} {n}", "target": "x"} for n in range(4)]
                )
        return {"path": str(folder)}
    if name == "dataset":
        write_rows(folder / "one.jsonl", [{"input": f"x{i}", "target": "abc"[i % 3]} for i in range(12)])
        return {"sources": {"one": {"path": str(folder / "one.jsonl"), "test_from_train": 3, "cut": {"number": 2}}}}
    if name == "lm_eval":
        pytest.importorskip("lm_eval", reason="lm-eval is not installed here; `make peers` asks its probe the same")
    if name == "avalanche":
        pytest.importorskip(
            "avalanche", reason="Avalanche is not installed here; `make peers` asks its stream the same"
        )
    if name == "images":
        write_idx(folder)
        return {"path": str(folder), "valid_from_train": 6}
    if name == "text":
        for domain in ("law", "sea"):
            for split in ("train", "test", "valid"):
                path = folder / domain / f"{split}.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text("\n\n\n".join(f"{domain} {split} {i}" for i in range(3)))
        return {"path": str(folder)}
    return {}


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed here (it is for Linux)")
@pytest.mark.filterwarnings("ignore")  # inside of DeepSpeed, when it is imported and when it steps
def test_deepspeed_keeps_the_laws_of_engines():
    results = check("deepspeed")
    assert broken(results) == {}
    assert len(results) == len(OTHERS["engine"].laws)


@pytest.mark.parametrize("head", ["lm", "classes", "none"])
@pytest.mark.parametrize("make", ["llama", "bert"])
def test_a_model_in_a_folder_keeps_the_laws(make, head, tmp_path):
    if (make, head) == ("bert", "lm"):
        pytest.skip("an encoder does not write")
    torch.manual_seed(0)
    if make == "llama":
        llama_folder(tmp_path)
    else:
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertForMaskedLM(BertConfig(vocab_size=259, initializer_range=0.3, **shape)).save_pretrained(tmp_path)
        byte_tokenizer().save_pretrained(tmp_path)
    assert broken(check(str(tmp_path), settings={"head": head})) == {}


@pytest.mark.parametrize(("kind", "place"), HONEST.items())
def test_the_honest_one_passes(kind, place):
    results = check(f"{SUPPORT / place}")
    assert broken(results) == {}
    assert len(results) == len(OTHERS[kind].laws)
    assert all(r.passed for r in results)


CASES = [(file, name, number) for file, cheats in CHEATS.values() for name, number in cheats.items()]


@pytest.mark.parametrize(("file", "name", "number"), CASES)
def test_a_cheat_is_caught_by_the_law_that_it_breaks(file, name, number):
    (result,) = check(f"{SUPPORT / file}:{name}", [number])
    assert result.passed is False, result.seen
    assert not result.seen.startswith(("AttributeError", "TypeError", "KeyError", "UserError")), result.seen


@pytest.mark.parametrize(("name", "number"), cheats_watchers.ENGINES.items())
def test_an_engine_that_cheats_is_caught(name, number, monkeypatch):
    engine = cheats_watchers.engine_of(name)
    kind = EngineKind(lambda section, train, device: engine(train, device), lambda section, train: None)
    monkeypatch.setitem(ENGINES, "deepspeed", kind)
    (result,) = check("deepspeed", [number])
    assert result.passed is False, result.seen


def test_every_law_has_somebody_to_catch():
    caught = {kind: set(cheats.values()) for kind, (_, cheats) in CHEATS.items()}
    caught["engine"] = set(cheats_watchers.ENGINES.values())
    assert caught == {kind: set(suite.laws) for kind, suite in OTHERS.items()}


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("power_lwa", "is the name of nothing that can be checked; did you mean 'power_law'"),
        ("exact-mach", "did you mean 'exact_match'"),
        ("tiny_ml", "did you mean 'tiny-lm'"),
        (f"{SUPPORT / 'cheats_data.py'}:Wrods", "has no 'Wrods'; did you mean 'Words'"),
        ("cl_toolkit.measure.probe:Probe", "expected a class derived from"),
        ("cl_toolkit.measure.scorers:NUMBER", "or a scorer (a Scorer, or a function of example and answer)"),
    ],
)
def test_a_wrong_reference_is_refused(reference, words):
    with pytest.raises(UserError) as error:
        check(reference)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mlp", {"input_size": 33}),
        ("small-cnn", {"channels": 3, "width": 4}),
        ("mlp", {"num_classes": 3}),
        ("small-vit", {"hidden_size": 8, "num_hidden_layers": 1}),
    ],
)
def test_a_model_keeps_its_laws_whatever_its_size(name, settings):
    assert broken(check(name, settings=settings)) == {}


def test_settings_are_checked_as_those_of_a_config():
    with pytest.raises(UserError, match=r"stream.path: missing"):
        check("jsonl")
    with pytest.raises(UserError, match=r"model.hiden_size: unknown key; did you mean 'hidden_size'"):
        check("mlp", settings={"hiden_size": 3})
    with pytest.raises(UserError, match=r"model.num_classes: expected more than 2, the index of a class"):
        check("mlp", settings={"num_classes": 2})
    with pytest.raises(UserError, match=r"check: scorer.weight: unknown key"):
        check("choices", settings={"weight": 3})


def test_a_scorer_may_read_fields_of_its_own():
    place = f"{SUPPORT / 'cheats_data.py'}:counts_words_of"
    assert broken(check(place))[1].startswith("example check/42: counts_words_of: KeyError: 'words'")
    assert broken(check(place, settings={"extra": {"words": ["yes", "42"]}})) == {}


def test_a_probe_of_classes_is_checked_on_a_model_that_gives_them():
    results = check(f"{SUPPORT / 'cheats_watchers.py'}:Classes")
    assert broken(results) == {}
    assert all(r.passed for r in results)


def test_a_law_that_is_broken_by_design_says_why(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from cheats_data import TestsOnTheTrainingData\n\n\nclass Mine(TestsOnTheTrainingData):\n"
        "    exceptions = {5: 'the source repeats lines'}\n"
    )
    (result,) = check(f"{path}:Mine", [5])
    assert (result.passed, result.seen) == (None, "excepted: the source repeats lines")
