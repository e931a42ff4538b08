"""Texts in bulk are the tokens that transformers gives text by text; rows are kept in little memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from families import FAMILIES
from pieces import ask, byte_codec
from transformers import PreTrainedTokenizerFast

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.models import tiny, tokens
from cl_toolkit.models.sections import Prompt
from cl_toolkit.models.text import TextCodec
from cl_toolkit.models.tokens import Bulk, Rows
from cl_toolkit.types import IGNORE

TEXTS = [
    "",
    " ",
    "a",
    "Größe – Übermaß!",
    "🎈👩‍👩‍👧",
    "日本語",
    "tab\tand\nline\r\n",
    "<s>",
    "a </s> b",
    "<|im_end|>x",
    "\x00",
    "x" * 300,
]


def family(name):
    template, special, _ = FAMILIES[name]
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def codec_of(tokenizer, **prompt):
    return TextCodec(tokenizer, typed(Prompt, {**base_layer()["prompt"], **prompt}, "prompt", "test"))


@pytest.mark.parametrize("many", [10**9, 0])  # text by text, and over the cores
@pytest.mark.parametrize("name", FAMILIES)
def test_in_bulk_as_one_by_one(name, many, monkeypatch):
    monkeypatch.setattr(tokens, "MANY", many)
    tokenizer, bulk = family(name), Bulk(family(name))
    assert bulk.library is not None
    plain = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    as_text = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in TEXTS]
    for _ in range(2):  # the two ways do not disturb each other
        assert bulk.encode(TEXTS, False) == plain
        assert bulk.encode(TEXTS, True) == as_text
    assert bulk.encode([], True) == []
    for ids in (*plain, *as_text, [257, 97], []):
        said = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert bulk.decode(ids) == said


def test_what_a_folder_says_of_truncation_and_padding_is_left_out():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert Bulk(tokenizer).encode(["a", "abcdef"], True) == [[97], [*b"abcdef"]]


class Shouts(PreTrainedTokenizerFast):
    """A tokenizer that does something of its own before the library's part."""

    def _encode_plus(self, text, **settings):
        return super()._encode_plus(text.upper(), **settings)


def test_a_tokenizer_with_work_of_its_own_is_asked_itself():
    plain = tiny.byte_tokenizer()
    bulk = Bulk(Shouts(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"))
    assert bulk.library is None
    assert bulk.encode(["ab", "</s>"], True) == [[*b"AB"], [*b"</S>"]]
    assert bulk.decode([97, 98, 257]) == "ab"


EXAMPLES = [
    *(ask(f"what is {text}?", text or "nothing", f"{i}") for i, text in enumerate(TEXTS)),
    ask("what is a?", "a", "twice"),
    ask("y" * 400, "z" * 50, "long"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_its_examples_one_by_one(name):
    together, alone = codec_of(family(name), max_prompt_length=120), codec_of(family(name), max_prompt_length=120)
    batch = together.batch(EXAMPLES)
    for row, example in enumerate(EXAMPLES):
        prompt, answer = alone.ids(example)
        length = len(prompt) + len(answer)
        assert batch.inputs["input_ids"][row, :length].tolist() == prompt + answer
        assert (batch.inputs["input_ids"][row, length:] == alone.pad).all()
        assert batch.labels[row, :length].tolist() == [IGNORE] * len(prompt) + answer
        assert batch.inputs["attention_mask"][row].tolist() == [1] * length + [0] * (batch.labels.shape[1] - length)
    assert together.truncated_ids == alone.truncated_ids == {"11", "long"}
    again = together.batch(EXAMPLES)
    assert all(torch.equal(again.inputs[k], batch.inputs[k]) for k in batch.inputs)
    assert {t.dtype for t in (*batch.inputs.values(), batch.labels)} == {torch.int64}


def test_of_more_rows_than_are_kept_a_batch_is_whole():
    codec, plain = byte_codec(), byte_codec()
    codec._rows = Rows(most=20)
    batch, wanted = codec.batch(EXAMPLES), plain.batch(EXAMPLES)
    assert torch.equal(batch.inputs["input_ids"], wanted.inputs["input_ids"])
    assert codec._rows.size <= 20 or len(codec._rows._rows) == 1


def test_the_oldest_rows_go():
    rows = Rows(most=6)
    for key in "abc":
        rows.keep(key, [1, 2], [3])
    assert rows.get("a") is None
    assert rows.get("c").tokens.tolist() == [1, 2, 3]
    assert rows.size == 6


def test_a_kept_token_takes_four_bytes():
    rows, count, size = Rows(), 2000, 200
    made = [list(range(i, i + size)) for i in range(1000, 1000 + count)]
    keys = [(("message",), str(i)) for i in range(count)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for key, ids in zip(keys, made, strict=True):
        rows.keep(key, ids[:100], ids[100:])
    each = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    print(f"{each:.0f} bytes a row of {size} tokens")
    assert rows.get(keys[0]).tokens.dtype == np.int32
    assert each < 4 * size + 400


def test_answers_of_any_number_are_the_same():
    codec = byte_codec()
    texts = [f"answer {i}" for i in range(5000)]  # more than are remembered
    for text in (*texts, *texts[:3]):
        assert codec.answer(ask("q"), text) == [*text.encode(), codec.eos]
    assert len(codec._answers) <= 4096
