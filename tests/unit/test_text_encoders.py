"""Encoders of text as features: padding, adapters, folders."""

import pytest
import torch
from pieces import ask, byte_codec, contrastive, task_view, tiny_model
from tiny import Trajectory, stopped_and_resumed, tiny_config, tiny_run_config, trajectory

from cl_toolkit import UserError
from cl_toolkit.models.adapters import begin_task, end_task, layers
from cl_toolkit.models.sections import Adapter
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run

SUPCON = {"name": "supcon", "projection_size": 8, "hidden_size": 16}


def text_encoder():
    supcon = contrastive()
    return supcon, supcon.equip(tiny_model(), 0)


def test_features_of_text_do_not_depend_on_padding():
    _, model = text_encoder()
    codec = byte_codec()
    alone = model(**codec.prompts([ask("ab", "x")]).inputs)
    beside = model(**codec.prompts([ask("ab", "x"), ask("a long question", "y")]).inputs)
    torch.testing.assert_close(alone.features[0], beside.features[0], rtol=1e-4, atol=1e-5)
    hidden = model.backbone(**codec.prompts([ask("ab", "x")]).inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(alone.features, hidden.mean(1))


def test_the_answer_is_not_a_part_of_what_an_encoder_sees():
    codec = byte_codec()
    assert torch.equal(
        codec.prompts([ask("ab", "x")]).inputs["input_ids"], codec.prompts([ask("ab", "yz")]).inputs["input_ids"]
    )


@pytest.mark.parametrize("between", ["continue", "merge", "stack"])
def test_an_encoders_adapter_sits_on_its_backbone(between):
    supcon, model = text_encoder()
    adapter = Adapter(r=2, between_tasks=between)
    view = task_view([ask("ab", "x"), ask("cd", "y")], supcon)
    supcon.before_task(model, view)
    before = model(**view.codec.prompts(view.examples).inputs).features
    model = begin_task(model, adapter, 0, 0)
    names = [name for name, _ in layers(model)]
    assert names
    assert all(name.startswith("backbone.model.layers.") for name in names)
    torch.testing.assert_close(model(**view.codec.prompts(view.examples).inputs).features, before)
    model = end_task(model, adapter)
    model = begin_task(model, adapter, 1, 0)
    assert [name for name, _ in layers(model)] == names
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(".lora_" in n for n in trained if n.startswith("backbone."))
    assert any(n.startswith("prototypes.") for n in trained)


@pytest.mark.parametrize("between", ["continue", "merge", "stack"])
def test_an_encoder_with_an_adapter_learns_on_and_resumes(between, tmp_path):
    model = {**tiny_config()["model"], "adapter": {"r": 2, "between_tasks": between}}
    changes = {"objective": SUPCON, "strategies": {"prototype_distill": {}}, "model": model}
    whole = trajectory(tmp_path / "a", **changes)
    config = tiny_run_config(**changes)
    again = stopped_and_resumed(config, tmp_path / "b", 0)
    assert comparable(again.record) == comparable(whole.record)
    assert again.weights == whole.weights


def test_a_text_encoder_from_a_folder(tmp_path):
    from transformers import BertConfig, BertModel

    from cl_toolkit.models.tiny import byte_tokenizer

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=259, **shape)).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    plain = tiny_config(objective=SUPCON, strategies={"prototype_distill": {}})
    plain["model"] = {"name": str(tmp_path / "bert"), "head": "none"}
    from cl_toolkit.study.cells import load_run

    found = Trajectory(Run(load_run(plain), tmp_path / "run", None))
    assert found.record["status"] == "finished"
    assert found.losses[-1]["supcon"] > 0
    assert "prototype_distill" in found.losses[-1]
    plain["objective"], plain["strategies"] = {"name": "sft"}, {}
    with pytest.raises(
        UserError,
        match=r"objective.name: sft needs a model that gives outputs, .* gives hidden; with it use objective supcon",
    ):
        load_run(plain)
