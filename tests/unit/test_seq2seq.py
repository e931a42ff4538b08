"""Encoder-decoders: the encoder reads the question, the decoder writes the answer. Tiny ones, with random weights."""

import json

import pytest
import torch
from longer import long_but
from peft import PeftModel
from pieces import ask
from tiny import Trajectory, stop_after_a_task, tiny_config
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.check.kinds import LAWS
from cl_toolkit.check.law import judge
from cl_toolkit.check.suites import find_subject
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.engine.access import evaluating
from cl_toolkit.models import adapters
from cl_toolkit.models.generate import generate
from cl_toolkit.models.logits import predicted, says_logits
from cl_toolkit.models.sections import Adapter, Prompt
from cl_toolkit.models.seq2seq import Seq2Seq
from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import IGNORE

MARKS = {"vocab_size": 259, "eos_token_id": 257, "pad_token_id": 258, "decoder_start_token_id": 258}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0, **MARKS}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "dropout": 0.0, "bos_token_id": 256,
    "forced_eos_token_id": None, "init_std": 0.5, **MARKS,
}  # fmt: skip
MODELS = {
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "untied": lambda: T5ForConditionalGeneration(
        T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**BART)),
}
EXAMPLES = [ask(q, q[::-1], choices=("a", "dcba", "ihg", "")) for q in ("abcd", "e f", "ghi" * 5, "j")]
SKILLS = ("reverse", "double")


