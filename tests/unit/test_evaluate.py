"""Scoring: batched generation against one row at a time and a loop by hand; no trace in the model."""

import math
from dataclasses import replace

import pytest
import torch
from pieces import Evaluator, ask, byte_codec, equal, score_of, tiny_model, weights_of

from cl_toolkit.engine.access import evaluating
from cl_toolkit.engine.processes import Processes
from cl_toolkit.measure.exam import chance_of
from cl_toolkit.models.adapters import begin_task
from cl_toolkit.models.generate import generate
from cl_toolkit.models.replies import choice_scores
from cl_toolkit.models.requests import Choice
from cl_toolkit.models.sections import Adapter
from cl_toolkit.types import Task

QUESTIONS = ["a", "bc", "def, ghi", "jklm nopq rst", "Ü", "", "v" * 40, "wxyz!", "0123456789"]
EXAMPLES = tuple(ask(q, q[:2] or "x", identity=str(i)) for i, q in enumerate(QUESTIONS))
CHOICES = tuple(
    replace(e, target="b", choices=("aaa", "b", "cc", "dddddd")[: 2 + i % 3]) for i, e in enumerate(EXAMPLES)
)


@pytest.fixture(scope="module", params=[0, 1, 2])
def model(request):
    return tiny_model(request.param)


def evaluator(batch_size=4, **changes):
    return Evaluator(byte_codec(), **{"split": "test", "batch_size": batch_size, "max_new_tokens": 6, **changes})


def task(examples=EXAMPLES, name="task", scorer="exact_match"):
    return Task(name=name, train=(), test=tuple(examples), scorer=scorer)


def argmax_loop(model, prompt, codec, length):
    """Greedy decoding without batch, padding, mask or cache."""
    answer = []
    while len(answer) < length and codec.eos not in answer:
        with torch.no_grad():
            answer.append(int(model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, -1].argmax()))
    return answer


def test_batched_generation_is_generation_one_by_one_and_the_loop_by_hand(model):
    codec = byte_codec()
    prompts = [codec.ids(e)[0] for e in EXAMPLES]
    together = generate(model, prompts, codec, 8)
    assert together == [generate(model, [p], codec, 8)[0] for p in prompts]
    assert together == [argmax_loop(model, p, codec, 8) for p in prompts]
    assert len({tuple(a) for a in together}) > len(prompts) / 2


def test_generation_stops_at_the_end_mark():
    model, codec = tiny_model(), byte_codec()
    prompts = [codec.ids(e)[0] for e in EXAMPLES]
    free = generate(model, prompts, codec, 8)
    mark = free[0][2]
    codec.stops = codec.stops | {mark}  # now this token ends an answer
    stopped = generate(model, prompts, codec, 8)
    for long, short in zip(free, stopped, strict=True):
        assert short == (long[: long.index(mark) + 1] if mark in long else long)
    assert len(stopped[0]) <= 3


@pytest.mark.parametrize("scorer", ["exact_match", "choices"])
def test_neither_order_nor_batch_size_matters(model, scorer):
    examples = CHOICES if scorer == "choices" else EXAMPLES
    wanted = {s.example.id: s.answer for s in evaluator()(model, [task(examples, scorer=scorer)])["task"]}
    for batch_size in (1, 2, 7, 100):
        for order in (examples, examples[::-1], sorted(examples, key=lambda e: e.question[::-1])):
            scored = evaluator(batch_size)(model, [task(order, scorer=scorer)])["task"]
            assert [s.example for s in scored] == list(order)
            assert {s.example.id: s.answer for s in scored} == wanted


def test_tasks_are_batched_together_and_told_apart(model):
    tasks = [task(EXAMPLES[:4], "one"), task(EXAMPLES[2:], "two"), task(CHOICES, "three", "choices")]
    together = evaluator(5)(model, tasks)
    for one in tasks:
        assert together[one.name] == evaluator(5)(model, [one])[one.name]


def by_hand(model, codec, example):
    """log p of each choice with its end mark, token by token without a batch."""
    scores = []
    for choice in example.choices:
        text, total = list(codec.ids(example)[0]), 0.0
        for token in [*choice.encode(), codec.eos]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([text])).logits[0, -1].double()
            total += (logits[token] - logits.logsumexp(0)).item()
            text.append(token)
        scores.append(total)
    return scores


