"""Models as people have them in folders: loaded right, or refused in one line before anything is scored."""

import json
import shutil

import pytest
import torch
from files import call, rows, write_case
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from cl_toolkit import UserError
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.models import adapters
from cl_toolkit.models.hub import load_hub
from cl_toolkit.models.language import Backbone, LanguageModel
from cl_toolkit.models.sections import Adapter, Prompt
from cl_toolkit.models.tiny import byte_tokenizer

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
X = torch.arange(20).view(2, 10)


def save(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def llama(**changes):
    torch.manual_seed(0)
    settings = {**SHAPE, "vocab_size": 259, "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 257}
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llama"), llama())


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def hub(folder, head="lm", **settings):
    """The kind of model behind a folder."""
    return {"lm": LanguageModel, "none": Backbone}[head](name=str(folder), **settings)


def refusal(folder, **settings):
    with pytest.raises(UserError) as error:
        load_hub(hub(folder, **settings))
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(folder), "F")


def config_of(tmp_path, folder, train_rows=None, adapter=None, **model):
    model = {"name": str(folder), **model, **({"adapter": adapter} if adapter else {})}
    path = write_case(tmp_path, train_rows)
    text = path.read_text().split("model:")
    rest = text[1][text[1].index("stream:") :]
    path.write_text(f"{text[0]}model: {json.dumps(model)}\n{rest}")
    return path


def both(monkeypatch, capsys, tmp_path, path):
    """What `plan` and `run` say, which is the same; nothing is scored."""
    code, _, planned = call(monkeypatch, capsys, "plan", path)
    assert code == 2
    code, _, said = call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")
    assert code == 2
    assert said == planned
    assert not (tmp_path / "out").exists()
    return said


# the folder ----------------------------------------------------------------------------------------------------------


def test_a_pointer_is_not_the_weights(monkeypatch, capsys, tmp_path, folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer)
    assert both(monkeypatch, capsys, tmp_path, config_of(tmp_path, folder)) == (
        f"error: model.name: {folder}: cannot be loaded: model.safetensors is not the weights but a pointer to them "
        "(git lfs pull)\n"
    )
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").write_text(pointer)
    assert "tokenizer.json is not the file but a pointer to it (git lfs pull)" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(monkeypatch, capsys, tmp_path, folder, name):
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()
    said = both(monkeypatch, capsys, tmp_path, config_of(tmp_path, folder))
    assert f"its weights are pickled ({name})" in said
    assert ("use_safetensors=False).save_pretrained(" in said) == (name == "pytorch_model.bin")


@pytest.mark.parametrize("life", ["continue", "merge", "stack"])
def test_a_folder_of_an_adapter_is_refused(monkeypatch, capsys, tmp_path, whole, life):
    base = load_hub(hub(whole))[0]
    adapters.begin_task(base, Adapter(r=2), 0, 0).save_pretrained(tmp_path / "lora")
    found = next(tmp_path.glob("lora/**/adapter_config.json")).parent
    assert "holds a LoRA adapter (adapter_config.json)" in refusal(found)
    path = config_of(tmp_path, found, adapter={"r": 2, "between_tasks": life})
    assert "holds a LoRA adapter" in both(monkeypatch, capsys, tmp_path, path)


DAMAGES = {
    "cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
    "empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "other": lambda f: (f / "model.safetensors").write_text("<html>404</html>"),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "config list": lambda f: (f / "config.json").write_text("[]"),
    "config cut": lambda f: (f / "config.json").write_text("{"),
    "config unknown": lambda f: (f / "config.json").write_text('{"model_type": "nobody"}'),
    "no config": lambda f: (f / "config.json").unlink(),
    "tokenizer cut": lambda f: (f / "tokenizer.json").write_text("{"),
    "no heads": lambda f: edit(f, num_attention_heads=0),
    "index": lambda f: (
        (f / "model.safetensors").rename(f / "x.safetensors") and (f / "model.safetensors.index.json").write_text("{}")
    ),
    "shard": lambda f: (
        (f / "model.safetensors").rename(f / "x.safetensors")
        and (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    ),
}


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_loading_raises_is_one_line(capfd, folder, damage):
    DAMAGES[damage](folder)
    said = refusal(folder)
    assert said.startswith("model.name: F: ")
    assert len(said) < 400
    assert capfd.readouterr().err == ""


def test_a_revision_of_a_folder_does_nothing_and_is_refused(folder):
    assert refusal(folder, revision="v1").startswith("model.revision: 'v1' does nothing: F is a folder")


# the weights ---------------------------------------------------------------------------------------------------------


def test_more_layers_than_weights(capfd, folder):
    edit(folder, num_hidden_layers=2)
    assert "F: lacks the weights model.layers.1." in refusal(folder)
    assert capfd.readouterr().err == ""


def test_more_weights_than_layers(folder):
    edit(folder, num_hidden_layers=0)
    said = refusal(folder)
    assert "F: holds the weights model.layers.0." in said
    assert "has no place" in said


def test_a_missing_tensor_and_one_of_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "lacks the weights model.norm.weight" in refusal(folder)
    save_file({**weights, "model.norm.weight": norm[:3].clone()}, folder / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight has the shape (3,) in the folder and (16,) by config.json" in refusal(folder)


def test_weights_that_are_no_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "the weight model.norm.weight holds numbers that are not finite" in refusal(folder)


def test_a_pooler_that_is_not_there_is_zero_and_not_drawn(tmp_path):
    save(tmp_path, BertForMaskedLM(BertConfig(vocab_size=259, **SHAPE)))
    first, again = (load_hub(hub(tmp_path, head="none"))[0].state_dict() for _ in range(2))
    assert not first["pooler.dense.weight"].any()
    assert all(torch.equal(first[name], again[name]) for name in first)
    edit(tmp_path, num_hidden_layers=2)
    assert "lacks the weights encoder.layer.1." in refusal(tmp_path, head="none")


def test_weights_below_fp32_are_not_for_training(folder):
    assert "train.bf16: true" in refusal(folder, dtype="bfloat16")
    llama().to(torch.bfloat16).save_pretrained(folder)
    assert "would be trained or merged in bfloat16" in refusal(folder, dtype="auto")
    assert load_hub(hub(folder, dtype="float32"))[0].dtype is torch.float32
    model = load_hub(hub(folder, dtype="auto"), frozen=True)[0]
    assert model.dtype is torch.bfloat16


# what kind of model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "bert without a head"])
def test_an_encoder_is_no_decoder(monkeypatch, capsys, tmp_path, kind):
    torch.manual_seed(0)
    if kind == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(vocab_size=259, max_position_embeddings=66, **SHAPE))
    else:
        model = BertForMaskedLM(BertConfig(vocab_size=259, **SHAPE))
    save(tmp_path / "m", model.bert if kind == "bert without a head" else model)
    assert "is not a causal language model" in refusal(tmp_path / "m")
    path = config_of(tmp_path, tmp_path / "m")
    code, _, said = call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")
    assert code == 2
    assert "model.head: none" in said
    assert not (tmp_path / "out" / "record.json").exists()
    assert '"scored"' not in "".join(p.read_text() for p in tmp_path.glob("out/events.jsonl"))


def test_an_encoder_decoder_is_refused(monkeypatch, capsys, tmp_path):
    save(
        tmp_path / "m", T5ForConditionalGeneration(T5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=16, num_layers=1))
    )
    said = both(monkeypatch, capsys, tmp_path, config_of(tmp_path, tmp_path / "m"))
    assert "is an encoder-decoder (t5)" in said


def test_an_encoders_tokenizer_without_an_end_mark(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.sep_token = "</s>"
    save(tmp_path, BertForMaskedLM(BertConfig(vocab_size=259, **SHAPE)), tokenizer)
    assert "model.head: none" in refusal(tmp_path)
    assert load_hub(hub(tmp_path, head="none"))[1].eos_token_id == 257
    save(tmp_path / "llama", llama(), tokenizer)
    assert "no end-of-sequence token, which a language model needs" in refusal(tmp_path / "llama")


def test_an_encoder_has_places_for_what_its_table_holds_behind_the_padding(tmp_path):
    prompt = typed(Prompt, base_layer()["prompt"], "prompt", "test")
    save(tmp_path / "bert", BertForMaskedLM(BertConfig(vocab_size=259, max_position_embeddings=66, **SHAPE)))
    save(tmp_path / "roberta", RobertaForMaskedLM(RobertaConfig(vocab_size=259, max_position_embeddings=66, **SHAPE)))
    for name, places in (("bert", 66), ("roberta", 64)):
        kind = hub(tmp_path / name, head="none")
        assert kind.codec(prompt).positions == places
        model, ids = load_hub(kind)[0], torch.full((1, places), 97)
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape[1] == places


# tokens and positions ------------------------------------------------------------------------------------------------


def test_padding_has_a_row_or_another_id(monkeypatch, capsys, tmp_path, folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    different = [{"input": "q" * n, "target": "a"} for n in (3, 9, 4, 12)]
    code, _, said = call(monkeypatch, capsys, "run", config_of(tmp_path, folder, different), "--out", tmp_path / "out")
    assert code == 0, said
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(folder)
    shutil.rmtree(tmp_path / "out")
    said = both(monkeypatch, capsys, tmp_path, config_of(tmp_path, folder, different))
    assert "the tokenizer writes newword (260), the model has 259 rows" in said


def test_positions_are_looked_at_before_training(monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=259, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=257)
    )
    save(tmp_path / "m", model)
    path = config_of(tmp_path, tmp_path / "m", [{"input": "q" * 80, "target": "a"}] * 4)
    code, _, said = call(monkeypatch, capsys, "plan", path)
    assert code == 2
    assert "the model has 64 positions" in said
    assert call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")[0::2] == (code, said)


# adapters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["q_projj"], "no layer q_projj; did you mean q_proj?"),
        (["q_proj", "v_prj"], "no layer v_prj; did you mean v_proj?"),
        ("q_proj", "no layer matches 'q_proj' (a text is a pattern; names: a list)"),
        ("(", "'(' is no pattern"),
        (["self_attn"], "model.layers.0.self_attn is a LlamaAttention; expected linear layers: "),
        (["embed_tokens"], "model.embed_tokens is a Embedding; expected linear layers: "),
        ([], "is empty"),
    ],
)
def test_targets_are_looked_at_before_anything_is_scored(monkeypatch, capsys, tmp_path, whole, targets, words):
    path = config_of(tmp_path, whole, adapter={"target_modules": targets})
    said = both(monkeypatch, capsys, tmp_path, path)
    assert said.startswith("error: model.adapter.target_modules: ")
    assert words in said


