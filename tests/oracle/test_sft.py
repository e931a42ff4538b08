"""SFT against a cross-entropy written out by hand; how a batch is cut changes nothing."""

import math

import pytest
import torch
from pieces import array_view, ask, byte_codec, equal, points, task_view, tiny_model, train, weights_of
from tiny import trajectory

from cl_toolkit.models.arrays import MLP
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategies.replay import Replay

EXAMPLES = [ask(f"question {i}" * (1 + i % 3), "x" * (1 + 5 * i % 7), identity=str(i)) for i in range(8)]


def by_hand(model, codec, examples):
    """(sum of -log p over answer tokens with the end mark, number of them), one example and one token at a time."""
    total, count = 0.0, 0
    for example in examples:
        prompt = codec.tokenizer.encode(example.messages[0].content + "\n", add_special_tokens=False)
        text = [codec.bos, *prompt]
        for token in [*example.target.encode(), codec.eos]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([text])).logits[0, -1].double()
            total -= (logits[token] - torch.logsumexp(logits, 0)).item()
            text.append(token)
            count += 1
    return total, count


def test_the_loss_is_the_mean_over_answer_tokens():
    model, task = tiny_model(), task_view(EXAMPLES)
    total, count = by_hand(model, task.codec, EXAMPLES)
    batch = task.encode(EXAMPLES)
    assert batch.total["tokens"] == count == sum(len(e.target) + 1 for e in EXAMPLES)
    assert batch.total["sequences"] == 8
    assert task.forward(model, batch).loss.item() == pytest.approx(total / count, rel=1e-5)


def test_a_mean_of_means_would_be_something_else():
    model, codec = tiny_model(), byte_codec()
    means = [total / count for total, count in (by_hand(model, codec, [e]) for e in EXAMPLES)]
    total, count = by_hand(model, codec, EXAMPLES)
    assert abs(sum(means) / len(means) - total / count) > 1e-3


def losses_and_weights(size, strategy=None, clip=1.0):
    model, losses = tiny_model(), []
    train(model, task_view(EXAMPLES, epochs=4), strategy, lambda s: losses.append(s.losses["sft"]),
          per_device_train_batch_size=size, learning_rate=1e-3, max_grad_norm=clip)  # fmt: skip
    return losses, weights_of(model)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_micro_batches_follow_the_whole_batch(size):
    """Sums over counts of the whole step; with clipping too, which would show a gradient of another size."""
    whole, weights = losses_and_weights(None, clip=0.1)
    parts, other = losses_and_weights(size, clip=0.1)
    assert len(whole) == 8
    assert whole[0] != whole[-1]
    assert parts == pytest.approx(whole, abs=1e-5, rel=1e-6)
    for name, weight in weights.items():
        assert torch.allclose(other[name], weight, atol=1e-5)


def test_a_micro_batch_as_large_as_the_batch_is_the_batch():
    whole, weights = losses_and_weights(None)
    parts, other = losses_and_weights(4)
    assert parts == whole
    assert equal(other, weights)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_of_rehearsal_follow_the_whole_batch(size):
    def rehearsing():
        strategy = Replay(Replay.Config(replay_fraction=0.4))
        strategy.after_task(None, task_view([ask("old", "y" * n, identity=f"o{n}") for n in (1, 9, 30)], index=-1))
        return strategy

    whole, _ = losses_and_weights(None, rehearsing())
    parts, _ = losses_and_weights(size, rehearsing())
    alone, _ = losses_and_weights(None)
    assert parts == pytest.approx(whole, abs=1e-5, rel=1e-6)
    assert whole != alone


def test_an_empty_part_has_no_loss_and_a_gradient_of_zero():
    model, task = tiny_model(), task_view(EXAMPLES)
    empty = task.encode(EXAMPLES).rows(())
    assert [e.source for e in empty.examples] == ["filler"]
    assert set(empty.counts().values()) == {0.0}
    loss = task.forward(model, empty).loss
    assert loss.item() == 0.0
    assert not any(g.any() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_counts_by_source():
    from dataclasses import replace

    rows = [EXAMPLES[0], replace(EXAMPLES[1], source="memory"), replace(EXAMPLES[2], source="filler")]
    counts = SFT().encode(None, task_view(EXAMPLES), rows).counts()
    first, second = (len(e.target) + 1 for e in EXAMPLES[:2])
    assert counts == {"tokens": first + second, "sequences": 2, "memory": 1, "memory_tokens": second, "aside": 0}


def test_parts_drop_columns_that_are_padding_in_all_rows():
    batch = task_view(EXAMPLES).encode(EXAMPLES)
    for i in range(len(EXAMPLES)):
        part = batch.rows([i])
        assert part.inputs["attention_mask"].all()
        width = part.inputs["input_ids"].shape[1]
        assert part.labels.shape == (1, width)
        assert torch.equal(part.inputs["input_ids"][0], batch.inputs["input_ids"][i, :width])


def test_an_untrained_model_without_weights_is_at_chance():
    model, task = tiny_model(), task_view(EXAMPLES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert task.forward(model, task.encode(EXAMPLES)).loss.item() == pytest.approx(math.log(259), rel=1e-6)


@pytest.mark.parametrize("view", ["joint", "cumulative", "independent"])
def test_with_one_task_every_view_is_sequential_training(view, tmp_path):
    plain = trajectory(tmp_path / "a", stream={"tasks": ["max"]})
    other = trajectory(tmp_path / "b", stream={"tasks": ["max"], "view": view})
    assert other.losses == plain.losses
    assert other.weights == plain.weights
    assert other.record["matrix"][1] == plain.record["matrix"][1]


def test_a_step_of_one_target_is_divided_by_one():
    view, example = array_view(points(1)), points(1)[0]
    model = MLP(input_size=4, hidden_size=8, num_classes=3).load(0)
    logits = model(x=example.x[None]).logits.detach()
    wanted = float(torch.logsumexp(logits[0], 0) - logits[0, example.y])
    assert view.forward(model, view.encode([example])).loss.item() == pytest.approx(wanted, rel=1e-5)