def test_choices_by_likelihood_are_those_of_brute_force(model):
    tool = evaluator(3)
    scores = choice_scores(tool.answers.codec, model, [Choice(e, e.choices) for e in CHOICES], 3)
    scored = tool(model, [task(CHOICES, scorer="choices")])["task"]
    for example, got, answered in zip(CHOICES, scores, scored, strict=True):
        wanted = by_hand(model, tool.answers.codec, example)
        assert got.tolist() == pytest.approx(wanted, abs=1e-4)
        best = max(zip(wanted, example.choices, strict=True))[1]
        assert answered.answer == best
        assert answered.score == float(best == "b")


def test_the_limit_is_spread_over_the_split_and_the_mean_is_over_them(model):
    scored = evaluator()(model, [task()], limit=3)["task"]
    assert [s.example.id for s in scored] == ["0", "4", "6"]
    right = [replace(s, score=v) for s, v in zip(scored, (1.0, 0.0, 0.5), strict=True)]
    assert score_of(task(), right) == 0.5


def test_the_split_is_the_one_asked_for(model):
    whole = Task(name="t", train=EXAMPLES[:1], valid=EXAMPLES[1:3], test=EXAMPLES[3:])
    assert len(evaluator(split="valid")(model, [whole])["t"]) == 2
    assert evaluator()(model, []) == {}


class Pretend(Processes):
    """One of several processes; what the others would send is collected."""

    def __init__(self, rank, world, sent):
        self.rank, self.world, self.sent = rank, world, sent

    def gather(self, items):
        self.sent[self.rank] = items
        return [item for part in self.sent.values() for item in part]


def test_several_processes_answer_what_one_would(model):
    sent: dict = {}
    for rank in (0, 1, 2):
        tool = evaluator(2, processes=Pretend(rank, 3, sent))
        if rank < 2:
            with pytest.raises(KeyError):  # the answers of the others have not come yet
                tool(model, [task()])
        else:
            found = tool(model, [task()])
    assert found == evaluator(2)(model, [task()])
    assert [len(part) for part in sent.values()] == [3, 3, 3]


def test_no_trace_is_left(model):
    model = begin_task(tiny_model(), Adapter(r=2, lora_dropout=0.5), 0, 0)
    model.train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.Dropout))
    frozen.eval()  # a part that was in eval mode stays so
    modes = {name: m.training for name, m in model.named_modules()}
    weights, generator = weights_of(model), torch.random.get_rng_state()
    for scorer in ("exact_match", "choices"):
        evaluator()(model, [task(CHOICES, scorer=scorer)])
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert set(modes.values()) == {True, False}
    assert equal(weights_of(model), weights)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_modes_are_restored_when_something_fails():
    model = tiny_model().train()

    def fail():
        with evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert torch.is_grad_enabled()
    assert all(m.training for m in model.modules())


def test_perplexity_is_that_of_brute_force(model):
    codec, total, count = byte_codec(), 0.0, 0
    for example in EXAMPLES:
        prompt, answer = codec.ids(example)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
        total -= sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))
        count += len(answer)
    for size in (1, 4):
        whole = task(scorer="perplexity")
        scored = evaluator(size)(model, [whole])["task"]
        assert sum(s.weight for s in scored) == count
        assert score_of(whole, scored) == pytest.approx(math.exp(total / count), rel=1e-5)
        assert chance_of(scored) is None
        assert {s.answer for s in scored} == {""}


def test_choices_per_byte_lose_nothing_by_their_length(model):
    tool = evaluator(3)
    scores = choice_scores(tool.answers.codec, model, [Choice(e, e.choices) for e in CHOICES], 3)
    scored = tool(model, [task(CHOICES, scorer="choices_norm")])["task"]
    for example, got, answered in zip(CHOICES, scores, scored, strict=True):
        per_byte = [s / len(c.encode()) for s, c in zip(got.tolist(), example.choices, strict=True)]
        assert answered.answer == max(zip(per_byte, example.choices, strict=True))[1]
        assert answered.chance == 1 / len(example.choices)
