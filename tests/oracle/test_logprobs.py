"""log p of tokens, by hand."""

import math
from unittest import mock

import pytest
import torch

from cl_toolkit.models import logits as module
from cl_toolkit.models.logits import by_rows, drawn, logprobs

LOGITS = torch.tensor([[0.0, math.log(3)], [math.log(7), 0.0], [5.0, 5.0]])  # p = (1/4, 3/4), (7/8, 1/8), (1/2, 1/2)


def test_log_p_of_each_label_by_its_logits():
    found = logprobs(LOGITS, torch.tensor([1, 0, 1]))
    assert found.tolist() == pytest.approx([math.log(3 / 4), math.log(7 / 8), math.log(1 / 2)])
    assert logprobs(LOGITS.bfloat16(), torch.tensor([1, 0, 1])).dtype == torch.float32


def test_by_rows_is_the_same_in_parts_and_keeps_none_of_what_is_wide():
    logits, labels = torch.randn(7, 5, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    whole = logprobs(logits, labels)
    (wanted,) = torch.autograd.grad(whole.sum(), logits)
    seen = []

    def watched(logits, labels):
        seen.append(len(labels))
        return logprobs(logits, labels)

    with mock.patch.object(module, "CHUNK", 10):  # two rows of five
        parts = by_rows(watched, 5, logits, labels)
        (found,) = torch.autograd.grad(parts.sum(), logits)
    assert torch.equal(parts, whole)
    assert torch.equal(found, wanted)
    assert seen[:4] == [2, 2, 2, 1]
    assert sorted(seen[4:]) == [1, 2, 2, 2]  # made again in the backward


@pytest.mark.parametrize(("temperature", "p"), [(0.5, 9 / 10), (1.0, 3 / 4), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))])
def test_a_temperature_divides_the_logits(temperature, p):
    """Odds of 3 become 9 at a half and the root of 3 at two."""
    assert logprobs(LOGITS[:1], torch.tensor([1]), temperature).tolist() == pytest.approx([math.log(p)])


def test_a_uniform_number_picks_by_the_cumulated_distribution():
    """p = (1/4, 3/4): below 1/4 the first, from there on the second."""
    logits = torch.tensor([[0.0, math.log(3)]] * 4)
    assert drawn(logits, torch.tensor([0.2, 0.9, 0.3, 0.0])).tolist() == [0, 1, 1, 0]
    assert drawn(logits[:2] / 0.5, torch.tensor([0.2, 0.05])).tolist() == [1, 0]  # p = (1/10, 9/10)
    assert drawn(logits[:1].bfloat16(), torch.tensor([1 - 2**-24])).tolist() == [1]  # never beyond the last
