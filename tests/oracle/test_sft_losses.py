"""The losses that weight a token by what the model knows: `dft`, `eaft`, `asft`, by hand and against plain losses."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from pieces import array_view, ask, configured, equal, points, task_view, tiny_model, train, weights_of
from tiny import tiny_run_config, trajectory

from cl_toolkit.errors import UserError
from cl_toolkit.models.adapters import begin_task
from cl_toolkit.models.arrays import MLP
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.lwf import LwF
from cl_toolkit.strategies.objectives import asft, dft, eaft
from cl_toolkit.strategies.objectives.asft import ASFT
from cl_toolkit.strategies.objectives.dft import DFT
from cl_toolkit.strategies.objectives.eaft import EAFT
from cl_toolkit.types import Batch

EXAMPLES = [ask(f"question {i}" * (1 + i % 3), "x" * (1 + 5 * i % 7), identity=str(i)) for i in range(8)]
OBJECTIVES = {"dft": DFT, "eaft": EAFT, "asft": ASFT}


def logits_of(*rows):
    return torch.tensor(rows).log()


# by hand --------------------------------------------------------------------------------------------------------------


def test_dft_of_two_tokens():
    """p = 1/2 and 1/4: (1/2 ln 2 + 1/4 ln 4) / 2 = ln 2 / 2. The gradient of log p's factor alone: -p."""
    logp = torch.tensor([0.5, 0.25]).log().requires_grad_()
    loss = dft.weighted(logp).mean()
    loss.backward()
    assert loss.item() == pytest.approx(0.3466, abs=1e-4)
    assert logp.grad.tolist() == pytest.approx([-0.25, -0.125])


def test_dft_in_a_batch_is_the_mean_over_the_whole_step():
    """A model that says p = 1/2, 1/4 of its two targets, cut into two parts that know of the whole step."""
    given = torch.zeros(2, 3, 4)
    given[0, 1], given[1, 1] = logits_of([0.5, 0.25, 0.125, 0.125])[0], logits_of([0.25, 0.5, 0.125, 0.125])[0]
    batch = Batch({"given": given}, torch.tensor([[-100, -100, 0]] * 2), tuple(EXAMPLES[:2]), total={"tokens": 2.0})

    def says(**inputs):
        return SimpleNamespace(logits=inputs["given"])

    assert DFT().forward(says, batch).loss.item() == pytest.approx(0.3466, abs=1e-4)
    halves = [
        Batch({"given": given[i : i + 1]}, batch.labels[i : i + 1], batch.examples[i : i + 1], total=batch.total)
        for i in (0, 1)
    ]
    assert [DFT().forward(says, part).loss.item() for part in halves] == pytest.approx([math.log(2) / 4] * 2)


def test_eaft_weights_by_the_entropy_of_the_most_likely():
    uniform, certain = torch.zeros(1, 20), torch.tensor([[0.0] + [-1e4] * 19])
    assert eaft.undecided(uniform, 20).item() == pytest.approx(math.log(20) / 3) == pytest.approx(0.9986, abs=1e-4)
    assert eaft.undecided(certain, 20).item() == 0.0
    # nothing but the top 20 counts, whatever stands below them
    assert eaft.undecided(torch.cat([uniform, torch.full((1, 30), -1.0)], 1), 20).item() == pytest.approx(
        0.9986, abs=1e-4
    )


def test_eaft_hardly_learns_a_confident_conflict():
    logits = logits_of([0.97, 0.03]).requires_grad_()
    assert eaft.undecided(logits, 20).item() == pytest.approx(0.0449, abs=1e-4)
    loss = eaft.weighted(logits, torch.tensor([1]), 1.0, 20)
    assert -math.log(0.03) == pytest.approx(3.507, abs=1e-3)
    assert loss.item() == pytest.approx(0.1575, abs=1e-4)
    assert eaft.weighted(logits, torch.tensor([1]), 2.0, 20).item() == pytest.approx(0.0449**2 * 3.507, rel=2e-3)
    (grad,) = torch.autograd.grad(loss.sum(), logits)  # the weight is no way for the gradient
    assert grad[0].tolist() == pytest.approx([0.0449 * 0.97, -0.0449 * 0.97], rel=2e-3)


def test_asft_is_dft_with_the_kl_from_the_anchor():
    """KL(q || p) for q = (.7, .2, .1), p = (.5, .3, .2): .0851; the other way round .0920."""
    q, p = logits_of([0.7, 0.2, 0.1]), logits_of([0.5, 0.3, 0.2])
    own = 0.5 * math.log(2)
    assert asft.anchored(q, p, torch.tensor([0]), 1.0).item() - own == pytest.approx(0.0851, abs=1e-4)
    assert asft.anchored(p, q, torch.tensor([0]), 1.0).item() + 0.7 * math.log(0.7) == pytest.approx(0.0920, abs=1e-4)
    assert asft.anchored(q, p, torch.tensor([0]), 0.1).item() == pytest.approx(own + 0.00851, abs=1e-5)
    assert asft.anchored(q, q, torch.tensor([0]), 1.0).item() == pytest.approx(-0.7 * math.log(0.7))


# against the rules of LLaMA-Factory, written out, on a model's own logits ---------------------------------------------


