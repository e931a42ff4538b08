"""Answers that go on from one reading of a prompt, against whole rows that are read one by one."""

import copy
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from pieces import ask, byte_codec, tiny_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from cl_toolkit.engine.access import counted, evaluating, uncounted
from cl_toolkit.models import adapters, generate, prefix
from cl_toolkit.models.generate import generate as answers_of
from cl_toolkit.models.prefix import CACHE, Prefix, goes_on
from cl_toolkit.models.replies import choice_scores, token_replies
from cl_toolkit.models.requests import Answer, Choice, Logprobs, Sample
from cl_toolkit.models.sections import Adapter

IDS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
SHAPE = {**IDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QUESTIONS = ("", "ab", "what?", "d" * 40, "e f g", "ab ", "z" * 9)
CHOICES = ("a", "ab", "abc", "", "zz", "a long answer", "a long answer indeed")
"""One token and its end, beginnings of each other, nothing at all, and some that are long."""


class Forgetful(GPT2LMHeadModel):
    """A forward of its own that swallows a cache, and reads what it is given as if there had been nothing before."""

    def forward(self, input_ids=None, attention_mask=None, **others):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)


class Remembers(GPT2LMHeadModel):
    """Gives the cache that it was given, without what it has read this time."""

    def forward(self, input_ids=None, **others):
        read = others.get(CACHE)
        out = super().forward(input_ids=input_ids, **{**others, CACHE: copy.deepcopy(read)})
        if read is not None:
            out[CACHE] = read
        return out


def adapted(model):
    """The model under adapters that say something."""
    model = adapters.begin_task(model, Adapter(r=2), 0, 0)
    with torch.no_grad():
        for weight in adapters.weights(model).values():
            weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return model


GPT2 = GPT2Config(n_positions=96, n_embd=16, n_layer=2, n_head=2, **IDS)
MODELS = {
    "llama": (lambda: tiny_model(), True),
    "window": (lambda: MistralForCausalLM(MistralConfig(sliding_window=6, num_key_value_heads=2, **SHAPE)), True),
    "positions": (lambda: GPT2LMHeadModel(GPT2), True),
    "alibi": (lambda: BloomForCausalLM(BloomConfig(n_layer=2, n_head=2, **IDS, hidden_size=16)), True),
    "hybrid": (
        lambda: Lfm2ForCausalLM(Lfm2Config(layer_types=["conv", "full_attention"], num_key_value_heads=2, **SHAPE)),
        True,
    ),
    "recurrent": (
        lambda: MambaForCausalLM(MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, **IDS)),
        False,
    ),
    "without a cache": (lambda: Forgetful(GPT2), False),
    "stuck": (lambda: Remembers(GPT2), False),
    "adapted": (lambda: adapted(tiny_model()), True),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    made = MODELS[request.param][0]().eval()
    if isinstance(made, (MistralForCausalLM, GPT2LMHeadModel)):  # fresh ones say nearly the same everywhere
        with torch.no_grad():
            for weight in made.parameters():
                weight.mul_(5 if weight.dim() > 1 else 1)
    made.shares = MODELS[request.param][1]
    return made


