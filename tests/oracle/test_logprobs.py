"""log p of tokens, by hand."""

import math

import pytest
import torch

from cl_toolkit.models.logits import drawn, token_logprobs
from cl_toolkit.types import IGNORE

LOGITS = torch.tensor([[[0.0, math.log(3)], [math.log(7), 0.0], [5.0, 5.0]]])  # p = (1/4, 3/4), (7/8, 1/8), (1/2, 1/2)


def test_log_p_of_each_target_by_the_logits_before_it():
    found = token_logprobs(LOGITS, torch.tensor([[0, 1, 0]]))
    assert found.tolist() == [pytest.approx([math.log(3 / 4), math.log(7 / 8)])]
    assert token_logprobs(LOGITS, torch.tensor([[0, IGNORE, 1]])).tolist() == [pytest.approx([0, math.log(1 / 8)])]


@pytest.mark.parametrize(("temperature", "p"), [(0.5, 9 / 10), (1.0, 3 / 4), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))])
def test_a_temperature_divides_the_logits(temperature, p):
    """Odds of 3 become 9 at a half and the root of 3 at two."""
    found = token_logprobs(LOGITS, torch.tensor([[IGNORE, 1, IGNORE]]), temperature)
    assert found[0].tolist() == pytest.approx([math.log(p), 0])


def test_a_uniform_number_picks_by_the_cumulated_distribution():
    """p = (1/4, 3/4): below 1/4 the first, from there on the second."""
    logits = torch.tensor([[0.0, math.log(3)]] * 4)
    assert drawn(logits, torch.tensor([0.2, 0.9, 0.3, 0.0])).tolist() == [0, 1, 1, 0]
    assert drawn(logits[:2] / 0.5, torch.tensor([0.2, 0.05])).tolist() == [1, 0]  # p = (1/10, 9/10)
    assert drawn(logits[:1].bfloat16(), torch.tensor([1 - 2**-24])).tolist() == [1]  # never beyond the last
