"""Documents: packed, kept apart, cut into windows, scored."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pieces import byte_codec, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from cl_toolkit import UserError
from cl_toolkit.models.documents import check_apart, packed, windows
from cl_toolkit.types import IGNORE, Example

TEXTS = ["ab", "a somewhat longer text, of two sentences. This is the second", "", "x", "nine more"]
DOCUMENTS = [Example(id=f"t/train/{i}", text=text) for i, text in enumerate(TEXTS)]
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
MODELS = {
    "llama": lambda how: LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation=how)),
    "gpt2": lambda how: GPT2LMHeadModel(
        GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=64, attn_implementation=how)
    ),
    "mistral": lambda how: MistralForCausalLM(
        MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=5, attn_implementation=how)
    ),
}


def model_of(name, how="sdpa"):
    torch.manual_seed(0)
    model = MODELS[name](how).eval()
    model.config.use_cache = False
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(12)
    return model


def blocks_of(size, documents=DOCUMENTS):
    return packed(documents, byte_codec().document, size)


def pieces_of(block):
    tokens, starts = block.extra["tokens"].tolist(), [*block.extra["starts"].tolist(), None]
    return [tokens[a:b] for a, b in pairwise(starts)]


# packing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 7, 16, 33, 500])
def test_every_token_but_a_documents_first_is_a_target_once(size):
    codec = byte_codec()
    whole = [codec.document(e) for e in DOCUMENTS]
    assert whole[0] == [256, *b"ab", 257]
    blocks = blocks_of(size)
    pieces = [piece for block in blocks for piece in pieces_of(block)]
    rebuilt = []
    for piece in pieces:  # a piece that does not begin a document begins with the last token of the one before
        assert len(piece) > 1
        if piece[0] == 256:
            rebuilt.append(list(piece))
        else:
            assert piece[0] == rebuilt[-1][-1]
            rebuilt[-1] += piece[1:]
    assert rebuilt == whole
    batch = codec.batch(blocks)
    assert batch.counts()["tokens"] == sum(len(ids) - 1 for ids in whole)
    assert all(len(b.extra["tokens"]) in (size, size - 1) for b in blocks[:-1])
    assert len({b.id for b in blocks}) == len(blocks)


def test_a_block_by_hand():
    first, second = packed(DOCUMENTS[:1] * 2 + DOCUMENTS[3:4], byte_codec().document, 7)
    assert first.id == "t/train/0:0"
    assert first.extra["tokens"].tolist() == [256, 97, 98, 257, 256, 97, 98]
    assert first.extra["starts"].tolist() == [0, 4]
    assert second.id == "t/train/0:2"  # goes on with the last token of the piece before
    assert second.extra["tokens"].tolist() == [98, 257, 256, 120, 257]
    batch = byte_codec().batch([first, second])
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 0, 1]]
    assert batch.labels.tolist() == [
        [IGNORE, 97, 98, 257, IGNORE, 97, 98],
        [IGNORE, 257, IGNORE, 120, 257, IGNORE, IGNORE],
    ]
    assert batch.lengths.tolist() == [7, 5]
    aside = byte_codec().batch([first, replace(second, source="aside")])
    assert torch.equal(aside.targets, batch.labels)
    assert aside.labels.tolist() == [batch.labels[0].tolist(), [IGNORE] * 7]
    part = batch.rows([1])
    assert part.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert part.labels.shape == (1, 5)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_the_logits_of_a_packed_row_are_those_of_its_pieces_alone(name, how):
    model = model_of(name, how)
    check_apart(model, "lm")
    blocks = blocks_of(33)
    assert max(len(pieces_of(b)) for b in blocks) > 2
    batch = byte_codec().batch(blocks)  # the last row is padded
    logits = model(**batch.inputs).logits
    for row, block in zip(logits, blocks, strict=True):
        alone = [model(input_ids=torch.tensor([piece])).logits[0] for piece in pieces_of(block)]
        together = torch.cat(alone)
        torch.testing.assert_close(row[: len(together)], together, rtol=1e-4, atol=1e-4)
    seen = model(input_ids=batch.inputs["input_ids"]).logits
    assert (seen - logits)[0].abs().max() > 0.1  # a model that is not told sees across


def test_a_conversation_and_a_block_share_a_batch():
    from pieces import ask

    model, codec, question = tiny_model(), byte_codec(), ask("what is it?", "a text")
    block = blocks_of(16)[0]
    both = model(**codec.batch([question, block]).inputs).logits
    alone = codec.batch([question])
    torch.testing.assert_close(both[0, : alone.labels.shape[1]], model(**alone.inputs).logits[0], rtol=1e-4, atol=1e-4)
    again = codec.batch([question, block]).labels[0, : alone.labels.shape[1]]
    assert torch.equal(again, alone.labels[0])


class Across(torch.nn.Module):
    """A model that hears of positions and does not listen."""

    def __init__(self, inner, heard=True):
        super().__init__()
        self.inner, self.heard, self.dtype = inner, heard, inner.dtype
        self.get_input_embeddings = inner.get_input_embeddings

    def forward(self, input_ids, **rest):
        if rest and not self.heard:
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
        return self.inner(input_ids=input_ids)


def test_a_model_that_sees_across_documents_is_refused():
    with pytest.raises(UserError, match="sees from one piece into the next"):
        check_apart(Across(model_of("llama")), "lm")
    with pytest.raises(UserError, match="takes no position_ids"):
        check_apart(Across(model_of("llama"), heard=False), "lm")


# windows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 3, 5, 6, 100])
def test_windows_hold_every_token_but_the_first_once(width):
    ids = list(range(11))
    found = list(windows(ids, width))
    assert [token for window in found for token in window[1:]] == ids[1:]
    assert all(len(w) <= width for w in found)
    assert all(a[-1] == b[0] for a, b in pairwise(found))


def test_a_document_that_is_shown_is_marked():
    codec = byte_codec(max_prompt_length=6)
    assert codec.shown(DOCUMENTS[0]) == "<s>⟦ab</s>⟧"
    assert codec.shown(DOCUMENTS[1]) == "<s>⟦a som⟧ and 56 more tokens"
    assert codec.length(DOCUMENTS[1]) == 6
    assert codec.prompts(DOCUMENTS[1:2]).inputs["input_ids"].tolist() == [[256, *b"a som"]]
    with pytest.raises(UserError, match="has 62 tokens, a row 6; objective lm cuts documents"):
        codec.batch(DOCUMENTS[1:2])
    with pytest.raises(UserError, match="t/train/0: is a document, which has neither a question nor an answer"):
        codec.ids(DOCUMENTS[0])
