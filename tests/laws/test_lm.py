"""The laws for strategies on documents."""

import pytest

from cl_toolkit.check.law import judge
from cl_toolkit.check.laws import LAWS
from cl_toolkit.check.suites import find_subject


@pytest.fixture(scope="module", params=["replay", "ewc", "lwf", "der", "derpp", "agem", "logit_swap"])
def subject(request):
    _, found = find_subject(request.param)
    found.objective = {"name": "lm", "block_size": 64}
    yield found
    found.close()


@pytest.mark.parametrize("number", [1, 2, 6, 9])
def test_law_when_documents_are_learned(subject, number):
    result = judge(LAWS[number], subject)
    assert result.passed is not False, result.seen
