"""What answering costs, in CPU time beside bare loops; arms in turns, one thread, medians. Every arm's answers are compared.

The bare loop over choices is what lm-eval's `loglikelihood` does with a batch of 64: rows of prompt and choice, the longest
first, log-probabilities of every position, without its work on requests. That of generation is transformers' `generate` on
padded prompts, that of classes one forward per batch of the stacked rows of a task. Where lm-eval is installed, its own
model part is an arm.
"""

from __future__ import annotations

import random
import statistics
import time

import pytest
import torch
from pieces import ask, byte_codec
from transformers import GenerationConfig

from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.exam import Exam
from cl_toolkit.measure.matrix import Matrix
from cl_toolkit.measure.probe import Moment, look
from cl_toolkit.models.arrays import MLP, ArrayCodec
from cl_toolkit.models.generate import generate
from cl_toolkit.models.requests import Answer, Choice
from cl_toolkit.models.tiny import TinyLM, build_tiny
from cl_toolkit.types import Example, Task

pytestmark = pytest.mark.speed
BATCH, REPEATS = 64, 7


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def medians(arms):
    """Name -> (median CPU seconds, what came back) of arms in turns, the first round dropped."""
    times, found = {name: [] for name in arms}, {}
    for repeat in range(REPEATS + 1):
        for name, arm in arms.items():
            started = time.process_time()
            found[name] = arm()
            if repeat:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(spent) for name, spent in times.items()}, found


def model():
    """tiny-lm, unsure enough to say this and that."""
    made = build_tiny(TinyLM(), 0).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    return made


def words(draw, low, high):
    return "".join(draw.choice("abcdefghij") for _ in range(draw.randint(low, high)))


def choices(count, low, high):
    """Questions of so many letters, with four choices of 4 to 12 letters each."""
    draw = random.Random(0)
    return [
        Choice(ask(words(draw, low, high), "", str(i)), tuple(words(draw, 4, 12) for _ in range(4)))
        for i in range(count)
    ]


@torch.no_grad()
def whole_rows(net, codec, requests):
    """The texts that are chosen by whole rows."""
    pairs = [(codec.ids(r.example)[0], codec.answer(r.example, c)) for r in requests for c in r.allowed]
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    scores = [0.0] * len(pairs)
    for start in range(0, len(order), BATCH):
        some = [pairs[i] for i in order[start : start + BATCH]]
        rows = [(prompt + answer)[:-1] for prompt, answer in some]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        logprobs = net(input_ids=ids).logits.float().log_softmax(-1)
        for i, (prompt, answer), row in zip(order[start:], some, logprobs, strict=False):
            said = row[len(prompt) - 1 : len(prompt) - 1 + len(answer)]
            _ = bool((said.argmax(-1) == torch.tensor(answer)).all())  # lm-eval's `is_greedy`
            scores[i] = float(said.gather(1, torch.tensor(answer)[:, None]).sum())
    places = iter(scores)
    return [max((next(places), c) for c in r.allowed)[1] for r in requests]


@pytest.mark.parametrize(
    ("what", "count", "low", "high", "bound"),
    [("prompts of 42 to 82 tokens", 100, 40, 80, 0.5), ("prompts of 252 to 487 tokens", 32, 250, 485, 0.32)],
)
def test_choices(measured, what, count, low, high, bound):
    net, codec = model(), byte_codec(max_prompt_length=1024)
    requests, answers = choices(count, low, high), Answers(codec, BATCH)
    times, found = medians(
        {
            "ours": lambda: [reply.text for reply in answers(net, requests)],
            "bare": lambda: whole_rows(net, codec, requests),
        }
    )
    assert found["ours"] == found["bare"]
    measured(
        f"four choices, {what}: {times['ours'] / count * 1e3:.2f} ms an item",
        times["ours"] / times["bare"],
        "bare loop over whole rows",
        bound,
        REPEATS,
    )


