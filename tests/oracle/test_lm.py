"""Language modelling and perplexity, worked out by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pieces import Evaluator, ask, byte_codec, equal, score_of, task_view, tiny_model, train, weights_of

from cl_toolkit.models.documents import packed
from cl_toolkit.models.logits import target_logits
from cl_toolkit.strategies.der import targets_of
from cl_toolkit.strategies.objectives.lm import LM
from cl_toolkit.types import IGNORE, Example, Task

BEGIN, END = 256, 257
BIGRAMS = {(BEGIN, 97): 1 / 2, (97, 98): 1 / 4, (98, END): 1 / 8, (97, END): 1 / 4}
DOCUMENTS = tuple(Example(id=f"d{i}", text=text) for i, text in enumerate(("ab", "a")))
"""<s>ab</s> has -log2 p = 1 + 2 + 3 over three tokens, <s>a</s> 1 + 2 over two."""


class Bigrams(torch.nn.Module):
    """p(token | the one before it) by a table."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((259, 259), 1e-9))
        with torch.no_grad():
            for (before, after), p in BIGRAMS.items():
                self.weight[before, after] = p
            self.weight[:, 258] = 0
            self.weight[:, 258] = 1 - self.weight.sum(1)  # what is left goes to the padding
            self.weight.log_()

    def forward(self, input_ids, **rest):
        return SimpleNamespace(logits=self.weight[input_ids])


def view_of(size, documents=DOCUMENTS, **changes):
    return task_view(documents, LM(LM.Config(block_size=size)), **changes)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 100])
def test_the_loss_by_hand_whatever_the_blocks(size):
    view = view_of(size)
    batch = view.encode(view.examples)
    assert batch.total["tokens"] == 5
    loss = view.forward(Bigrams(), batch).loss.item()
    assert loss == pytest.approx(9 / 5 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("window", [2, 3, 100])
def test_perplexity_by_hand_whatever_the_windows(window):
    task = Task(name="t", train=(), test=DOCUMENTS, scorer="perplexity")
    codec = byte_codec(max_prompt_length=window)
    scored = Evaluator(codec, split="test", batch_size=2, max_new_tokens=1)(Bigrams(), [task])["t"]
    assert [s.score for s in scored] == [
        pytest.approx(6 * math.log(2), rel=1e-5),
        pytest.approx(3 * math.log(2), rel=1e-5),
    ]
    assert [s.weight for s in scored] == [3, 2]
    assert score_of(task, scored) == pytest.approx(
        2 ** (9 / 5), rel=1e-5
    )  # 3.48; the mean over documents would be 3.41


def test_the_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    task = Task(name="t", train=(), test=DOCUMENTS, scorer="perplexity")
    scored = Evaluator(byte_codec(), split="test", batch_size=2, max_new_tokens=1)(model, [task])["t"]
    assert score_of(task, scored) == pytest.approx(259, rel=1e-5)


LONGER = [Example(id=f"l{i}", text=text) for i, text in enumerate(("to be, or not", "that is", "the question", "x"))]


def test_neither_packing_nor_grouping_nor_padding_nor_cutting_changes_the_loss():
    """Law 13, of blocks that cut no document: what is cut off is learned with less before it."""
    model, codec, total = tiny_model(), byte_codec(), 0.0
    for example in LONGER:
        view = view_of(100, [example])
        batch = view.encode(view.examples)
        assert len(batch.examples) == 1
        total += view.forward(model, batch).loss.item() * batch.total["tokens"]
    count = sum(len(codec.document(e)) - 1 for e in LONGER)
    for groups in ([LONGER], [LONGER[::-1]], [LONGER[:1], LONGER[1:]], [LONGER[:3], LONGER[3:]]):
        view = view_of(100, LONGER)
        blocks = [block for group in groups for block in packed(group, codec.document, 100)]
        assert len(blocks) == len(groups)
        batch = view.encode(blocks)
        assert view.forward(model, batch).loss.item() == pytest.approx(total / count, rel=1e-4)
        parts = [view.forward(model, batch.rows([i])).loss.item() for i in range(len(blocks))]
        assert sum(parts) == pytest.approx(total / count, rel=1e-4)


def test_batches_epochs_and_stores_count_blocks():
    view = view_of(5, LONGER * 3, batch_size=2)
    assert {len(e.extra["tokens"]) for e in view.examples[:-1]} <= {4, 5}
    assert len(view.batches()) == -(-len(view.examples) // 2)


def test_der_matches_the_targets_of_a_block_and_no_document_begins_with_one():
    view = view_of(12, LONGER)
    block = next(e for e in view.examples if len(e.extra["starts"]) > 1)
    beside = view.codec.batch([view.examples[-1], replace(block, source="aside")])
    model = tiny_model()
    chosen, order = targets_of(beside, [1])
    tokens, found = beside.asked.labels[chosen], target_logits(model, beside)[chosen]
    assert order == [1]
    labels = view.codec.batch([block]).labels[0]
    assert tokens.tolist() == [t for t in labels.tolist() if t != IGNORE]
    assert BEGIN not in tokens
    places = (labels[1:] != IGNORE).nonzero()[:, 0]
    torch.testing.assert_close(found, model(**beside.inputs).logits[1, places], rtol=1e-5, atol=1e-5)


def test_without_a_neighbour_it_is_what_sft_learns_of_an_answer_without_a_question():
    """One document in a row, and the same text as an answer behind its beginning mark: the same steps."""
    from pieces import task_view as plain

    model, other = tiny_model(), tiny_model()
    example = Example(id="d", text="hello")
    train(model, view_of(50, [example], batch_size=1), max_steps=3, learning_rate=1e-2)
    codec = byte_codec(suffix="")
    train(other, plain([ask("", "hello")], codec=codec, batch_size=1), max_steps=3, learning_rate=1e-2)
    assert equal(weights_of(model), weights_of(other))