def metaspace():
    """A tokenizer of words, as T5 has one: each begins with a blank, and a text ends with a mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "▁", "▁yes", "▁no", "▁what", "?", ":", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of models, and of two tasks."""
    folder = tmp_path_factory.mktemp("seq2seq")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 if name == "bart" or weight.dim() < 2 else 3)
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    for task in SKILLS:
        (folder / "data" / task).mkdir(parents=True)
        for split, count in (("train", 12), ("valid", 2), ("test", 6)):
            texts = [chr(97 + i % 5) * (1 + i % 3) + chr(110 + (i + len(split)) % 7) for i in range(count)]
            rows = [{"instruction": task, "input": t, "target": t[::-1] if task == "reverse" else t + t} for t in texts]
            (folder / "data" / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def kind(place, name="t5"):
    return Seq2Seq(name=str(place / name))


def codec(place, name="t5"):
    return kind(place, name).codec(typed(Prompt, base_layer()["prompt"], "prompt", "test"))


@pytest.fixture(scope="module", params=MODELS)
def model(request, place):
    loaded = kind(place, request.param).load(0).eval()
    loaded.folder = request.param
    return loaded


@pytest.mark.parametrize("number", LAWS)
@pytest.mark.parametrize("name", MODELS)
def test_law(name, number, place):
    _, subject = find_subject(str(place / name), {"head": "seq2seq"})
    result = judge(LAWS[number], subject)
    assert result.passed is not False, result.seen


def test_the_laws_that_apply(place):
    _, subject = find_subject(str(place / "t5"), {"head": "seq2seq"})
    assert all(judge(LAWS[number], subject).passed for number in LAWS)


def test_a_row_is_the_start_and_the_answer(place):
    its = codec(place)
    batch = its.batch(EXAMPLES)
    rest = batch.labels.shape[1] - 6
    assert batch.inputs["decoder_input_ids"][0].tolist() == [258, *b"dcba", 257, *[258] * rest]
    assert batch.labels[0].tolist() == [IGNORE, *b"dcba", 257, *[IGNORE] * rest]
    questions = [len(its.ids(e)[0]) for e in EXAMPLES]
    assert batch.inputs["attention_mask"].sum(1).tolist() == questions
    part = batch.rows([0, 3])
    assert part.labels.shape == (2, 6)
    assert part.inputs["input_ids"].shape == part.inputs["attention_mask"].shape == (2, max(questions[0], questions[3]))
    assert batch.rows(()).sources == {"filler"}


def plainly(model, question, answer):
    """log p of each token of an answer by one row, without padding and cache."""
    with torch.no_grad():
        row = torch.tensor([[258, *answer]])
        logits = model(input_ids=torch.tensor([question]), decoder_input_ids=row).logits[0].log_softmax(-1)
    return [logits[i, token].item() for i, token in enumerate(answer)]


def test_targets_are_what_they_are_row_by_row(model, place):
    given, its = codec(place, model.folder).batch(EXAMPLES), codec(place, model.folder)
    model.says_logits = says_logits(model)
    assert model.says_logits == (model.folder != "bart")  # which adds a bias of the vocabulary's width
    wanted = torch.tensor([p for e in EXAMPLES for p in plainly(model, *its.ids(e))])
    for whole in (True, False):
        said = predicted(model, given, logits=whole)
        torch.testing.assert_close(said.logp.detach(), wanted, atol=1e-4, rtol=1e-4)


def by_hand(model, question, length, uniforms=None):
    """Token by token, by whole rows."""
    said = []
    while len(said) < length and 257 not in said:
        with torch.no_grad():
            row = torch.tensor([[258, *said]])
            logits = model(input_ids=torch.tensor([question]), decoder_input_ids=row).logits[0, -1]
        cumulated = logits.softmax(0).cumsum(0)
        said.append(int(logits.argmax()) if uniforms is None else int((cumulated <= uniforms[len(said)]).sum()))
    return said


@pytest.mark.parametrize("sampled", [False, True])
def test_answers_are_those_of_whole_rows(sampled, model, place):
    its = codec(place, model.folder)
    questions = [its.ids(e)[0] for e in (*EXAMPLES, EXAMPLES[0])]
    uniforms = torch.rand(len(questions), 6, generator=torch.Generator().manual_seed(0)) if sampled else None
    wanted = [by_hand(model, q, 6, None if uniforms is None else uniforms[i]) for i, q in enumerate(questions)]
    assert generate(model, questions, its, 6, uniforms) == wanted


def test_a_question_is_read_once(place, model):
    its, read = codec(place, model.folder), []
    encoder = model.get_encoder()
    hook = encoder.register_forward_hook(
        lambda module, args, kwargs, out: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with evaluating(model):
        generate(model, [its.ids(EXAMPLES[0])[0]] * 3, its, 5)
    hook.remove()
    assert read == [1]


@pytest.mark.parametrize("text", ["yes", "no", "what yes", "abc"])
def test_words_read_back_as_they_were_written(text, place, tmp_path):
    T5ForConditionalGeneration(
        T5Config(**{**T5, "vocab_size": 40, "eos_token_id": 1, "pad_token_id": 0})
    ).save_pretrained(tmp_path)
    metaspace().save_pretrained(tmp_path)
    its = Seq2Seq(name=str(tmp_path)).codec(typed(Prompt, {**base_layer()["prompt"], "suffix": ":"}, "prompt", "test"))
    example = ask("what?", text)
    question, answer = its.ids(example)
    assert its.said(answer) == text
    assert answer == [*its.tokenizer.encode(text, add_special_tokens=False), 1]
    assert question == its.tokenizer.encode("what?:")
    assert its.shown(example).endswith(f"⟦{its.tokenizer.decode(answer)}⟧")


# runs ----------------------------------------------------------------------------------------------------------------


def config_of(place, model="t5", adapter=None, **changes):
    plain = tiny_config(**changes)
    plain["stream"] = {"name": "jsonl", "path": str(place / "data"), "scorer": "exact_match", "tasks": list(SKILLS)}
    plain["model"] = {"name": str(place / model), "head": "seq2seq", **({"adapter": adapter} if adapter else {})}
    plain["prompt"] = {**plain.get("prompt", {}), "template": "{instruction} {input}"}
    return load_run(plain)


def run(place, folder, **changes):
    return Trajectory(Run(config_of(place, **changes), folder, None))


STRATEGIES = {
    "replay": {},
    "ewc": {},
    "lwf": {},
    "si": {},
    "agem": {},
    "der": {},
    "logit_swap": {},
    "merge": {},
    "ema": {},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_learn_and_keep(strategy, place, tmp_path):
    alone = run(place, tmp_path / "alone")
    beside = run(place, tmp_path / "beside", strategies={strategy: {}})
    assert all(value == value for terms in beside.losses for value in terms.values())
    assert alone != beside or strategy == "agem"
    assert alone == run(place, tmp_path / "off", strategies={strategy: dict(beside.run.strategy.tags.off)})


@pytest.mark.parametrize("objective", ["dft", "eaft", "asft"])
def test_losses_that_weight_tokens(objective, place, tmp_path):
    whole, cut = (
        run(place, tmp_path / str(size), objective={"name": objective}, train={"per_device_train_batch_size": size})
        for size in (None, 1)
    )
    for mine, theirs in zip(whole.losses, cut.losses, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


ADAPTERS = [None, {"r": 2}, {"r": 2, "between_tasks": "merge"}, {"r": 2, "between_tasks": "stack"}]
RESUMED = [(name, adapter) for name in ("t5", "bart") for adapter in ADAPTERS]


@pytest.mark.parametrize(
    ("name", "adapter"), long_but([("t5", None), ("bart", ADAPTERS[2]), ("t5", ADAPTERS[3])], RESUMED)
)
def test_a_stopped_run_goes_on(name, adapter, place, tmp_path):
    whole = run(place, tmp_path / "whole", model=name, adapter=adapter)
    config = config_of(place, model=name, adapter=adapter)
    stop_after_a_task(Run(config, tmp_path / "stopped", None))
    again = Trajectory(Run(config, tmp_path / "stopped", None))
    assert again == whole
    assert comparable(again.record) == comparable(whole.record)


def test_how_rows_are_cut_changes_no_loss(place, tmp_path):
    whole = run(place, tmp_path / "whole")
    for size in (1, 3):
        other = run(place, tmp_path / str(size), train={"per_device_train_batch_size": size})
        for mine, theirs in zip(whole.losses, other.losses, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


def test_rollouts(place, tmp_path):
    found = run(place, tmp_path, objective={"name": "rft", "num_generations": 3, "max_completion_length": 4})
    assert found.record["cost"]["rollouts"] > 0


def test_lora_goes_to_both_halves(place):
    model = adapters.begin_task(kind(place).load(0), Adapter(r=2), 0, 0)
    names = [name for name, *_ in adapters.pairs(model)]
    assert {"encoder", "decoder"} == {name.split(".")[0] for name in names}
    assert model.peft_config["task0"].task_type == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize(("changes", "message"), [
    ({"train": {"packing": 64}}, r"train.packing: 64: packs several examples into a row, and .* reads each question in a row"),
])  # fmt: skip
def test_what_cannot_work_is_refused(changes, message, place):
    with pytest.raises(UserError, match=message):
        config_of(place, **changes)


def test_another_architecture_is_refused(place, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((place / "t5" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"model.head: seq2seq: .* is no encoder-decoder \(llama\); use head: lm"):
        Seq2Seq(name=str(tmp_path)).check(None, False)
    with pytest.raises(
        UserError, match=r"abc.*: question or answer has \d+ tokens, the model has 64 positions for each"
    ):
        codec(place, "bart").batch([ask("abc" * 30, "a")])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21
@pytest.mark.parametrize("adapter", [None, {"r": 2}])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_what_is_exported_is_one_of_transformers(adapter, name, place, tmp_path):
    made = Run(config_of(place, name, adapter), tmp_path / "run", None)
    made.execute()
    out = cl.export(made.folder, tmp_path / "out")
    model = AutoModelForSeq2SeqLM.from_pretrained(place / name if adapter else out)
    model = PeftModel.from_pretrained(model, out) if adapter else model
    inputs = made.codec.batch(EXAMPLES).inputs
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, made.model.eval()(**inputs).logits)