def by_transformers(net, codec, prompts, length):
    """transformers' `generate` on prompts of near length."""
    settings = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        use_cache=True,
        eos_token_id=sorted(codec.stops),
        pad_token_id=codec.pad,
    )
    answers = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        width = max(map(len, some))
        ids = torch.tensor([[codec.pad] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
        for row in net.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist():
            end = next((i for i, token in enumerate(row, 1) if token in codec.stops), len(row))
            answers.append(row[:end])
    return answers


@pytest.mark.parametrize(("ends", "bound"), [(False, 1.05), (True, 0.95)], ids=["all go on", "most end"])
def test_generation(measured, ends, bound):
    net, codec, count = model(), byte_codec(), 160
    draw = random.Random(1)
    prompts = sorted((codec.ids(ask(words(draw, 10, 12)))[0] for _ in range(count)), key=len)
    if ends:
        codec.stops |= set(range(0, 256, 3))
    times, found = medians(
        {
            "ours": lambda: [
                a for i in range(0, count, BATCH) for a in generate(net, prompts[i : i + BATCH], codec, 16)
            ],
            "bare": lambda: by_transformers(net, codec, prompts, 16),
        }
    )
    assert found["ours"] == found["bare"]
    mean = statistics.mean(map(len, found["ours"]))
    measured(
        f"answers of {mean:.1f} tokens of 16: {times['ours'] / count * 1e3:.2f} ms an item",
        times["ours"] / times["bare"],
        "transformers' generate in the same batches",
        bound,
        REPEATS,
    )


@pytest.mark.filterwarnings("ignore")  # what lm-eval and what it imports say is not ours
@pytest.mark.parametrize("what", ["short", "long", "generation"])
def test_against_lm_eval(measured, what):
    """In batches that suit each best: 64, and 128 of ours where answers are written."""
    api = pytest.importorskip("lm_eval.api.instance")
    from lm_eval.models.huggingface import HFLM

    net, codec, draw = model(), byte_codec(max_prompt_length=1024), random.Random(1)
    net.config.use_cache = True
    theirs = HFLM(pretrained=net, tokenizer=codec.tokenizer, batch_size=BATCH, max_length=1024, device="cpu")
    options = {"until": ["</s>"], "max_gen_toks": 16, "do_sample": False}
    if what == "generation":
        requests = [Answer(ask(words(draw, 10, 12), "", str(i)), 16) for i in range(160)]
    else:
        requests = choices(*{"short": (100, 40, 80), "long": (32, 250, 485)}[what])
    prompts = [codec.tokenizer.decode(codec.ids(r.example)[0]) for r in requests]

    def lm_eval():
        if what == "generation":
            asked = [api.Instance("generate_until", {}, (p, dict(options)), 0) for p in prompts]
            return theirs.generate_until(asked, disable_tqdm=True)
        pairs = [(p, f"{c}</s>") for p, r in zip(prompts, requests, strict=True) for c in r.allowed]
        asked = [api.Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        scores = iter(theirs.loglikelihood(asked, disable_tqdm=True))
        return [max((next(scores)[0], c) for c in r.allowed)[1] for r in requests]

    answers = Answers(codec, 128 if what == "generation" else BATCH)
    times, found = medians({"ours": lambda: [reply.text for reply in answers(net, requests)], "theirs": lm_eval})
    assert found["ours"] == found["theirs"]
    bound = {"short": 0.45, "long": 0.32, "generation": 0.85}[what]
    spent = f"{times['ours'] / len(requests) * 1e3:.2f} ms an item"
    measured(f"lm-eval, {what}: {spent}", times["ours"] / times["theirs"], "its model part", bound, REPEATS)


def test_rollouts_of_a_prompt(measured):
    """16 prompts of 64 tokens x 4 rollouts x 16 tokens, as a step of GRPO draws them, against 64 prompts with one each."""
    net, codec, copies = model(), byte_codec(), 4
    draw = random.Random(2)
    prompts = [codec.ids(ask(words(draw, 62, 62)))[0] for _ in range(16 * copies)]
    few = [prompt for prompt in prompts[:16] for _ in range(copies)]
    uniforms = torch.rand(len(few), 16, generator=torch.Generator().manual_seed(0))
    times, found = medians(
        {
            "ours": lambda: generate(net, few, codec, 16, uniforms),
            "bare": lambda: generate(net, prompts, codec, 16, uniforms),
            "alone": lambda: generate(net, few[::copies], codec, 16, uniforms[::copies]),
        }
    )
    assert found["ours"][::copies] == found["alone"]
    measured(
        f"a GRPO step's rollouts: {times['ours'] * 1e3:.0f} ms",
        times["ours"] / times["bare"],
        "as many prompts",
        0.85,
        REPEATS,
    )


def test_classes(measured):
    """A row of the matrix: five tasks of 364 arrays, an MLP of 64 - 256 - 256 - 10."""
    draw, count = torch.Generator().manual_seed(0), 364
    names = tuple(map(str, range(10)))
    exams, stacked = {}, []
    for t in range(5):
        x, y = torch.rand(count, 64, generator=draw), torch.randint(10, (count,), generator=draw)
        examples = tuple(
            Example(id=f"t{t}/test/{i}", x=x[i], y=int(y[i]), target=str(int(y[i])), choices=names)
            for i in range(count)
        )
        exams[f"t{t}"] = Exam(Task(name=f"t{t}", train=(), test=examples, scorer="class_accuracy"), examples, 1)
        stacked.append((examples, y))
    net, answers = MLP(input_size=64, hidden_size=256).load(0), Answers(ArrayCodec(), 128)
    moment = Moment(
        kind="task_end", task="t0", row=1, step=1, examples_seen=1, tokens_seen=1, exams=exams, scored=tuple(exams)
    )

    def ours():
        return [row["score"] for _ in range(5) for row in look(answers, net, {"": Matrix()}, moment)[""]]

    @torch.no_grad()
    def bare():
        scores = []
        for _ in range(5):
            for examples, y in stacked:
                right = 0
                for start in range(0, count, 128):
                    x = torch.stack([e.x for e in examples[start : start + 128]])
                    right += int((net(x).logits.argmax(1) == y[start : start + 128]).sum())
                scores.append(right / count)
        return scores

    times, found = medians({"ours": ours, "bare": bare})
    assert found["ours"] == pytest.approx(found["bare"])
    measured(
        f"MLP, five rows of five tasks: {times['ours'] / (25 * count) * 1e6:.1f} us an example",
        times["ours"] / times["bare"],
        "bare loop",
        2.0,
        REPEATS,
    )
