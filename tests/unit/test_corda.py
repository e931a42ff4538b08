"""CorDA: an adapter that begins with what its task's own examples make of the model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from pieces import ask, byte_codec, task_view, tiny_model, weights_of
from tiny import TINY, stopped_and_the_same, tiny_run_config

import cl_toolkit as cl
from cl_toolkit.config.build import adapter_of
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters, beginnings
from cl_toolkit.models.beginnings import passed

# PEFT 0.21 reads a deprecated attribute of transformers 5
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
EXAMPLES = [ask(q, q[::-1]) for q in ("ab", "cde", "fghi", "j")]
OTHERS = [ask(q, q) for q in ("XYZ", "12", "..")]
CORDA = {"type": "corda", "r": 2}


def begun(examples=EXAMPLES, **section):
    model = tiny_model()
    through = lambda: passed(model, task_view(examples))  # noqa: E731
    return adapters.begin_task(model, adapter_of({**CORDA, **section}, "here"), 0, 0, through)


def logits(model):
    with torch.no_grad():
        return model.eval()(**byte_codec().batch(EXAMPLES).inputs).logits


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_it_begins_where_peft_begins(method):
    settings = CordaConfig(corda_method=method)
    config = LoraConfig(
        r=2, lora_alpha=16, target_modules=["q_proj", "up_proj"], init_lora_weights="corda", corda_config=settings
    )
    model, view = tiny_model(), task_view(EXAMPLES)

    def every_example():
        for example in EXAMPLES:
            model(**view.encode([example], model).inputs)

    preprocess_corda(model, config, every_example)
    theirs = get_peft_model(model, config, adapter_name="task0")
    mine = begun(corda_config={"corda_method": method}, target_modules=["q_proj", "up_proj"])
    assert (mine.state_dict().keys()) == theirs.state_dict().keys()
    assert all(torch.allclose(w, theirs.state_dict()[n], atol=1e-5) for n, w in mine.state_dict().items())


def test_the_model_says_what_it_has_said():
    start, mine = tiny_model(), begun()
    before, after = logits(start), logits(mine)
    assert (after - before).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    plain = adapters.begin_task(tiny_model(), adapter_of({"r": 2}, "here"), 0, 0)
    for (name, a, b, _), (other, its_a, its_b, _) in zip(adapters.pairs(mine), adapters.pairs(plain), strict=True):
        assert name == other
        assert b.any()
        assert not its_b.any()
        assert not torch.allclose(a, its_a)
    assert not [m for m in mine.modules() if hasattr(m, "eigens") or hasattr(m, "covariance_matrix")]


def test_it_goes_by_the_examples_and_the_seed():
    one, again, other = (weights_of(begun(examples)) for examples in (EXAMPLES, EXAMPLES, OTHERS))
    assert all(torch.equal(one[name], again[name]) for name in one)
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {n for n in one if "lora" in n or "base_layer" in n}


def test_without_examples_it_is_the_structure():
    adapter = adapter_of(CORDA, "here")
    model = adapters.begin_task(tiny_model(), adapter, 0, 0)
    assert model.state_dict().keys() == begun().state_dict().keys()
    assert torch.equal(logits(model), logits(tiny_model()))


@pytest.mark.parametrize("life", ["continue", "merge"])
def test_a_run_that_is_stopped_goes_on(tmp_path, life, monkeypatch):
    monkeypatch.setattr(beginnings, "EXAMPLES", 8)
    changes = {"model": {**TINY, "adapter": {**CORDA, "between_tasks": life}}}
    again = stopped_and_the_same(tmp_path, **changes)
    model, _ = cl.load_model(tmp_path / "stopped")
    assert torch.equal(logits(model), logits(again.run.model))


def test_what_would_stand_for_the_examples_is_refused():
    section = {**CORDA, "corda_config": {"cache_file": "x.pt"}}
    with pytest.raises(UserError, match=r"model.adapter.corda_config: cache_file: a file .*; leave it out"):
        tiny_run_config(model={**TINY, "adapter": section})
    with pytest.raises(UserError, match=r"between_tasks: stack: .* it changes the base model where it begins"):
        tiny_run_config(model={**TINY, "adapter": {**CORDA, "between_tasks": "stack"}})
