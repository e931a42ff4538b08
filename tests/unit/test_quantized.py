"""Quantised weights: by bitsandbytes' names where it is installed, refused in one sentence where it cannot be."""

from types import SimpleNamespace

import pytest

from cl_toolkit.errors import UserError
from cl_toolkit.models import hub
from cl_toolkit.models.language import LanguageModel

FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def installed(monkeypatch, there):
    monkeypatch.setattr(hub, "find_spec", lambda name: SimpleNamespace() if there else None)


def test_without_bitsandbytes_it_is_refused(monkeypatch):
    installed(monkeypatch, False)
    with pytest.raises(UserError, match=r"model.quantization: needs bitsandbytes, .*pip install 'cl-toolkit\[gpu\]'"):
        hub.check_quantized(LanguageModel(name="x", quantization=FOUR), frozen=True)


@pytest.mark.parametrize(("settings", "frozen", "message"), [
    (FOUR, False, r"model.quantization: quantised weights are neither trained nor merged into; use an adapter"),
    ({"load_in_4_bit": True}, True, r"model.quantization.load_in_4_bit: unknown key; did you mean 'load_in_4bit'"),
    ({**FOUR, "load_in_8bit": True}, True, r"model.quantization: load_in_4bit and load_in_8bit"),
])  # fmt: skip
def test_what_cannot_be_is_refused(settings, frozen, message, monkeypatch):
    installed(monkeypatch, True)
    with pytest.raises(UserError, match=message):
        hub.check_quantized(LanguageModel(name="x", quantization=settings), frozen)


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
