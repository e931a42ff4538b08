"""SD-LoRA: magnitudes and directions by hand, and that of the past nothing but its magnitudes is trained."""

import pytest
import torch
from pieces import ask, configured, equal, task_view, tiny_model, train, weights_of

from cl_toolkit.models import adapters
from cl_toolkit.models.magnitudes import Magnitude
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.sd_lora import SDLoRA

STACK = Adapter(r=2, lora_alpha=4, between_tasks="stack")
TASKS = [[ask("ab", "c"), ask("zx", "y")], [ask("xyz", "w"), ask("b", "a")], [ask("q", "r"), ask("rs", "t")]]


def learned(made, number):
    """The model after so many tasks."""
    model = tiny_model()
    for index, examples in enumerate(TASKS[:number]):
        model = adapters.begin_task(model, STACK, index, 0)
        model = train(model, task_view(examples, index=index, max_steps=4), made, learning_rate=1e-2)
    return model


def strategy(**settings):
    return SDLoRA(configured(SDLoRA, **settings))


def logits(model):
    view = task_view(TASKS[0])
    with torch.no_grad():
        return view.forward(model.eval(), view.encode(TASKS[0], model)).logits


def test_a_matrix_by_hand():
    """|A| = 2, |B| = 5: magnitude 10."""
    a, b = torch.ones(2, 2), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    magnitude, direction = Magnitude(a).right_inverse(b)
    assert magnitude.tolist() == [10.0]
    assert torch.allclose(direction, torch.tensor([[0.3, 0.0], [0.0, 0.4]]))
    assert torch.allclose(Magnitude(a)(magnitude / 2, direction), b / 2)


@pytest.mark.parametrize(("a", "b"), [(torch.zeros(2, 2), torch.eye(2)), (torch.eye(2), torch.zeros(2, 2))])
def test_what_adds_nothing_has_no_direction(a, b):
    magnitude, direction = Magnitude(a).right_inverse(b)
    assert magnitude.item() == 0 == direction.abs().max()


def test_one_task_is_plain_lora():
    assert equal(weights_of(learned(strategy(), 1)), weights_of(learned(None, 1)))


def test_switched_off_it_is_a_stack():
    assert equal(weights_of(learned(strategy(rescale=False), 3)), weights_of(learned(None, 3)))


def test_a_task_begins_with_the_model_that_there_was():
    model, made = learned(strategy(), 2), strategy()
    before = logits(model)
    model = made.build(adapters.begin_task(model, STACK, 2, 0), 2)
    assert (logits(model) - before).abs().max() < 1e-5 * before.abs().max()
    for name, weight in model.named_parameters():
        assert weight.requires_grad == (".task2." in name or name.endswith("original0"))
    for _, layer in adapters.layers(model):
        for name in ("task0", "task1"):
            a, d = layer.lora_A[name].weight, layer.lora_B[name].parametrizations.weight.original1
            assert torch.allclose(a.norm() * d.norm(), torch.tensor(1.0))


def test_of_past_tasks_only_magnitudes_move():
    """And each of them does, in both of the later tasks."""
    made, model = strategy(), learned(None, 1)
    for index in (1, 2):
        model = made.build(adapters.begin_task(model, STACK, index, 0), index)
        before = weights_of(model)
        train(model, task_view(TASKS[index], index=index, max_steps=4), made, learning_rate=1e-2)
        moved = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
        assert moved == {n for n in before if f".task{index}." in n or n.endswith("original0")}


def test_the_gradient_of_a_magnitude_is_that_along_its_direction():
    """d L / d alpha = <d L / d W, scaling B A / (|A| |B|)>, W the layer's own weight."""
    made = strategy()
    model = made.build(adapters.begin_task(learned(None, 1), STACK, 1, 0), 1)
    view = task_view(TASKS[1], index=1)
    for weight in model.parameters():
        weight.requires_grad_(True)
    view.forward(model, view.encode(TASKS[1], model)).loss.backward()
    for _, layer in adapters.layers(model):
        b = layer.lora_B["task0"].parametrizations.weight
        direction = layer.scaling["task0"] * b.original1 @ layer.lora_A["task0"].weight
        wanted = (layer.get_base_layer().weight.grad * direction).sum()
        assert torch.allclose(b.original0.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("put", ["merged", "joined"])
def test_it_can_be_merged_and_exported(put):
    model = learned(strategy(), 3)
    before = logits(model)
    if put == "merged":
        model = adapters.merged(model)
        assert not [name for name, _ in model.named_parameters() if "lora" in name]
    else:
        adapters.join(model)
        assert adapters.active(model) == ["joined"]
    assert (logits(model) - before).abs().max() < 1e-5 * before.abs().max()
