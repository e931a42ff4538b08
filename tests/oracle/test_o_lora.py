"""O-LoRA's overlap, worked out by hand, and the stack that it works on."""

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, train, weights_of

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.o_lora import OLoRA, overlap

STACK = Adapter(r=2, lora_alpha=4, between_tasks="stack")
EXAMPLES = [ask("ab", "c"), ask("d", "ef")]


def o_lora(**settings):
    strategy = OLoRA(OLoRA.Config(**settings))
    strategy.name = "o_lora"
    return strategy


def stack(tasks):
    model = tiny_model()
    for index in range(tasks):
        model = adapters.begin_task(model, STACK, index, 0)
    return model


def test_the_worked_example():
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    assert overlap(first, second).item() == 0.5
    assert overlap(first, second, squared=True).item() == 0.25
    assert overlap(first, torch.tensor([[0.0, 3.0]])).item() == 0.0
    assert overlap(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), second).item() == 0.5 + 1.0  # summed over past rows


def test_the_penalty_sums_over_layers_and_all_past_adapters():
    model, strategy = stack(3), o_lora(weight=0.5, norm_weight=0.1)
    strategy.before_task(model, task_view(EXAMPLES, index=2))
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    terms = strategy.penalty(weights)
    expected, norms = 0.0, 0.0
    for _, layer in adapters.layers(model):
        a = {name: layer.lora_A[name].weight for name in ("task0", "task1", "task2")}
        expected += sum((a[past] @ a["task2"].T).abs().sum().item() for past in ("task0", "task1"))
        norms += a["task2"].norm().item() + layer.lora_B["task2"].weight.norm().item()
    assert terms["o_lora"].item() == pytest.approx(0.5 * expected, rel=1e-5)
    assert terms["o_lora_norm"].item() == pytest.approx(0.1 * norms, rel=1e-5)
    grads = torch.autograd.grad(sum(terms.values()), list(weights.values()))
    assert all(torch.isfinite(g).all() for g in grads)  # B is 0, where a norm has no gradient


def test_the_first_task_has_no_overlap_and_weight_zero_no_term():
    for model, strategy in ((stack(1), o_lora()), (stack(2), o_lora(weight=0.0))):
        strategy.before_task(model, task_view(EXAMPLES))
        assert strategy.penalty(dict(model.named_parameters())) == {}


def test_training_turns_the_new_rows_away_and_leaves_past_adapters_active_and_unmoved():
    overlaps = {}
    for weight in (0.0, 5.0):
        model = stack(2)
        before = weights_of(model)
        train(model, task_view(EXAMPLES, index=1, max_steps=30), o_lora(weight=weight), learning_rate=1e-2)
        after = weights_of(model)
        assert all(torch.equal(before[n], after[n]) for n in before if ".task1." not in n)
        assert all(layer.active_adapters == ["task0", "task1"] for _, layer in adapters.layers(model))
        overlaps[weight] = sum(
            overlap(past[0][0], a).item()
            for (_, past), (_, a, _, _) in zip(adapters.frozen_pairs(model), adapters.pairs(model), strict=True)
        )
    assert overlaps[5.0] < overlaps[0.0] / 3


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"norm_weight": -1.0}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(OLoRA, **settings)
