"""DER and DER++ worked out by hand, and their store."""

import pytest
import torch
from pieces import ask, byte_codec, configured, task_view, tiny_model, train

from cl_toolkit.engine.processes import Processes
from cl_toolkit.errors import UserError
from cl_toolkit.models.logits import target_logits
from cl_toolkit.strategies.der import DER, DERpp, squared_error, targets_of
from cl_toolkit.types import Batch, Outputs

OLD = [ask("ab", "c"), ask("d", "efg")]
NEW = [ask("gh", "i"), ask("jk", "lm"), ask("n", "o")]


def test_the_worked_example():
    stored, output = torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])
    assert 0.3 * squared_error(stored, output).item() / stored.numel() == pytest.approx(0.75)  # 0.3 * 2.5


@pytest.mark.parametrize("beside", ["", "a longer question"])
def test_the_targets_of_a_stored_example_are_its_answer_though_it_has_no_label(beside):
    batch = byte_codec().batch([ask(beside, "d"), ask("ab", "c", source="aside")])
    chosen, order = targets_of(batch, [1])
    assert order == [1]
    assert batch.asked.labels[chosen].tolist() == [ord("c"), 257]  # the answer and its end mark
    assert (batch.asked.places[chosen] % batch.labels.shape[1]).tolist() == [
        3,
        4,
    ]  # of <s>ab\n c</s>: the new line, the c
    assert not batch.asked.learned[chosen].any()


def learned(cls, steps=4, record=None, **settings):
    """The strategy after one task on OLD, and the model."""
    model, strategy = tiny_model(), cls(cls.Config(**settings))
    train(model, task_view(OLD, max_steps=steps, batch_size=2), strategy, record or (lambda session: None))
    return model, strategy


def test_logits_are_those_of_the_moment_of_storing():
    moments = []

    class Recording(DER):
        def loss(self, model, part, out):
            for row, example in enumerate(part.examples):
                moments.append((example.id, out.logits.detach()[part.asked.examples == row]))
            return super().loss(model, part, out)

    _, strategy = learned(Recording, top_k=3)
    assert len(strategy.store) == len(moments) == 8  # each time that an example is trained on
    for _, stored in strategy.store.items:
        top = [m.topk(3) for identity, m in moments if identity == stored.id]
        assert any(
            torch.equal(stored.extra["logits"], t.values) and torch.equal(stored.extra["entries"], t.indices)
            for t in top
        )
    first, last = (strategy.store.items[i][1].extra["logits"] for i in (0, 6))
    assert not torch.equal(first, last)


@pytest.mark.parametrize("cls", [DER, DERpp])
def test_the_terms_on_the_batch_are_what_a_forward_of_their_own_gives(cls):
    model, strategy = learned(cls, top_k=3, memory_batch_size=3, alpha=0.3)
    view = task_view(NEW, index=1)
    strategy.before_task(model, view)
    examples = strategy.batches(model, view, view.batches())[0]
    rows = [e for e in examples if e.source == "aside"]
    assert len(rows) == (3 if cls is DER else 6)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
        batch = view.encode(examples)
        out = view.forward(model, batch)
        terms = strategy.loss(model, batch, out)
        assert batch.total["sequences"] == 3
        assert out.loss.item() == pytest.approx(view.forward(model, view.encode(NEW)).loss.item(), rel=1e-4)
        errors, entropies = [], []
        for e in rows:
            alone = view.encode([ask(e.question, e.target)])
            logits, tokens = target_logits(model, alone), alone.asked.labels
            if e.extra["rehearsed"][1] == "der":
                errors.append((logits.gather(1, e.extra["entries"]) - e.extra["logits"]) ** 2)
            else:
                entropies.append(torch.nn.functional.cross_entropy(logits, tokens, reduction="none"))
    names = [strategy.name, f"{strategy.name}_ce"]
    assert terms[names[0]].item() == pytest.approx(0.3 * torch.cat(errors).mean().item(), rel=1e-3)
    assert set(terms) == set(names[: 1 if cls is DER else 2])
    if cls is DERpp:
        assert terms[names[1]].item() == pytest.approx(0.5 * torch.cat(entropies).mean().item(), rel=1e-3)


def test_beta_zero_is_der():
    losses = {}
    for cls, settings in ((DER, {}), (DERpp, {"beta": 0.0})):
        model, strategy = tiny_model(), cls(cls.Config(**settings))
        strategy.name, seen = "der", []
        for index, examples in enumerate((OLD, NEW)):
            view = task_view(examples, index=index, max_steps=3)
            train(model, view, strategy, lambda s, seen=seen: seen.append(s.losses))
        losses[cls] = seen
    assert losses[DER] == losses[DERpp]
    assert losses[DER][-1]["der"] > 0


def test_a_part_without_memory_rows_has_the_same_terms():
    model, strategy = learned(DERpp)
    view = task_view(NEW, index=1)
    strategy.before_task(model, view)
    strategy.batches(model, view, view.batches())[0]
    batch = view.encode(NEW)
    terms = strategy.loss(model, batch, view.forward(model, batch))
    assert {name: value.item() for name, value in terms.items()} == {"derpp": 0.0, "derpp_ce": 0.0}


class Half(Processes):
    """One of two processes that knows the other's offers."""

    def __init__(self, others):
        self.others = others

    def gather(self, items):
        return [*items, *self.others]


def test_the_store_does_not_depend_on_who_offers_what():
    def offers(examples):
        strategy = DER(DER.Config(buffer_size=3, top_k=2))
        strategy.before_task(None, task_view(OLD))
        batch = task_view(OLD).encode(examples)
        logits = torch.arange(len(batch.asked.labels) * 4.0).view(-1, 4)
        strategy.loss(None, batch, Outputs(loss=torch.zeros(()), logits=logits))
        return strategy

    many = [ask(f"q{i}", "a", f"id{i}") for i in range(8)]
    stores = []
    for mine, theirs in ((many, []), (many[4:], many[:4]), (many[:2], many[2:])):
        strategy = offers(mine)
        step = Half(list(offers(theirs)._offered.items()) if theirs else [])
        strategy.before_step(None, step)
        stores.append([e.id for _, e in strategy.store.items])
    assert stores[0] == stores[1] == stores[2]
    assert len(stores[0]) == 3


def test_the_buffer_is_never_above_its_size_and_counts_its_logits():
    _, strategy = learned(DER, buffer_size=3, top_k=5)
    assert len(strategy.store) == 3
    tokens = sum(len(e.target) + 1 for _, e in strategy.store.items)
    text = sum(len(e.question) + len(e.target) for _, e in strategy.store.items)
    assert strategy.store.nbytes() == text + tokens * 5 * (4 + 8)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(DER, {"alpha": -1.0}), (DERpp, {"beta": -1.0}), (DER, {"top_k": 0}), (DER, {"memory_batch_size": -1})],
)
def test_bad_settings(cls, settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(cls, **settings)


def test_a_batch_without_a_target_counts_nowhere():
    batch = task_view(OLD).encode([ask("ab", "c"), ask("d", "ef", source="aside")])
    assert isinstance(batch, Batch)
    assert batch.total == {"tokens": 2.0, "sequences": 1.0, "memory": 0.0, "memory_tokens": 0.0, "aside": 1.0}
