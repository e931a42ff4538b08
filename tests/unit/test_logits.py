"""What is said of the targets alone is what a plain forward says of them: several architectures, tiny and random."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cl_toolkit.engine.cut import into_rows, pack
from cl_toolkit.errors import UserError
from cl_toolkit.models import logits
from cl_toolkit.models.documents import check_apart
from cl_toolkit.models.logits import predicted, says_logits, target_logits
from cl_toolkit.types import IGNORE, Batch, Example

MARKS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **MARKS}
WIDE = {**COMMON, "intermediate_size": 64, "num_key_value_heads": 1}
MODELS = {
    "llama": WIDE,
    "mistral": {**WIDE, "sliding_window": 4},
    "qwen2": WIDE,
    "gemma2": {**WIDE, "head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 4},
    "granite": {**WIDE, "logits_scaling": 4.0},
    "cohere": {**WIDE, "logit_scale": 0.2},
    "phi": {**COMMON, "intermediate_size": 64},
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": {**COMMON, "intermediate_size": 64},
    "opt": {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "mamba": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0},
}
CHANGED_AFTERWARDS = {"gemma2", "granite", "cohere"}
CANNOT_BE_PACKED = {"mamba", "opt"}


def model_of(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**MODELS[name])).eval()
    model.config.use_cache = False
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


def batch():
    """Three rows of 5, 9 and 12 tokens, the first two or three of them the prompt; one row is only looked at."""
    draw, sizes = torch.Generator().manual_seed(0), (5, 9, 12)
    ids, mask, targets = (torch.zeros(3, 12, dtype=torch.long) for _ in range(3))
    targets.fill_(IGNORE)
    for row, size in enumerate(sizes):
        ids[row, :size] = torch.randint(3, 97, (size,), generator=draw)
        mask[row, :size] = 1
        targets[row, 2:size] = ids[row, 2:size]
    labels = targets.clone()
    labels[1] = IGNORE
    examples = tuple(Example(id=str(i), source="aside" if i == 1 else "task") for i in range(3))
    names = frozenset({"input_ids", "attention_mask", "labels"})
    return Batch({"input_ids": ids, "attention_mask": mask}, labels, examples, targets, along_tokens=names)


def plainly(model, given):
    """log p of each target, row after row, by a forward over everything."""
    said = model(**given.inputs).logits.float().log_softmax(-1)
    rows, columns = (given.targets != IGNORE).nonzero(as_tuple=True)
    return said[rows, columns - 1, given.targets[rows, columns]]


@pytest.mark.parametrize("chunk", [None, 97 * 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_targets_alone_are_what_they_are_among_all(name, chunk, monkeypatch):
    model, given = model_of(name), batch()
    model.says_logits = says_logits(model)
    assert model.says_logits == (name not in CHANGED_AFTERWARDS)
    if chunk:
        monkeypatch.setattr(logits, "CHUNK", chunk)
    wanted = plainly(model, given)
    grads = torch.autograd.grad(wanted.sum(), list(model.parameters()), allow_unused=True)
    for whole in (True, False):
        said = predicted(model, given, logits=whole)
        assert (said.logits is not None) == whole
        torch.testing.assert_close(said.logp, wanted, atol=1e-4, rtol=1e-4)
        found = torch.autograd.grad(said.logp.sum(), list(model.parameters()), allow_unused=True)
        for mine, other in zip(found, grads, strict=True):
            if other is not None:
                torch.testing.assert_close(mine, other, atol=1e-3 * float(other.abs().max()) + 1e-6, rtol=1e-3)
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_say_the_same_or_are_refused(name):
    model, given = model_of(name), batch()
    if name in CANNOT_BE_PACKED:
        with pytest.raises(UserError, match=r"train.packing: 32 packs pieces into rows, and the model"):
            check_apart(model, "train.packing: 32")
        return
    check_apart(model, "train.packing: 32")
    rows = into_rows(given.lengths.tolist(), 32)
    assert rows == [[2, 1, 0]]
    packed = pack(given, rows, 32, 1)
    assert packed.labels.shape == (1, 32)
    said, wanted = predicted(model, packed, logits=False), plainly(model, given)
    for example in range(3):
        mine = said.logp[packed.asked.examples == rows[0].index(example)]
        torch.testing.assert_close(mine, wanted[given.asked.examples == example], atol=1e-4, rtol=1e-4)
    assert [e.id for e in packed.examples] == ["2", "1", "0"]
    assert packed.asked.learned.sum() == (given.labels != IGNORE).sum()


def test_a_temperature_divides_the_logits():
    model, given = model_of("llama"), batch()
    model.says_logits = True
    wanted = (target_logits(model, given) / 2).log_softmax(-1).gather(1, given.asked.labels[:, None])[:, 0]
    for whole in (True, False):
        torch.testing.assert_close(predicted(model, given, 2.0, whole).logp, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("lengths", "rows"), [
    ([3, 9, 4, 2], [[1], [2, 0, 3]]),
    ([12, 1], [[0], [1]]),
    ([5, 5, 5], [[0, 1], [2]]),
    ([1] * 4, [[0, 1, 2, 3]]),
])  # fmt: skip
def test_examples_share_rows_of_ten(lengths, rows):
    assert into_rows(lengths, 10) == rows