def expected(name, logits, labels, before):
    """Mean over target tokens: logits, before (N, V), labels (N,)."""
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    if name == "eaft":
        top = logits.detach().topk(20).values
        q = torch.softmax(top, -1)
        return (ce * (-(q * q.log()).sum(-1) / 3.0)).mean()
    loss = (ce * torch.exp(-ce).detach()).mean()
    if name == "asft":
        q = torch.softmax(before, -1)
        loss = (
            loss + 0.1 * torch.nn.functional.kl_div(torch.log_softmax(logits, -1), q, reduction="none").sum(-1).mean()
        )
    return loss


@pytest.mark.parametrize("adapter", [None, Adapter(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_is_that_of_the_rule_written_out(name, adapter):
    model = begin_task(tiny_model(), adapter, 0, 0)
    twin, anchor = copy.deepcopy(model), copy.deepcopy(model).eval()
    view, seen = task_view(EXAMPLES, OBJECTIVES[name](), max_steps=6), []
    train(model, view, None, lambda s: seen.append(next(iter(s.losses.values()))), learning_rate=1e-2, max_grad_norm=0)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for step, examples in enumerate(view.batches()):
        batch = view.encode(examples)
        wanted = batch.labels[:, 1:] >= 0
        with torch.no_grad():
            before = anchor(**batch.inputs).logits[:, :-1][wanted]
        loss = expected(name, twin(**batch.inputs).logits[:, :-1][wanted], batch.labels[:, 1:][wanted], before)
        assert seen[step] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(seen[-1] - seen[0]) > 1e-3
    full = name == "asft" and not adapter
    assert view.objective.extra_parameters == (sum(p.numel() for p in model.parameters()) if full else 0)


# the ends of their settings -------------------------------------------------------------------------------------------


def run_of(objective, strategy=None, view=task_view, model=tiny_model, examples=EXAMPLES, **settings):
    made, losses = model(), []
    train(made, view(examples, objective, max_steps=5), strategy,
          lambda s: losses.append(list(s.losses.values())), learning_rate=1e-2, **settings)  # fmt: skip
    return losses, weights_of(made)


def same(one, other):
    return one[0] == other[0] and equal(one[1], other[1])


def mlp():
    return MLP(input_size=4, hidden_size=8, num_classes=3).load(0)


def test_without_alpha_eaft_is_sft_and_asft_is_dft_bit_for_bit():
    assert same(run_of(EAFT(EAFT.Config(alpha=0.0))), run_of(None))
    assert same(run_of(ASFT(ASFT.Config(weight=0.0))), run_of(DFT()))
    arrays = {"view": array_view, "model": mlp, "examples": points()}
    assert same(run_of(EAFT(EAFT.Config(alpha=0.0)), **arrays), run_of(None, **arrays))
    assert not same(run_of(DFT()), run_of(None))
    assert not same(run_of(EAFT()), run_of(None))


def test_the_anchor_of_the_first_task_is_dft_beside_the_start_model_as_lwfs_teacher():
    alone, _ = run_of(ASFT())
    teacher = LwF(LwF.Config(teacher="start", temperature=1.0, weight=0.1))
    beside, _ = run_of(DFT(), teacher)
    assert [sum(terms) for terms in beside] == pytest.approx([sum(terms) for terms in alone], abs=1e-5)
    assert beside[-1][-1] > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_follow_the_whole_batch(name, size):
    whole, weights = run_of(OBJECTIVES[name](), max_grad_norm=0.1)
    parts, other = run_of(OBJECTIVES[name](), max_grad_norm=0.1, per_device_train_batch_size=size)
    assert [x for terms in parts for x in terms] == pytest.approx([x for terms in whole for x in terms], abs=1e-5)
    assert all(torch.allclose(other[n], w, atol=1e-4) for n, w in weights.items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_arrays_of_few_classes(name):
    losses, _ = run_of(OBJECTIVES[name](), view=array_view, model=mlp, examples=points())
    assert all(math.isfinite(x) and x > 0 for terms in losses for x in terms)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_strategies_stand_beside_them(name, tmp_path):
    """Rehearsal, distillation and a penalty with one run of each; the control of a method is its own objective."""
    found = trajectory(tmp_path, objective={"name": name}, strategies={"replay": {}, "lwf": {}, "ewc": {}})
    assert set(found.losses[-1]) == {name, "lwf", "ewc"}
    assert found.record["cost"]["stored_examples"] == 24
    assert found.losses[0] != trajectory(tmp_path / "sft").losses[0]


def test_what_they_cost():
    assert ASFT().cost().forwards == ASFT().cost().copies == 1.0
    assert ASFT(ASFT.Config(weight=0.0)).cost() == DFT().cost() == EAFT().cost()


@pytest.mark.parametrize(("cls", "settings"), [(EAFT, {"alpha": -1.0}), (EAFT, {"top_k": 1}), (ASFT, {"weight": -0.1})])
def test_bad_settings(cls, settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(cls, **settings)


def test_documents_are_not_for_them():
    with pytest.raises(UserError, match="learns from conversations"):
        tiny_run_config(objective={"name": "dft"}, stream={"name": "cl_toolkit.check.runs:EasyDocuments"})
