"""Text to tokens and back: bytes, chat templates, truncation, labels."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from pieces import ask, byte_codec

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.models import tiny
from cl_toolkit.models.sections import Prompt
from cl_toolkit.models.template import MARKER, Guard, Refused
from cl_toolkit.models.text import TextCodec
from cl_toolkit.types import IGNORE, Example, Message

TEXTS = [
    "",
    " ",
    "a",
    "Größe, Straße – Übermaß!",
    "🎈👩‍👩‍👧 🇩🇪",
    "日本語",
    "tab\tand\nline\r\n",
    "<s>",
    "a </s> b",
    "\x00\x7f",
]
CHATML = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# an answer that is written differently in context than after the generation prompt
THINKING = CHATML.replace("<|assistant|>{% endif %}", "<|assistant|><think></think>{% endif %}")
NO_END = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def templated(template, **prompt):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = template
    return TextCodec(tokenizer, typed(Prompt, {**base_layer()["prompt"], **prompt}, "prompt", "test"))


def turns(*pairs, target="the answer", **fields):
    return Example(id="e", messages=tuple(Message(role=r, content=c) for r, c in pairs), target=target, **fields)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_go_round(text):
    tokenizer = tiny.byte_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == list(text.encode("utf-8"))
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_byte_has_its_own_token():
    tokenizer = tiny.byte_tokenizer()
    assert len(tokenizer) == tiny.VOCABULARY
    assert sorted({*range(256), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == [
        *range(259)
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_is_read_back_as_it_was_written(text):
    codec = byte_codec()
    ids = codec.answer(ask("q", text), text)
    assert ids[-1] == codec.eos
    assert codec.said(ids) == text
    assert codec.said([*ids, *b"what comes after", codec.eos]) == text


def test_without_a_template_the_turns_are_lines():
    codec = byte_codec(system="Be kind.", suffix="\n> ")
    prompt, answer = codec.ids(turns(("user", "eins"), ("assistant", "one"), ("user", "zwei"), target="two"))
    assert prompt[0] == codec.bos
    assert codec.tokenizer.decode(prompt[1:]) == "Be kind.\neins\none\nzwei\n> "
    assert answer == [*b"two", codec.eos]


def text_of(codec, ids):
    return codec.tokenizer.decode(ids, skip_special_tokens=False)


def test_a_chat_template_writes_prompt_and_answer():
    codec = templated(CHATML)
    prompt, answer = codec.ids(turns(("user", "eins"), ("assistant", "one"), ("user", "zwei")))
    assert text_of(codec, prompt) == "<|user|>eins</s>\n<|assistant|>one</s>\n<|user|>zwei</s>\n<|assistant|>"
    assert text_of(codec, answer) == "the answer</s>"  # the new line after the end mark is never generated
    assert answer.count(codec.eos) == 1
    assert codec.decode(answer) == "the answer"


@pytest.mark.parametrize(
    ("template", "prompt", "words"),
    [
        (None, {"thoughts": True}, "prompt.thoughts does nothing: the model has no chat template"),
        (
            None,
            {"chat_template_kwargs": {"a": 1}},
            "prompt.chat_template_kwargs does nothing: the model has no chat template",
        ),
        (
            CHATML,
            {"chat_template_kwargs": {"enable_thinking": False}},
            "enable_thinking does nothing: the chat template",
        ),
        (CHATML, {"chat_template_kwargs": {"message": 1}}, "message does nothing"),  # a part of a name is no name
        (CHATML, {}, None),
    ],
)
def test_a_setting_that_says_nothing_to_a_template_is_said(template, prompt, words):
    notes = templated(template, **prompt).check([], "test", lambda task: {})
    assert [words in note for note in notes if "does nothing" in note] == ([True] if words else [])


def test_an_answer_stands_where_the_conversation_has_it_unless_thoughts_are_wanted():
    prompt, _ = (codec := templated(THINKING)).ids(turns(("user", "q")))
    assert text_of(codec, prompt).endswith("<|assistant|>")  # the generation prompt opens thoughts that no answer has
    prompt, answer = (codec := templated(THINKING, thoughts=True)).ids(turns(("user", "q")))
    assert text_of(codec, prompt).endswith("<|assistant|><think></think>")
    assert text_of(codec, answer) == "the answer</s>"


def test_a_template_without_an_end_mark_gets_one():
    codec = templated(NO_END)
    prompt, answer = codec.ids(turns(("user", "q")))
    assert text_of(codec, prompt) == "[user]q[assistant]"
    assert answer == [*b"the answer", codec.eos]


def test_the_system_turn_comes_first_and_only_once():
    codec = templated(CHATML, system="Be kind.")
    prompt, _ = codec.ids(turns(("user", "q")))
    assert text_of(codec, prompt).startswith("<|system|>Be kind.</s>\n<|user|>q")
    prompt, _ = codec.ids(turns(("system", "own"), ("user", "q")))
    assert text_of(codec, prompt).startswith("<|system|>own</s>\n<|user|>q")


def test_a_template_can_be_switched_off():
    assert templated(CHATML, chat_template="off").ids(ask("q", "a")) == byte_codec().ids(ask("q", "a"))


def test_tools_are_part_of_the_prompt():
    codec = templated(CHATML)
    plain, one, two = (
        codec.ids(turns(("user", "q"), tools=tools))[0] for tools in ((), ({"name": "f"},), ({"name": "g"},))
    )
    assert text_of(codec, one).startswith('<|tools|>[{"name": "f"}]')
    assert text_of(codec, two).startswith('<|tools|>[{"name": "g"}]')
    assert text_of(codec, plain).startswith("<|user|>")


@pytest.mark.parametrize("codec", [byte_codec(max_prompt_length=40), templated(CHATML, max_prompt_length=40)])
def test_a_long_prompt_loses_the_middle_of_its_longest_turn(codec):
    long = "the task: " + "x" * 50 + "the end"
    prompt, answer = codec.ids(ask(long, "12345"))
    assert len(prompt) == 40
    text = text_of(codec, prompt)
    assert "the task:" in text
    if codec.templated:
        assert text.startswith("<|user|>the task:x")
        assert text.endswith("the end</s>\n<|assistant|>")
    else:
        assert text.startswith("<s>the task: x")
        assert text.endswith("the end\n")
    assert codec.ids(ask(long, "1"))[0] == prompt  # nothing of the answer shows in the prompt
    assert answer[:5] == list(b"12345")
    assert answer[-1] == codec.eos
    assert len(codec.truncated_ids) == 1
    codec.ids(ask(long, "12345"))
    assert len(codec.truncated_ids) == 1
    codec.ids(ask("short", "1"))
    assert len(codec.truncated_ids) == 1
    codec.ids(ask("y" * 50, "1"))
    assert len(codec.truncated_ids) == 2


def test_a_prompt_that_just_fits_is_whole():
    whole = byte_codec().ids(ask("12345", "1"))
    for length, cut in ((7, 0), (6, 1)):  # <s> 12345 \n
        codec = byte_codec(max_prompt_length=length)
        assert (codec.ids(ask("12345", "1")) == whole) == (not cut)
        assert len(codec.truncated_ids) == cut


@pytest.mark.parametrize("codec", [byte_codec(), templated(CHATML), templated(THINKING), templated(NO_END)])
def test_labels_mark_exactly_the_answer(codec):
    examples = [ask("a", "bcd"), ask("längere Frage", "ü"), ask("q", "x" * 30)]
    batch = codec.batch(examples)
    for row, example in enumerate(examples):
        target = batch.labels[row] != IGNORE
        labels = batch.labels[row][target]
        assert torch.equal(batch.inputs["input_ids"][row][target], labels)
        assert codec.decode(labels.tolist()) == example.target
        assert labels[-1] == codec.eos
        positions = target.nonzero().flatten().tolist()
        assert positions == list(range(positions[0], positions[-1] + 1))
        mask = batch.inputs["attention_mask"][row]
        assert positions[-1] + 1 == mask.sum()  # the answer is the end of the row
        assert mask[: mask.sum()].all()
        assert (batch.inputs["input_ids"][row][mask == 0] == codec.pad).all()
        assert batch.inputs["input_ids"][row][: positions[0]].tolist() == codec.ids(example)[0]


def test_filler_has_no_labels_and_other_answers_can_be_put_in():
    codec = byte_codec()
    batch = codec.batch([ask("q", "a"), ask("q", "a", source="filler")], [[*b"xyz", codec.eos], [*b"z", codec.eos]])
    assert codec.decode([t for t in batch.labels[0].tolist() if t != IGNORE]) == "xyz"
    assert (batch.labels[1] == IGNORE).all()


@pytest.mark.parametrize("source", ["aside", "filler"])
def test_targets_have_the_answers_of_rows_without_a_target(source):
    codec = byte_codec()
    examples = [ask("q", "one"), ask("a longer question", "two")]
    assert codec.batch(examples).targets is None  # it stands for the labels
    whole, beside = codec.batch(examples), codec.batch([examples[0], replace(examples[1], source=source)])
    assert torch.equal(beside.targets, whole.labels)
    assert torch.equal(beside.labels[0], whole.labels[0])
    assert (beside.labels[1] == IGNORE).all()
    assert torch.equal(beside.inputs["input_ids"], whole.inputs["input_ids"])
    part = beside.rows([0])
    assert part.targets.shape == part.labels.shape
    assert beside.counts()["tokens"] == 4


class Marks:
    """A tokenizer of characters with two control tokens, one of which begins the other."""

    all_special_tokens = ("<a", "<a>")
    added_tokens_decoder: ClassVar = {}

    def encode(self, text, add_special_tokens, split_special_tokens=False):
        assert not add_special_tokens
        if not split_special_tokens and text in self.all_special_tokens:
            return [self.all_special_tokens.index(text)]
        return [ord(c) for c in text]


def test_of_two_control_tokens_the_longer_one_is_kept_apart():
    guard = Guard(Marks())
    guarded = guard({"content": ["x<a>y", {"deep": "<a"}], "n": 3})
    assert [len(t) for t in (guarded["content"][0], guarded["content"][1]["deep"])] == [3, 1]
    assert guarded["n"] == 3
    assert guard.encode([guarded["content"][0], "z"]) == [[ord(c) for c in "x<a>y"], [ord("z")]]
    assert guard.encode(["<a>"]) == [[1]]
    with pytest.raises(Refused, match="private-use characters"):
        guard(guarded)
    with pytest.raises(Refused, match="private-use characters"):
        guard([MARKER])


@pytest.mark.parametrize("text", ["a , b .", "it 's so", " do n't ? ", "x ' y"])
def test_blanks_before_marks_stay(text):
    codec = byte_codec()
    assert codec.said(codec.answer(ask("q"), text)) == text
    codec.tokenizer.clean_up_tokenization_spaces = True
    assert codec.decode(list(text.encode())) == text