def plainly(model, prompt, answer):
    """log p of each token of an answer, by one row without padding and cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return [logits[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)]


def by_hand(model, prompt, codec, length, uniforms=None):
    """Token by token, by whole rows."""
    said = []
    while len(said) < length and not (said and said[-1] in codec.stops):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1]
        if uniforms is None:
            said.append(int(logits.argmax()))
        else:
            said.append(int((logits.softmax(0).cumsum(0) <= uniforms[len(said)]).sum()))
    return said


def test_what_a_model_can_is_told_by_what_it_says(model):
    assert goes_on(model, 258) == model.shares


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_choices_of_any_length_are_scored_as_whole_rows(model, rows):
    codec = byte_codec()
    requests = [Choice(ask(q, "a", str(i)), CHOICES[: 2 + i % 6]) for i, q in enumerate(QUESTIONS)]
    for request, scores in zip(requests, choice_scores(codec, model, requests, rows), strict=True):
        prompt = codec.ids(request.example)[0]
        wanted = [sum(plainly(model, prompt, codec.answer(request.example, c))) for c in request.allowed]
        assert scores.tolist() == pytest.approx(wanted, abs=1e-5, rel=1e-6)
        assert int(scores.argmax()) == wanted.index(max(wanted))


def test_a_choice_is_no_more_rows_than_asked_for_and_a_prompt_goes_through_once():
    model, codec, seen = tiny_model(), byte_codec(), []
    assert goes_on(model, codec.pad)
    requests = [Choice(ask(q, "a", str(i)), CHOICES) for i, q in enumerate(QUESTIONS)]
    hook = model.register_forward_pre_hook(
        lambda m, a, k: seen.append((k["input_ids"], k["logits_to_keep"])), with_kwargs=True
    )
    choice_scores(codec, model, requests, 5)
    hook.remove()
    assert max(len(ids) for ids, _ in seen) == 5
    prompts = [ids for ids, keep in seen if keep == 1 and ids.shape[1] > 1]
    assert sum(map(len, prompts)) == len(QUESTIONS)
    read = sum(int((ids != codec.pad).sum()) for ids, _ in seen)
    asked = [(len(codec.ids(r.example)[0]), [len(codec.answer(r.example, c)) - 1 for c in CHOICES]) for r in requests]
    assert read == sum(prompt + sum(answers) for prompt, answers in asked)


def test_likelihoods_of_answers_windows_and_nothing_are_those_of_whole_rows(model):
    codec = byte_codec(max_prompt_length=48)
    document = replace(ask("", "", "document"), messages=(), text="a text of more than one window " * 3)
    requests = [*(Logprobs(ask(q, "an answer", str(i))) for i, q in enumerate(QUESTIONS)), Logprobs(document)]
    requests += [Logprobs(requests[1].example, ()), Logprobs(requests[2].example, (97,))]
    for rows in (1, 3, 50):
        for request, reply in zip(requests, token_replies(codec, model, requests, rows), strict=True):
            wanted = [p for pair in codec.asked(request.example, request.answer) for p in plainly(model, *pair)]
            assert list(reply.logprobs) == pytest.approx(wanted, abs=1e-5, rel=2e-6)
            assert len(reply.tokens) == len(wanted)


def test_what_is_said_greedily_and_drawn_is_what_whole_rows_say(model):
    codec = byte_codec()
    prompts = [codec.ids(ask(q))[0] for q in QUESTIONS]
    free = answers_of(model, prompts, codec, 7)
    assert free == [by_hand(model, p, codec, 7) for p in prompts]
    codec.stops |= {free[0][1], free[3][4], free[4][0]}  # rows end at different steps, one at its first token
    assert answers_of(model, prompts, codec, 7) == [by_hand(model, p, codec, 7) for p in prompts]
    assert answers_of(model, prompts, codec, 1) == [answer[:1] for answer in free]
    uniforms = torch.rand(len(prompts), 7, generator=torch.Generator().manual_seed(1))
    drawn = answers_of(model, prompts, codec, 7, uniforms)
    assert drawn == [by_hand(model, p, codec, 7, u) for p, u in zip(prompts, uniforms, strict=True)]


def test_samples_of_one_prompt_are_those_of_each_alone(model):
    codec = byte_codec()
    prompts = [codec.ids(ask(q))[0] for q in ("ab", "ab", "c", "ab", "what?", "c")]
    uniforms = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))
    together = answers_of(model, prompts, codec, 5, uniforms, 0.7)
    assert together == [
        answers_of(model, [p], codec, 5, u[None], 0.7)[0] for p, u in zip(prompts, uniforms, strict=True)
    ]


def test_a_prompt_is_read_once_for_its_samples_and_rows_leave_when_they_have_ended(monkeypatch):
    model, codec, seen = tiny_model(), byte_codec(), []
    prompts = [codec.ids(ask(q))[0] for q in ("ab", "c", "what?")]
    free = answers_of(model, prompts, codec, 6)
    codec.stops |= {free[0][0], free[1][3]}
    expected = answers_of(model, prompts, codec, 6)
    lengths = [len(answer) for answer in expected]
    hook = model.register_forward_pre_hook(lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    assert answers_of(model, [p for p in prompts for _ in range(4)], codec, 6) == [
        a for a in expected for _ in range(4)
    ]
    assert seen[0] == (3, max(map(len, prompts)))
    assert seen[1:] == [(4 * sum(n > step for n in lengths), 1) for step in range(1, max(lengths))]
    assert len({rows for rows, _ in seen[1:]}) > 1
    # in lockstep no row leaves, and nobody stops before all have ended
    seen.clear()
    wrapped = SimpleNamespace(module=model, allreduce_gradients=None, zero_optimization_stage=lambda: 3)
    monkeypatch.setattr(generate, "anywhere", lambda model, found: True)
    assert answers_of(wrapped, prompts, codec, 6) == expected
    assert seen[1:] == [(3, 1)] * 5
    hook.remove()


def test_a_part_of_what_was_read_leaves_no_trace_in_it():
    model, codec = tiny_model(), byte_codec()
    with evaluating(model):
        read = Prefix(model, [[1, 2, 3], [4]], codec.pad)
        for _ in range(2):
            part = read.take(torch.tensor([1, 0, 1]))
            said = part.on(torch.tensor([[5, 6], [7, 8], [9, 9]]))
            alone = model(input_ids=torch.tensor([[4, 5, 6]])).logits[0, 1:]
            assert torch.allclose(said[0], alone, atol=1e-5)
        assert read.mask.shape == (2, 3)
        assert read.state[CACHE].get_seq_length() == 3


def test_positions_beyond_a_rows_own_are_not_asked_for():
    """Prompt and choice fill the model's places to the last one; the padding beside them needs none."""
    torch.manual_seed(0)
    model, codec = GPT2LMHeadModel(GPT2).eval(), byte_codec()
    examples = [ask("q" * n, "a", str(n)) for n in (5, 70)]
    prompts = [len(codec.ids(e)[0]) for e in examples]
    allowed = [("x" * (96 - n - 1), "a") for n in prompts]
    requests = [Choice(e, a) for e, a in zip(examples, allowed, strict=True)]
    for request, scores in zip(requests, choice_scores(codec, model, requests, 8), strict=True):
        wanted = [
            sum(plainly(model, codec.ids(request.example)[0], codec.answer(request.example, c)))
            for c in request.allowed
        ]
        assert scores.tolist() == pytest.approx(wanted, abs=1e-4)


