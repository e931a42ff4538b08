"""Rollouts: what is drawn depends on the seed, the task and the place alone, and follows the softmax."""

from collections import Counter

import pytest
import torch
from pieces import byte_codec, tiny_model
from rewarded import QUESTIONS, rft, view

from cl_toolkit.models.logits import drawn


def test_rollouts_depend_on_neither_the_other_rows_nor_the_batch_size():
    model = tiny_model()

    def sampled(groups):
        found = {}
        for group in groups:
            objective = rft()
            task = view(objective)
            found.update(zip([e.id for e in group], objective.sample(model, task, group), strict=True))
        return found

    whole = sampled([QUESTIONS])
    assert len({tuple(a) for rows in whole.values() for a in rows}) > len(QUESTIONS)
    assert sampled([QUESTIONS[:3], QUESTIONS[3:]]) == whole
    assert sampled([[e] for e in reversed(QUESTIONS)]) == whole


def test_another_step_task_or_seed_samples_anew_and_the_same_again():
    model, objective = tiny_model(), rft()
    task = view(objective)
    first = objective.sample(model, task, QUESTIONS)
    assert objective.sample(model, task, QUESTIONS) != first  # the next step
    again = rft()
    assert again.sample(model, view(again), QUESTIONS) == first
    for changes in ({"index": 1}, {"seeds": {"rollout": 4}}):
        other = rft()
        assert other.sample(model, view(other, **changes), QUESTIONS) != first


def test_what_a_strategy_encodes_does_not_change_what_is_sampled_for_training():
    model, objective = tiny_model(), rft()
    task, other = view(objective), view(objective)
    other.encode(QUESTIONS[:2], model)  # a reference gradient, say
    plain, beside = (objective.encode(model, t, QUESTIONS) for t in (task, other))
    assert torch.equal(plain.inputs["input_ids"], beside.inputs["input_ids"])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_follow_the_softmax(temperature):
    logits, rows = torch.tensor([1.0, 0.0, -1.0, -torch.inf, 2.0]), 40_000
    uniforms = torch.rand(rows, generator=torch.Generator().manual_seed(5))
    chosen = drawn(logits.expand(rows, -1) / temperature, uniforms)
    expected = torch.softmax(logits / temperature, 0) * rows
    counts = torch.bincount(chosen, minlength=5).float()
    assert counts[3] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 16.3  # 0.999 quantile at three degrees of freedom
    wrong = torch.softmax(logits / (temperature * 1.1), 0) * rows
    assert ((counts - wrong)[possible] ** 2 / wrong[possible]).sum() > 16.3, "the test can tell temperatures apart"


def test_sampling_through_the_model_follows_its_softmax_too():
    model, codec = tiny_model(), byte_codec()
    objective = rft(num_generations=8000, max_completion_length=1)
    task = view(objective, codec=codec)
    counts = Counter(a[0] for a in objective.sample(model, task, QUESTIONS[:1])[0])
    prompt = torch.tensor([codec.ids(QUESTIONS[0])[0]])
    with torch.no_grad():
        p = torch.softmax(model(input_ids=prompt).logits[0, -1], 0)
    distance = sum(abs(counts[token] / 8000 - p[token].item()) for token in range(len(p))) / 2
    even_odds = sum(abs(counts[token] / 8000 - 1 / len(p)) for token in range(len(p))) / 2
    assert distance < 0.1 < even_odds
