"""Losses of other trainers, by their own functions, against ours: values and gradients. Run with `make peers`."""

from __future__ import annotations

import ast
import copy
from importlib import metadata
from pathlib import Path

import pytest
import torch
from pieces import ask, byte_codec, configured, task_view, tiny_model

pytest.importorskip("trl", reason="TRL is not installed; `make peers` installs it beside the product")

from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss

from cl_toolkit.models.divergences import divergence
from cl_toolkit.registry import OBJECTIVES

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers and of what they bring
EXAMPLES = [ask("ab", "c"), ask("d", "efg hij"), ask("what?", "klmn"), ask("", "o")]


@pytest.fixture(scope="module")
def factory():
    """LLaMA-Factory's loss functions, as they stand in its file: importing it wants other versions than ours of what it is
    built on."""
    try:
        found = metadata.distribution("llamafactory")
    except metadata.PackageNotFoundError:
        pytest.skip("LLaMA-Factory is not installed; `make peers` installs it beside the product")
    source = Path(str(found.locate_file("llamafactory/train/trainer_utils.py"))).read_text(encoding="utf-8")
    wanted = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith(("loss_func", "_cross_entropy", "_kl_divergence"))
    ]
    names = {"torch": torch, "F": torch.nn.functional, **vars(__import__("typing"))}
    exec(compile(ast.Module(wanted, []), "trainer_utils.py", "exec"), names)
    return names


def gradient(loss, model):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def batch_of(objective, model):
    """A step's rows: ours with its counts, and their input_ids and labels."""
    view = task_view(EXAMPLES, objective, codec=byte_codec())
    batch = objective.encode(model, view, EXAMPLES)
    batch.total = batch.counts()
    return view, batch


def theirs_of(name, functions, settings, model, batch, before):
    """Their loss of the same rows, whose number of targets they are told as by transformers' Trainer."""
    out = model(**batch.inputs)
    if name == "asft":
        return functions["asft_loss_func"](out, batch.labels, before, settings["weight"])
    more = {"alpha": settings["alpha"]} if name == "eaft" else {}
    return functions[f"{name}_loss_func"](out, batch.labels, torch.tensor(batch.total["tokens"]), **more)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dft", {}),
        ("eaft", {"alpha": 1.0}),
        ("eaft", {"alpha": 0.5}),
        ("asft", {"weight": 0.1}),
        ("asft", {"weight": 2.0}),
    ],
)
def test_a_loss_of_llama_factory(factory, name, settings):
    cls = OBJECTIVES.get(name, "test")
    objective, model = cls(configured(cls, **settings)), tiny_model()
    view, batch = batch_of(objective, model)
    start = copy.deepcopy(model)
    objective.before_task(model, view)
    with torch.no_grad():  # away from where it began
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        before = start(**batch.inputs).logits
    ours, theirs = objective.forward(model, batch).loss, theirs_of(name, factory, settings, model, batch, before)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    mine, other = gradient(ours, model), gradient(theirs, model)
    assert float((mine - other).norm() / other.norm()) < 1e-4


def pair_of_logits():
    draw = torch.Generator().manual_seed(0)
    return [3 * torch.randn(7, 50, generator=draw) for _ in range(2)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]
)
def test_a_divergence_of_trl(kind, beta, temperature):
    teacher, student = pair_of_logits()
    losses = [
        lambda s: divergence(teacher, s, kind, beta, temperature).mean(),
        lambda s: GKDTrainer.generalized_jsd_loss(s[None], teacher[None], torch.zeros(1, 7), beta, temperature),
    ]
    if temperature == 1:
        losses.append(lambda s: compute_full_logit_self_distillation_loss(s, teacher, distillation_alpha=beta).mean())
    grads = []
    for loss in losses:
        leaf = student.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        grads.append((value.item(), leaf.grad))
    for value, grad in grads[1:]:
        assert value == pytest.approx(grads[0][0], rel=1e-5)
        torch.testing.assert_close(grad, grads[0][1], rtol=1e-4, atol=1e-6)
