"""Quantised weights: by bitsandbytes' names where it is installed, refused in one sentence where it cannot be."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from files import call, llama_folder
from tiny import Trajectory, tiny_config
from transformers import AutoModelForCausalLM

from cl_toolkit.engine.access import evaluating
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters, hub, quantized
from cl_toolkit.models.language import LanguageModel
from cl_toolkit.models.sections import Adapter
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
real = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed here (extra gpu)")
gpu = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


def installed(monkeypatch, there):
    monkeypatch.setattr(quantized, "find_spec", lambda name: SimpleNamespace() if there else None)


def test_without_bitsandbytes_it_is_refused(monkeypatch):
    installed(monkeypatch, False)
    with pytest.raises(UserError, match=r"model.quantization: needs bitsandbytes, .*pip install 'cl-toolkit\[gpu\]'"):
        quantized.check_quantized(FOUR, frozen=True)


@pytest.mark.parametrize(("settings", "frozen", "message"), [
    (FOUR, False, r"model.quantization: quantised weights are neither trained nor merged into; use an adapter"),
    ({"load_in_4_bit": True}, True, r"model.quantization.load_in_4_bit: unknown key; did you mean 'load_in_4bit'"),
    ({**FOUR, "load_in_8bit": True}, True, r"model.quantization: load_in_4bit and load_in_8bit"),
])  # fmt: skip
def test_what_cannot_be_is_refused(settings, frozen, message, monkeypatch):
    installed(monkeypatch, True)
    with pytest.raises(UserError, match=message):
        quantized.check_quantized(settings, frozen)


def test_transformers_is_told(monkeypatch):
    class Told(Exception):
        pass

    def from_hub(cls, kind, options=None):
        if options and "use_safetensors" in options:
            raise Told(options["quantization_config"])
        return SimpleNamespace()

    installed(monkeypatch, True)
    monkeypatch.setattr(hub, "from_hub", from_hub)
    monkeypatch.setattr(LanguageModel, "check_config", lambda kind, config: None)
    with pytest.raises(Told) as told:
        hub.load_hub(LanguageModel(name="x", quantization=FOUR), frozen=True)
    assert told.value.args[0].bnb_4bit_quant_type == "nf4"
    assert told.value.args[0].load_in_4bit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama_folder(
        tmp_path_factory.mktemp("model"), shape={"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    )


@pytest.fixture
def quiet():
    """What a library says of kernels that are not there is not ours."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plain_of(model, folder):
    """The same model with weights as they are after quantisation, in fp32."""
    from bitsandbytes.functional import dequantize_4bit

    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "quant_state"):
                weight = module.weight
                plain.get_submodule(name).weight.copy_(dequantize_4bit(weight.data, weight.quant_state).cpu())
    return plain


def gradients(model, device):
    """Of an adapter's weights, after the model was asked something without gradient."""
    torch.manual_seed(0)
    model = adapters.begin_task(model, Adapter(r=4), 0, 0).to(device)
    ids = torch.arange(5, 25, device=device)[None]
    with torch.no_grad():
        draw = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=draw))
        with evaluating(model):
            model(input_ids=ids)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.requires_grad}


@real
@pytest.mark.parametrize("device", ["cpu", gpu])
def test_gradients_are_those_of_the_weights_that_it_stands_for(device, folder, quiet):
    kind = LanguageModel(name=str(folder), quantization={**FOUR, "bnb_4bit_compute_dtype": "float32"})
    model = kind.load(0, frozen=True).to(device)
    wanted = gradients(plain_of(model, folder), "cpu")
    found = gradients(model, device)
    assert len(found) == 2 * 2 * 7
    assert all(weight.any() for weight in wanted.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3)


@real
@pytest.mark.parametrize("device", ["cpu", gpu])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("between", ["continue", "stack"])
def test_a_run_learns_and_leaves_an_adapter(bits, between, device, folder, quiet, monkeypatch, capsys, tmp_path):
    model = {"name": str(folder), "quantization": FOUR if bits == 4 else {"load_in_8bit": True},
             "dtype": "bfloat16", "adapter": {"r": 4, "between_tasks": between}}  # fmt: skip
    plain = tiny_config(engine={"device": device}, train={"max_steps": 12, "learning_rate": 1e-2}) | {"model": model}
    found, again = (Trajectory(Run(load_run(plain), tmp_path / name, None)) for name in ("run", "again"))
    assert found.losses == again.losses
    first = [sum(terms.values()) for terms in found.losses[:12]]
    assert sum(first[-3:]) < 0.9 * sum(first[:3])
    code, _, err = call(monkeypatch, capsys, "export", tmp_path / "run", "--out", tmp_path / "product")
    assert (code, err) == (0, "")
    assert (tmp_path / "product" / "adapter_model.safetensors").is_file()
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec((tmp_path / "product" / "README.md").read_text().split("```python\n")[1].split("```")[0], scope)
    assert {torch.uint8 if bits == 4 else torch.int8} <= {weight.dtype for weight in scope["model"].parameters()}
    code, _, err = call(monkeypatch, capsys, "export", tmp_path / "run", "--out", tmp_path / "merged", "--merge")
    assert (code, "--merge: model.quantization: quantised weights are not merged into" in err) == (2, True)
