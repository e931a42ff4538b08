"""RegLoRA's positions and penalty, worked out by hand."""

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, weights_of

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.reg_lora import RegLoRA, largest, protected_mean

MERGE = Adapter(r=2, lora_alpha=16, between_tasks="merge")
EXAMPLES = [ask("ab", "c")]


def reg_lora(**settings):
    strategy = RegLoRA(RegLoRA.Config(**settings))
    strategy.name = "reg_lora"
    return strategy


def with_adapter(index=0, model=None, fill=True):
    model = adapters.begin_task(model or tiny_model(), MERGE, index, 0)
    if fill:
        with torch.no_grad():
            for i, (_, _, b, _) in enumerate(adapters.pairs(model)):
                b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(i)))
    return model


def test_the_worked_example():
    b, a = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, -3.0, 2.0]])
    assert (b @ a).tolist() == [[1, -3, 2], [2, -6, 4]]
    positions = largest(b @ a, 0.34)  # floor(2.04) = 2
    assert positions.tolist() == [4, 5]  # (1, 1), (1, 2)
    update = (torch.tensor([[1.0], [1.0]]) @ torch.tensor([[0.5, 1.0, -1.0]])).requires_grad_()
    value = protected_mean(update, torch.eye(3), positions)
    value.backward()
    assert value.item() == 1.0  # (|1| + |-1|) / 2
    assert update.grad.tolist() == [[0, 0, 0], [0, 0.5, -0.5]]


def test_a_list_and_a_set_of_positions_differ():
    update = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    first, second = torch.tensor([0, 1]), torch.tensor([1, 3])
    both = torch.cat([first, second])
    assert float(protected_mean(update, torch.eye(2), both)) == 2.25  # the authors' list
    assert float(protected_mean(update, torch.eye(2), torch.unique(both))) == pytest.approx(2.3333, abs=1e-4)


@pytest.mark.parametrize("duplicates", [False, True])
def test_positions_of_two_tasks_join(duplicates):
    strategy = reg_lora(share=0.1, duplicates=duplicates)
    model = with_adapter()
    strategy.after_task(model, task_view(EXAMPLES))
    first = dict(strategy.positions)
    strategy.after_task(model, task_view(EXAMPLES))
    for layer, positions in strategy.positions.items():
        assert positions.dtype == torch.int32
        assert len(positions) == len(first[layer]) * (2 if duplicates else 1)
        assert set(positions.tolist()) == set(first[layer].tolist())
    assert strategy.extra_parameters == sum(map(len, strategy.positions.values()))


def test_ties_go_to_the_first_positions():
    assert largest(torch.tensor([[1.0, -1.0], [1.0, 2.0]]), 0.5).tolist() == [3, 0]


def test_a_share_that_is_a_whole_number_of_elements_is_not_rounded_down():
    assert len(largest(torch.zeros(10, 10), 0.29)) == 29


def test_all_positions_give_the_mean_over_the_matrix_and_none_gives_no_term():
    model = with_adapter()
    for share in (0.0, 1.0):
        strategy = reg_lora(weight=3.0, share=share)
        strategy.before_task(model, task_view(EXAMPLES))
        strategy.after_task(model, task_view(EXAMPLES))
        terms = strategy.penalty(dict(model.named_parameters()))
        if share == 0:
            assert terms == {}
            continue
        # the scale alpha / r = 8 does not appear
        means = [(b @ a).abs().mean() for _, a, b, _ in adapters.pairs(model)]
        assert terms["reg_lora"].item() == pytest.approx(3.0 * sum(means).item() / len(means))


def test_a_fresh_adapter_has_no_penalty_and_no_gradient_at_positions_that_survive_the_merge():
    strategy, view = reg_lora(), task_view(EXAMPLES)
    model = with_adapter()
    strategy.before_task(model, view)
    assert strategy.penalty(dict(model.named_parameters())) == {}  # task 1
    strategy.after_task(model, view)
    model = with_adapter(1, adapters.end_task(model, MERGE), fill=False)
    strategy.before_task(model, view)
    assert set(strategy.names) == set(strategy.positions)
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    value = strategy.penalty(weights)["reg_lora"]
    assert value.item() == 0.0
    grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    assert not any(g.any() for g in grads if g is not None)


def test_merging_does_not_change_the_answers():
    model = with_adapter().eval()
    ids = torch.tensor([[65, 66, 67]])
    before = model(input_ids=ids).logits
    merged = adapters.end_task(model, MERGE)
    assert not any("lora" in name for name in weights_of(merged))
    assert torch.allclose(merged(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"share": 1.1}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(RegLoRA, **settings)