def moved(model):
    """An adapter that does something."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=draw))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("target", ["q_proj", "down_proj", "lm_head"])
@pytest.mark.parametrize("tied", [True, False])
def test_merging_keeps_the_function_or_is_refused(tmp_path, target, tied):
    save(tmp_path, llama(tie_word_embeddings=tied))
    adapter = Adapter(r=4, target_modules=(target,), between_tasks="merge")
    model = load_hub(hub(tmp_path))[0].eval()
    if tied and target == "lm_head":
        with pytest.raises(UserError, match=r"lm_head shares its weight with model.embed_tokens"):
            adapters.begin_task(model, adapter, 0, 0)
        return
    start = model(input_ids=X).logits
    model = moved(adapters.begin_task(model, adapter, 0, 0))
    before = model(input_ids=X).logits
    merged, error = adapters.merged_with_error(model, adapter, {"input_ids": X})
    assert error == float((merged(input_ids=X).logits - before).abs().max()) < 1e-4
    assert (before - start).abs().max() > max(1e-4, 100 * error)


@pytest.mark.parametrize("life", ["continue", "merge", "stack"])
def test_gpt2_learns_by_adapters_without_a_warning(recwarn, life):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=64, n_embd=16, n_layer=1, n_head=2)).eval()
    adapter = Adapter(r=2, between_tasks=life)
    for index in range(2):
        before = model(input_ids=X).logits
        model = adapters.begin_task(model, adapter, index, 0).eval()
        assert torch.allclose(model(input_ids=X).logits, before, atol=1e-6)
        before = moved(model)(input_ids=X).logits
        model = adapters.end_task(model, adapter).eval()
        assert torch.allclose(model(input_ids=X).logits, before, atol=1e-4)
    assert not [str(w.message) for w in recwarn if "fan_in_fan_out" in str(w.message)]


def test_the_record_holds_the_error_of_each_merge(tmp_path, whole):
    from cl_toolkit.api import run

    for life in ("merge", "continue"):
        record = run(config_of(tmp_path, whole, rows(), {"between_tasks": life}), out=tmp_path / life)
        (entry,) = record["adapters"]
        assert entry["merge_error"] is None if life == "continue" else 0 <= entry["merge_error"] < 1e-4


def test_a_loaded_encoder_makes_its_features(tmp_path):
    save(tmp_path, BertForMaskedLM(BertConfig(vocab_size=259, **SHAPE)))
    mine, theirs = load_hub(hub(tmp_path, head="none"))[0], AutoModel.from_pretrained(tmp_path)
    assert torch.equal(mine.eval()(X).last_hidden_state, theirs.eval()(X).last_hidden_state)