def test_what_a_model_can_is_tried_once_and_costs_no_forward(monkeypatch):
    tried = []
    monkeypatch.setattr(prefix, "_says_the_same", lambda model, pad: tried.append(model) or True)
    model = tiny_model()
    assert goes_on(model, 0)
    assert goes_on(model, 0)
    assert tried == [model]
    with uncounted():
        assert not counted.get()
        with uncounted():
            pass
        assert not counted.get()
    assert counted.get()


def test_every_way_of_asking_is_the_same_with_and_without_a_cache(monkeypatch):
    model, codec = tiny_model(1), byte_codec()
    examples = [ask(q, "an answer", str(i), choices=CHOICES[:3]) for i, q in enumerate(QUESTIONS)]
    ways = [
        [Answer(e, 5) for e in examples],
        [Choice(e, e.choices) for e in examples],
        [Choice(e, e.choices, True) for e in examples],
        [Logprobs(e) for e in examples],
        [Sample(e, 5, 3) for e in examples],
    ]
    cached = [token_replies(codec, model, requests, 4) for requests in ways]
    monkeypatch.setattr(codec, "goes_on", lambda model: False)
    plain = [token_replies(codec, model, requests, 4) for requests in ways]
    for one, other in zip(chain(*cached), chain(*plain), strict=True):
        assert replace(one, logprobs=()) == replace(other, logprobs=())
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
