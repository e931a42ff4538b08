"""Adapters: their life cycle, what is trained, names that survive merging."""

import pytest
import torch
from pieces import ask, byte_codec, equal, task_view, tiny_model, train, weights_of

from cl_toolkit.engine import access
from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter

EXAMPLES = [ask(q, q[::-1]) for q in ("ab", "cde", "fghi", "j")]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def logits(model):
    batch = byte_codec().batch(EXAMPLES)
    with torch.no_grad():
        return model.eval()(**batch.inputs).logits[batch.inputs["attention_mask"].bool()]


def shaken(model):
    """Trained weights moved by a fixed amount, so that the adapters do something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def trained(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_without_an_adapter_nothing_happens():
    model = tiny_model()
    assert adapters.begin_task(model, None, 0, 0) is model
    assert adapters.end_task(model, None) is model
    assert list(adapters.pairs(model)) == []
    assert adapters.weights(model) == {}


@pytest.mark.parametrize("life", ["continue", "merge", "stack"])
def test_a_fresh_adapter_does_not_change_the_function(life):
    model = tiny_model()
    before = logits(model)
    model = adapters.begin_task(model, Adapter(r=2, between_tasks=life), 0, 0)
    assert torch.equal(logits(model), before)
    assert trained(model) == set(adapters.weights(model))


def test_merging_keeps_the_function_and_gives_the_plain_model():
    model = tiny_model()
    names = set(model.state_dict())
    start = logits(model)
    for index in range(3):
        model = shaken(adapters.begin_task(model, Adapter(r=2, between_tasks="merge"), index, 0))
        before = logits(model)
        model = adapters.end_task(model, Adapter(r=2, between_tasks="merge"))
        assert torch.allclose(logits(model), before, atol=1e-5 * float(before.abs().max()))
        assert set(model.state_dict()) == names
        assert not hasattr(model, "peft_config")
    assert not torch.allclose(logits(model), start, atol=1e-2)


def test_one_adapter_goes_on():
    adapter = Adapter(r=2)
    model = shaken(adapters.begin_task(tiny_model(), adapter, 0, 0))
    weights = weights_of(model)
    assert adapters.end_task(model, adapter) is model
    assert adapters.begin_task(model, adapter, 1, 0) is model
    assert equal(weights_of(model), weights)


def test_a_stack_trains_the_newest_and_keeps_the_others_at_work():
    adapter, model, earlier = Adapter(r=2, between_tasks="stack"), tiny_model(), {}
    base = weights_of(model)
    for index in range(3):
        before = logits(model)
        model = adapters.begin_task(model, adapter, index, 0)
        assert torch.allclose(logits(model), before, atol=1e-6)  # the frozen ones stay active, the new one starts at 0
        assert trained(model) == {n for n in adapters.weights(model) if f".task{index}." in n} != set()
        train(model, task_view(EXAMPLES), learning_rate=0.1)
        assert {n for n in adapters.weights(model) if f".task{index - 1}." in n} == set(earlier)
        assert all(torch.equal(model.state_dict()[n], w) for n, w in earlier.items())
        earlier = {n: w.clone() for n, w in adapters.weights(model).items() if f".task{index}." in n}
        assert any(w.any() for n, w in earlier.items() if ".lora_B." in n)
    for name, weight in base.items():
        assert any(torch.equal(weight, w) for n, w in model.state_dict().items() if name.split(".")[-2] in n)


@pytest.mark.parametrize("life", ["continue", "merge", "stack"])
def test_training_moves_the_adapter_alone(life):
    model = adapters.begin_task(tiny_model(), Adapter(r=2, between_tasks=life), 0, 0)
    before = weights_of(model)
    train(model, task_view(EXAMPLES, epochs=2), learning_rate=0.1)
    moved = {name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])}
    assert moved == set(adapters.weights(model))


def test_pairs_are_the_update_of_each_layer():
    adapter = Adapter(r=2, lora_alpha=6)
    model = shaken(adapters.begin_task(tiny_model(), adapter, 0, 0))
    found = {name: (a, b, scaling) for name, a, b, scaling in adapters.pairs(model)}
    assert {n.rsplit(".", 1)[1] for n in found} == set(LINEAR)
    merged = adapters.end_task(model, Adapter(between_tasks="merge"))
    plain = tiny_model()
    for name, (a, b, scaling) in found.items():
        assert scaling == 3.0
        assert a.shape[0] == b.shape[1] == 2
        # the name of a layer is the same before, with and after an adapter
        update = merged.get_submodule(name).weight - plain.get_submodule(name).weight
        assert torch.allclose(update, scaling * b @ a, atol=1e-5)


def test_pairs_of_a_stack_are_the_ones_that_are_trained():
    adapter, model = Adapter(r=2, between_tasks="stack"), tiny_model()
    for index in range(2):
        model = adapters.begin_task(model, adapter, index, 0)
        found = {id(t) for _, a, b, _ in adapters.pairs(model) for t in (a, b)}
        assert found == {id(p) for p in model.parameters() if p.requires_grad}


def test_target_modules_and_rank_are_pefts():
    model = adapters.begin_task(tiny_model(), Adapter(r=3, target_modules=("q_proj", "v_proj"), use_rslora=True), 0, 0)
    names = [name for name, *_ in adapters.pairs(model)]
    assert [n.rsplit(".", 1)[1] for n in names] == ["q_proj", "v_proj"]
    assert next(adapters.pairs(model))[3] == pytest.approx(16 / 3**0.5)


def test_fresh_weights_come_from_the_seed_and_the_index():
    def weights(index, seed):
        torch.manual_seed(index * 7 + seed)  # must not matter
        before = torch.random.get_rng_state()
        model = adapters.begin_task(tiny_model(), Adapter(r=2, between_tasks="merge"), index, seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return [w.clone() for w in adapters.weights(model).values()]

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert same(weights(0, 0), weights(0, 0))
    assert not same(weights(0, 0), weights(0, 1))
    assert not same(weights(0, 0), weights(1, 0))


@pytest.mark.parametrize("life", ["continue", "stack"])
def test_disabled_is_the_base_model_and_leaves_no_trace(life):
    adapter, model = Adapter(r=2, between_tasks=life), tiny_model()
    base = logits(model)
    for index in range(3):
        model = shaken(adapters.begin_task(model, adapter, index, 0))
    before, names, weights = logits(model), trained(model), weights_of(model)
    assert not torch.allclose(before, base, atol=1e-2)
    with adapters.disabled(model):
        assert torch.allclose(logits(model), base, atol=1e-6)
    assert torch.equal(logits(model), before)
    # PEFT would switch every active adapter on again, the frozen ones of a stack too
    assert trained(model) == names
    assert equal(weights_of(model), weights)
    with pytest.raises(RuntimeError, match="inside"), adapters.disabled(model):
        raise RuntimeError("inside")
    assert trained(model) == names
    assert torch.equal(logits(model), before)


def test_swapped_is_the_other_model_and_puts_the_same_tensors_back():
    model, other = tiny_model(0), tiny_model(1)
    before, storage = logits(model), {n: p.data_ptr() for n, p in model.named_parameters()}
    values = {n: p.detach().clone() for n, p in other.named_parameters()}
    with access.swapped(model, values):
        assert torch.equal(logits(model), logits(other))
    assert torch.equal(logits(model), before)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == storage
    with pytest.raises(KeyError), access.swapped(model, {"no such weight": torch.zeros(1)}):
        pass
