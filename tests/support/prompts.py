"""What holds of every model that reads its rows behind a prefix of its own making."""

import pytest
import torch
from pieces import ask, byte_codec

from cl_toolkit.models.generate import generate
from cl_toolkit.models.prefix import WholeRows, goes_on


def codec():
    """One whose batches say where their prompts end."""
    made = byte_codec()
    made.tells_prompts = True
    return made


def see_no_answer(model):
    """What is said of the first token of an answer does not depend on the answer, and would if the row were the prompt."""
    examples = [ask("ab", "c"), ask("ab", "zzzz")]
    batch = codec().batch(examples)
    end = batch.inputs["prompt_lengths"][0]
    with torch.no_grad():
        told = model(**batch.inputs).logits[:, end - 1]
        untold = model(**{k: v for k, v in batch.inputs.items() if k != "prompt_lengths"}).logits[:, end - 1]
    assert torch.allclose(told[0], told[1], atol=1e-5)
    assert (untold[0] - untold[1]).abs().max() > 1e-3


def answer_as_trained(model, examples, monkeypatch):
    """Prompts of unlike lengths, read once and gone on from, against whole rows; likelihoods too."""
    text, prompts = codec(), [codec().ids(example)[0] for example in examples]
    assert goes_on(model, text.pad)
    said = generate(model, prompts, text, 5)
    with torch.no_grad():
        for prompt, answer in zip(prompts, said, strict=True):
            row = text.padded([([*prompt, *answer], [-100] * len(prompt) + answer)])
            assert model(**row.inputs).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == answer
    likely = text.likely(model, list(zip(prompts, said, strict=True)))
    monkeypatch.setattr("cl_toolkit.models.text.goes_on", lambda model, pad: False)
    assert isinstance(text.read(model, prompts), WholeRows)
    assert generate(model, prompts, text, 5) == said
    for one, other in zip(likely, text.likely(model, list(zip(prompts, said, strict=True))), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
