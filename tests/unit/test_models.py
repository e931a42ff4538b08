"""Models: the built-in one, its warm start, and any causal language model from a folder."""

import json
from statistics import fmean

import pytest
import torch
from tiny import tiny_config
from transformers import LlamaConfig, LlamaForCausalLM

import cl_toolkit as cl
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.models.tiny import TinyLM, Warmup, build_tiny, byte_tokenizer
from cl_toolkit.runs.warmup import mixture, start_model, warmed_up

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=259, bos_token_id=256, eos_token_id=257, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task, answer in (("yes", "Ja"), ("no", "Nein")):
        (folder / task).mkdir()
        for split, n in (("train", 8), ("test", 3)):
            lines = [
                {"messages": [{"role": "user", "content": f"{task} {i}?"}, {"role": "assistant", "content": answer}]}
                for i in range(n)
            ]
            (folder / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("between", ["continue", "merge", "stack"])
def test_a_chat_model_from_a_folder_learns_with_lora(chat_folder, data_folder, between, tmp_path):
    config = tiny_config(
        model=None, stream=None, train={"max_steps": 60, "learning_rate": 3e-2}, strategies={"replay": {}}
    )
    config["model"] = {"name": str(chat_folder), "adapter": {"r": 4, "lora_alpha": 16, "between_tasks": between}}
    config["stream"] = {"name": "jsonl", "path": str(data_folder)}
    record = cl.run(config, out=tmp_path / between)
    for task in record["tasks"]:
        losses = [row["terms"]["sft"] for row in record["losses"] if row["task"] == task]
        assert fmean(losses[-15:]) < fmean(losses[:15]) - 0.01
    trained = {row["trained_parameters"] for row in record["adapters"]}
    assert len(trained) == 1
    grown = record["adapters"][1]["all_parameters"] - record["adapters"][0]["all_parameters"]
    each = trained.pop()
    assert grown == (each if between == "stack" else 0)
    said = [(r["loaded"], r["trained"], r["frozen"], r["afterwards"]) for r in record["adapters"]]
    assert (
        said
        == {
            "continue": [({"task0": each}, "task0", [], "kept")] * 2,
            "merge": [({"task0": each}, "task0", [], "merged"), ({"task1": each}, "task1", [], "merged")],
            "stack": [
                ({"task0": each}, "task0", [], "frozen"),
                ({"task0": each, "task1": each}, "task1", ["task0"], "frozen"),
            ],
        }[between]
    )


def test_a_missing_folder_is_said_in_one_line(tmp_path):
    config = tiny_config(model=None)
    config["model"] = {"name": str(tmp_path / "nowhere")}
    with pytest.raises(cl.UserError, match=r"model.name: .*nowhere: no such folder"):
        cl.run(config, out=tmp_path / "out")


def test_fresh_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    same, again, other = (fingerprint(build_tiny(TinyLM(), seed)) for seed in (1, 1, 2))
    assert same == again != other
    assert torch.equal(torch.random.get_rng_state(), before)
    assert 0.34e6 < sum(p.numel() for p in build_tiny(TinyLM(), 0).parameters()) < 0.37e6


def test_the_warm_start_is_cached_and_is_the_same_for_every_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("CL_TOOLKIT_CACHE", str(tmp_path))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = TinyLM(**small, warmup=Warmup(steps=5, batch_size=4, skills=("max", "last")))
    made = fingerprint(warmed_up(settings))
    assert len(list(tmp_path.iterdir())) == 1
    assert fingerprint(start_model(settings, 0)) == made == fingerprint(start_model(settings, 9))
    assert made != fingerprint(build_tiny(settings, 0))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_warm_start_that_was_shown_other_words_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("CL_TOOLKIT_CACHE", str(tmp_path))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain, shows = (
        TinyLM(**small, warmup=Warmup(steps=2, batch_size=4, length=2, skills=("max",), shown=share))
        for share in (0.0, 1.0)
    )
    before = [fingerprint(warmed_up(settings)) for settings in (plain, shows)]
    monkeypatch.setattr("cl_toolkit.runs.warmup.SOLUTION", "\nIt is {}.")
    assert fingerprint(warmed_up(plain)) == before[0]
    assert fingerprint(warmed_up(shows)) != before[1]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_warm_start_never_meets_a_test_input():
    from cl_toolkit.benchmarks.skills import Skills

    seen = {e.question for e in mixture(TinyLM(warmup=Warmup(steps=50, length=3)))}
    for seed in (0, 1):
        for task in Skills(Skills.Config(length=3, seed=seed, test_size=50)).tasks(["sort", "max"]):
            assert not seen & {e.question for e in (*task.test, *task.valid)}


def test_the_warm_start_shows_answers_in_the_words_of_on_policy():
    from cl_toolkit.strategies.objectives.on_policy import DEMONSTRATION, SOLUTION, shown

    warmup = {"steps": 20, "batch_size": 4, "length": 3, "skills": ("max", "reverse")}
    plain = mixture(TinyLM(warmup=Warmup(**warmup)))
    mixed = mixture(TinyLM(warmup=Warmup(**warmup, shown=0.5)))
    both = {words: [shown(e, words) for e in plain] for words in (DEMONSTRATION, SOLUTION)}
    assert len(mixed) == len(plain) == 80
    for words, examples in both.items():  # a quarter each, in their own places
        assert sum(seen == told for seen, told in zip(mixed, examples, strict=True)) == 20, words
    assert sum(seen == e for seen, e in zip(mixed, plain, strict=True)) == 40
    assert f":\n{plain[0].target}\n\nNow" in both[DEMONSTRATION][0].question
