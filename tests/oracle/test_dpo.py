"""DPO against numbers worked by hand."""

import math

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, token_logprobs, train
from tiny import RFT, tiny_config

import cl_toolkit as cl
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.objectives.dpo import DPO
from cl_toolkit.study.cells import load_run
from cl_toolkit.study.plan import fitting

PAIRS = [ask(q, q[:1], extra={"rejected": q[::-1]}) for q in ("ab", "abcdef", "cd", "défg", "hij klm", "no")]
EASY = "cl_toolkit.check.runs:EasyPairs"
SIZES = {"length": 3, "train_size": 12, "valid_size": 4, "test_size": 6}


def dpo(**config):
    return DPO(DPO.Config(**config))


def logp(model, task, texts):
    """log p of an answer to each example, and its tokens."""
    batch = task.codec.batch(task.examples, task.codec.answers(task.examples, texts))
    found = token_logprobs(model(**batch.inputs).logits, batch.labels)
    return found.sum(1), (batch.labels >= 0).sum(1)


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.05)
    return model


@pytest.mark.parametrize("adapter", [None, Adapter(r=2)])
def test_at_the_start_of_a_task_it_is_ln_2(adapter):
    model, objective = adapters.begin_task(tiny_model(), adapter, 0, seed=0), dpo(beta=0.7)
    task = task_view(PAIRS, objective)
    objective.before_task(model, task)
    batch = task.encode(task.examples, model)
    assert objective.forward(model, batch).loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("normalized", [False, True])
def test_loss_and_gradient_by_hand(normalized):
    """-log sigmoid(h) with h = beta ((a - a_ref) - (b - b_ref)); its gradient is -beta sigmoid(-h) (grad a - grad b)."""
    objective, model = dpo(beta=0.3, length_normalized=normalized), tiny_model()
    task = task_view(PAIRS, objective)
    objective.before_task(model, task)
    moved(model)
    found = objective.forward(model, task.encode(task.examples, model)).loss
    ratios = []
    for texts in ([e.target for e in PAIRS], [e.extra["rejected"] for e in PAIRS]):
        now, tokens = logp(model, task, texts)
        before = logp(tiny_model(), task, texts)[0].detach()
        ratios.append((now - before) / (tokens if normalized else 1))
    h = (0.3 * (ratios[0] - ratios[1])).detach()
    assert h.abs().max() > 0.005
    assert found.item() == pytest.approx(float((1 + (-h).exp()).log().mean()), rel=1e-4)
    weights = list(model.parameters())
    by_hand = torch.autograd.grad((-0.3 * torch.sigmoid(-h) * (ratios[0] - ratios[1])).mean(), weights)
    for a, b in zip(torch.autograd.grad(found, weights), by_hand, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_it_learns_which_answer_is_preferred():
    objective, model = dpo(), tiny_model()
    task = task_view(PAIRS, objective, epochs=20)
    texts = [e.target for e in PAIRS], [e.extra["rejected"] for e in PAIRS]
    before = [logp(model, task, some)[0] for some in texts]
    train(model, task, learning_rate=1e-3)
    after = [logp(model, task, some)[0] for some in texts]
    assert ((after[0] - after[1]) > (before[0] - before[1])).all()


def test_an_example_without_a_rejected_answer_is_refused():
    objective = dpo()
    with pytest.raises(UserError, match="objective dpo: q: has no rejected answer; it learns from rows with chosen"):
        objective.before_task(tiny_model(), task_view([ask("q", "a")], objective))
    with pytest.raises(UserError, match="beta: expected a number above 0"):
        configured(DPO, beta=0.0)


def test_instruction_preference_and_reinforcement_are_one_stream(tmp_path):
    """SFT, DPO and RFT as the stages of one run, with rehearsal and a penalty throughout."""
    stages = [
        {"name": EASY, "tasks": ["sort"], "objective": {"name": "dpo"}, **SIZES},
        {"name": EASY, "tasks": ["last"], "objective": RFT, **SIZES},
    ]
    config = tiny_config(stream={"name": EASY, "tasks": ["max"], "then": stages}, strategies={"replay": {}, "ewc": {}})
    record = cl.run(config, out=tmp_path)
    terms = {row["task"]: set(row["terms"]) for row in record["losses"]}
    assert [stage["objective"] for stage in record["stages"]] == [None, "dpo", "rft"]
    assert "task last: rows have a rejected answer, which objective rft passes over" in record["notes"]
    assert not any("sort" in note for note in record["notes"])
    config["objective"], config["stream"]["then"] = {"name": "sft"}, []
    config["stream"] |= {"name": "skills", "tasks": ["max", "last"], "rejected": True}
    notes = fitting(load_run(config), build_stream(load_run(config)))
    assert "tasks last, max: rows have a rejected answer, which objective sft passes over" in notes
    assert terms == {"max": {"sft"}, "sort": {"dpo", "ewc"}, "last": {"rft", "ewc"}}


def test_what_was_not_learned_from_pairs_cannot_be_rehearsed_beside_them(tmp_path):
    pairs = {"name": EASY, "tasks": ["sort"], "objective": {"name": "dpo"}, **SIZES}
    config = tiny_config(stream={"name": "skills", "tasks": ["max"], "then": [pairs]}, strategies={"replay": {}})
    with pytest.raises(UserError, match=r"has no rejected answer.*rehearsed ones need both too"):
        cl.run(config, out=tmp_path)
