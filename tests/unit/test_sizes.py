"""What can be known of a folder before its weights are read: how large the model is, and whether it may be read at all."""

import json
import shlex
import subprocess
import sys

import pytest
import torch
from longer import long_but
from tiny import tiny_config
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from cl_toolkit import UserError
from cl_toolkit.data.streams import build_stream
from cl_toolkit.models import hub
from cl_toolkit.models.kind import HEADS, kind_class
from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.study.cells import load_run
from cl_toolkit.study.plan import shape

SHAPE = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
MARKS = {"eos_token_id": 257, "pad_token_id": 258, "decoder_start_token_id": 258}
FOLDERS = {
    "lm": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, eos_token_id=257, tie_word_embeddings=True)),
    "seq2seq": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **MARKS)
    ),
    "classes": lambda: BertForMaskedLM(BertConfig(**SHAPE)),
}


def saved(folder, head):
    torch.manual_seed(0)
    model = FOLDERS[head]()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("adapter", [None, {"r": 2}, {"type": "shira", "r": 1, "target_modules": "all-linear"}])
@pytest.mark.parametrize("head", FOLDERS)
def test_sizes_are_read_off_the_config(head, adapter, monkeypatch, tmp_path):
    saved(tmp_path / "model", head)
    (tmp_path / "data" / "t").mkdir(parents=True)
    line = json.dumps({"instruction": "q", "input": "", "target": "a", "choices": ["a", "b"]}) + "\n"
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / "t" / f"{split}.jsonl").write_text(line * 4)
    plain = tiny_config(model={"name": str(tmp_path / "model"), "head": head, "adapter": adapter})
    plain["stream"] = {"name": "jsonl", "path": str(tmp_path / "data"), "tasks": ["t"], "scorer": "choices"}
    plain["model"] = {"name": str(tmp_path / "model"), "head": head, "adapter": adapter}
    config = load_run(plain)
    stream = build_stream(config)
    wanted = sum(p.numel() for p in config.kind.load(0, classes=stream.classes).parameters())
    monkeypatch.setattr(hub, "load_hub", None)
    found = shape(config, stream, False)
    assert found.total == wanted if adapter is None else wanted <= found.total <= wanted + found.trained
    assert found.trained == wanted if adapter is None else 0 < found.trained < wanted


@pytest.mark.parametrize("head", long_but({"lm"}, FOLDERS))
def test_pickled_weights_are_refused_with_the_command_that_converts_them(head, tmp_path):
    model = saved(tmp_path, head)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    kind = kind_class({"name": str(tmp_path), "head": head}, "test")(name=str(tmp_path))
    with pytest.raises(
        UserError, match=r"its weights are pickled \(pytorch_model.bin\), .* safetensors are read"
    ) as refused:
        kind.check(None, False)
    command = shlex.split(str(refused.value).split("trust them: ")[1])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    kind.check(None, False)
    mine, wanted = kind.load(0, classes=("a", "b")).state_dict(), model.state_dict()
    same = [name for name in mine if name in wanted]
    assert len(same) > len(mine) // 2
    assert all(torch.equal(mine[name], wanted[name]) for name in same)


def test_every_head_has_a_kind():
    assert {"lm", "none", "classes", "seq2seq", "vision"} <= set(HEADS)
