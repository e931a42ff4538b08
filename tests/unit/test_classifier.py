"""Encoders and decoders with a head over the classes of a stream."""

import json

import pytest
import torch
from longer import AT_EACH_HOOK, long_but
from tiny import Trajectory, stop_after_a_task, tiny_config
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from cl_toolkit import UserError
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.models import adapters
from cl_toolkit.models.classifier import Classifier
from cl_toolkit.models.sections import Adapter, Prompt
from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import IGNORE, Example, Message

SHAPE = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TASKS = {
    "colours": {"red": "r", "blue": "b"},
    "sizes": {"big": "x", "small": "o"},
    "shapes": {"round": "0", "flat": "_"},
}
ENCODERS = {
    "bert": lambda: BertForMaskedLM(BertConfig(max_position_embeddings=40, **STILL, **SHAPE)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(max_position_embeddings=42, **STILL, **SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(bos_token_id=256, eos_token_id=257, pad_token_id=None, **SHAPE)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of models, and of tasks: a text is rows of a letter that gives its class away, and of others."""
    folder = tmp_path_factory.mktemp("classifier")
    for name, make in ENCODERS.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    for task, letters in TASKS.items():
        (folder / "data" / task).mkdir(parents=True)
        for split, count in (("train", 24), ("valid", 4), ("test", 16)):
            rows = []
            for i in range(count):
                label = list(letters)[i % 2]
                text = "".join(letters[label] if (i * 7 + j * j) % 3 else "s" for j in range(4 + i % 5))
                rows.append({"instruction": "", "input": text, "target": label, "choices": list(letters)})
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "data" / task / f"{split}.jsonl").write_text(lines)
    return folder


def config_of(place, model="bert", adapter=None, **changes):
    stream = {
        "name": "jsonl",
        "path": str(place / "data"),
        "scorer": "class_accuracy",
        "tasks": list(TASKS)[:2],
        **changes.pop("stream", {}),
    }
    plain = tiny_config(**changes)
    plain["stream"] = stream
    settings = {"name": str(place / model), "head": "classes"}
    plain["model"] = {**settings, **({"adapter": adapter} if adapter else {}), **changes.get("model", {})}
    return load_run(plain)


def run(place, folder, **changes):
    return Trajectory(Run(config_of(place, **changes), folder, None))


def resumed(place, folder, **changes):
    config = config_of(place, **changes)
    stop_after_a_task(Run(config, folder, None))
    return Trajectory(Run(config, folder, None))


def kind(place, name="bert"):
    return Classifier(name=str(place / name))


def codec(place, name="bert", classes=("red", "blue")):
    return kind(place, name).codec(typed(Prompt, base_layer()["prompt"], "prompt", "test"), classes)


def said(text, target="red", **fields):
    return Example(id=text, messages=(Message(role="user", content=text),), target=target, **fields)


# the head ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_the_head_is_drawn_from_the_seed_and_all_else_is_the_folders(name, place):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (kind(place, name).load(seed, classes=("a", "b", "c")) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    moved = {key for key in states[0] if not torch.equal(states[0][key], states[2][key])}
    assert {key.split(".")[0] for key in moved if "pooler" not in key} == {"score" if name == "llama" else "classifier"}
    assert first.classes == ["a", "b", "c"]
    ids = torch.arange(10).view(2, 5)
    assert first(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 3)


@pytest.mark.parametrize("labels", [2, 3])
def test_a_folders_own_head_is_for_other_classes_and_left_behind(labels, tmp_path):
    torch.manual_seed(0)
    own = BertForSequenceClassification(BertConfig(num_labels=labels, **SHAPE))
    own.classifier.weight.data.fill_(7.0)
    own.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = Classifier(name=str(tmp_path)).load(0, classes=("a", "b", "c"))
    assert model.classifier.weight.shape == (3, 16)
    assert model.classifier.weight.abs().max() < 2
    assert torch.equal(model.bert.pooler.dense.weight, own.bert.pooler.dense.weight)


def test_a_backbone_with_less_than_its_config_says_is_refused(place, tmp_path):
    BertForMaskedLM(BertConfig(**{**SHAPE, "num_hidden_layers": 2})).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for layers, words in (
        (3, "lacks the weights bert.encoder.layer.2."),
        (1, "holds the weights bert.encoder.layer.1."),
    ):
        settings = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": layers}))
        with pytest.raises(UserError, match=words):
            Classifier(name=str(tmp_path)).load(0, classes=("a", "b"))


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_said_of_a_text_depends_on_no_padding(name, place):
    model = kind(place, name).load(0, classes=("red", "blue")).eval()
    texts = [said("ab"), said("a longer one"), said("</s>")]
    found = model(**codec(place, name).prompts(texts).inputs).logits
    for row, example in zip(found, texts, strict=True):
        alone = model(**codec(place, name).prompts([example]).inputs).logits[0]
        torch.testing.assert_close(row, alone, rtol=1e-5, atol=1e-6)


# the codec -----------------------------------------------------------------------------------------------------------


def test_labels_are_classes_and_what_is_no_target_has_none(place):
    batch = codec(place).batch([said("x"), said("y", "blue"), said("z", "blue", source="aside")])
    assert batch.labels.tolist() == [0, 1, IGNORE]
    assert batch.targets.tolist() == [0, 1, 1]
    assert codec(place).batch([said("x"), said("y", "?", source="aside")]).targets.tolist() == [0, IGNORE]
    assert codec(place).batch([said("x")]).targets is None
    assert codec(place).prompts([said("z", "blue", source="aside")]).targets is None
    assert batch.counts()["tokens"] == 2
    assert batch.rows([1]).labels.tolist() == [1]
    assert codec(place).shown(said("x")) == "<s>x\n⟦red⟧"
    with pytest.raises(UserError, match="'bleu' is none of the stream's classes; did you mean 'blue'"):
        codec(place).batch([said("x", "bleu")])


def test_a_text_stands_between_the_marks_of_its_tokenizer(place, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    BertForMaskedLM(BertConfig(**SHAPE)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = codec(tmp_path, "")
    assert found.ids(said("ab"))[0] == [256, *b"ab\n", 257]
    assert codec(place).ids(said("ab"))[0] == [256, *b"ab\n"]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_all_positions_are_the_prompts(name, place):
    model = kind(place, name).load(0, classes=("red", "blue"))
    full = said("a" * 38)  # with <s> and the new line 40 tokens, as many as there are places
    assert model(**codec(place, name).prompts([full]).inputs).logits.shape == (1, 2)
    with pytest.raises(UserError, match=r"lower prompt.max_prompt_length"):
        codec(place, name).prompts([said("a" * 39)])


# runs ----------------------------------------------------------------------------------------------------------------

LONGER = {"train": {"max_steps": 40, "learning_rate": 1e-2, "global_batch_size": 8}}


@pytest.mark.parametrize("name", ENCODERS)
def test_it_learns(name, place, tmp_path):
    record = run(place, tmp_path, model=name, **LONGER).record
    assert record["matrix"][1][0] > 0.9
    assert record["matrix"][2][1] > 0.9
    assert record["chance"][2] == [0.5, 0.5]
    assert record["scorers"] == ["class_accuracy", "class_accuracy"]


def test_class_incremental_chooses_among_the_classes_so_far(place, tmp_path):
    stream = {"tasks": list(TASKS), "scenario": "class"}
    found = run(place, tmp_path / "class", stream=stream, **LONGER)
    assert found.run.model.classes == ["red", "blue", "big", "small", "round", "flat"]
    assert found.record["matrix"][1][1:] == ["not_evaluated"] * 2
    assert found.record["chance"][3] == [pytest.approx(1 / 6)] * 3
    said_by = [json.loads(line) for line in (tmp_path / "class/answers/row-2.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in said_by} <= {"red", "blue", "big", "small"}
    assert found.record["matrix"][3][2] > 0.9
    plain = run(place, tmp_path / "task", stream={"tasks": list(TASKS)}, **LONGER)
    assert plain.losses == found.losses  # how it is scored does not change how it is trained
    assert found.record["matrix"][3][0] < plain.record["matrix"][3][0]  # told which task it is, it knows more


CLASSES = [
    name
    for name in STRATEGIES
    if (tags := STRATEGIES.get(name, "test").tags).needs <= SFT.gives and tags.inputs is None and not tags.validates
]
"""Strategies that work with sft on whatever it learns from; one that checks anchors does so on scores alone."""


@pytest.mark.parametrize("name", long_but(AT_EACH_HOOK, CLASSES))
def test_a_strategy_works_on_classes_of_text_and_resumes(name, place, tmp_path):
    needed = STRATEGIES.get(name, "test").tags.life_cycles[0]
    adapter = {"r": 2, "between_tasks": needed} if needed else None
    whole = run(place, tmp_path / "whole", strategies={name: {}}, adapter=adapter)
    assert whole != run(place, tmp_path / "plain", adapter=adapter)
    again = resumed(place, tmp_path / "stopped", strategies={name: {}}, adapter=adapter)
    assert comparable(again.record) == comparable(whole.record)
    assert again.weights == whole.weights


def test_lwf_keeps_past_classes_alone(place, tmp_path):
    found = run(place, tmp_path, strategies={"lwf": {}})
    assert found.run.strategy.classes == [0, 1, 2, 3]
    assert found.losses[4]["lwf"] == 0.0  # the first step of the second task


ADAPTED = [(name, between) for name in ("bert", "llama") for between in ("continue", "merge", "stack")]


@pytest.mark.parametrize(("name", "between"), long_but({("bert", "merge"), ("llama", "stack")}, ADAPTED))
def test_an_adapter_goes_to_the_backbone_and_the_head_is_trained_beside_it(name, between, place, tmp_path):
    adapter = {"r": 2, "lora_alpha": 4, "between_tasks": between}
    model = adapters.begin_task(kind(place, name).load(0, classes=("a", "b")), Adapter(**adapter), 0, 0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    head = "score." if name == "llama" else "classifier."
    assert {n for n in trained if ".lora_" not in n} == {n for n, _ in model.named_parameters() if n.startswith(head)}
    assert not any(n.startswith(head) for n, _ in adapters.layers(model))
    whole = run(place, tmp_path / "a", model=name, adapter=adapter, strategies={"lwf": {}}, **LONGER)
    assert whole.record["matrix"][2][1] > 0.6
    again = resumed(place, tmp_path / "b", model=name, adapter=adapter, strategies={"lwf": {}}, **LONGER)
    assert comparable(again.record) == comparable(whole.record)
    assert again.weights == whole.weights


def test_how_a_batch_is_cut_does_not_matter(place, tmp_path):
    whole = run(place, tmp_path / "a", strategies={"replay": {}})
    cut = run(place, tmp_path / "b", strategies={"replay": {}}, train={"per_device_train_batch_size": 3})
    for mine, theirs in zip(whole.losses, cut.losses, strict=True):
        assert mine["sft"] == pytest.approx(theirs["sft"], abs=1e-5)


def test_watching_leaves_no_trace(place, tmp_path):
    curve = {"forgetting_curve": {"schedule": "linear", "every": 1, "examples": 4}}
    watched = run(place, tmp_path / "a", evaluate=curve)
    assert watched == run(place, tmp_path / "b")
    assert watched.record["probes"]["curves"]


# refusals ------------------------------------------------------------------------------------------------------------


def test_a_stream_without_choices_is_refused_before_anything_is_loaded(place, tmp_path, monkeypatch):
    row = {"instruction": "", "input": "q", "target": "a"}
    (tmp_path / "data" / "free").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "data" / "free" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(Classifier, "load", None)
    config = config_of(place, stream={"path": str(tmp_path / "data"), "tasks": ["free"]})
    with pytest.raises(UserError, match=r"model.head: classes: needs the allowed answers .* free/train/1 of task free"):
        Run(config, tmp_path / "out", None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"name": "rft"}}, r"objective.name: rft needs a model that gives .*; with it use objective sft"),
        ({"objective": {"name": "supcon"}}, "objective.name: supcon needs a model that gives hidden"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype: expected float32"),
        ({"model": {"head": "clases"}}, "model.head: expected .*classes.*did you mean 'classes'"),
    ],
)
def test_what_cannot_work_is_refused(changes, words, place):
    model = changes.pop("model", {})
    plain = tiny_config(**changes)
    plain["stream"] = {"name": "jsonl", "path": str(place / "data"), "scorer": "class_accuracy"}
    plain["model"] = {"name": str(place / "bert"), "head": "classes", **model}
    with pytest.raises(UserError, match=words):
        load_run(plain)


def test_an_adapter_for_no_layer_of_the_backbone_is_refused(place):
    with pytest.raises(UserError, match=r"model.adapter.target_modules: no layer classifier"):
        kind(place).check(Adapter(r=2, target_modules=("classifier",)), False)
