"""LwF's distillation, worked out by hand and against a second model as the teacher."""

import copy

import pytest
import torch
from pieces import ask, configured, task_view, tiny_model, train
from tiny import tiny_config

from cl_toolkit.check.laws import LAWS
from cl_toolkit.check.suites import find_subject
from cl_toolkit.errors import UserError
from cl_toolkit.models.adapters import begin_task
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.lwf import LwF, distillation
from cl_toolkit.study.cells import load_run

EXAMPLES = [ask("ab", "c"), ask("d", "efg"), ask("gh", "i")]


def test_the_worked_example():
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert torch.softmax(teacher / 2, -1).tolist() == [pytest.approx([0.731059, 0.268941], abs=1e-6)]
    kl = float(distillation(teacher, student, 2.0)[0])
    entropy = 0.693147 - 0.110944
    assert kl == pytest.approx(0.110944, abs=1e-6)
    assert kl + entropy == pytest.approx(0.693147, abs=1e-6)  # the cross-entropy form
    assert distillation(teacher.repeat(3, 1), student.repeat(3, 1), 2.0).tolist() == pytest.approx(
        [0.110944] * 3, abs=1e-6
    )


def losses(model, strategy, examples=EXAMPLES, index=1, **settings):
    seen = []
    view = task_view(examples, index=index, max_steps=4, batch_size=3)
    train(model, view, strategy, lambda session: seen.append(session.losses), learning_rate=1e-2, **settings)
    return seen


def test_the_first_task_has_no_teacher():
    strategy = LwF()
    assert all(set(terms) == {"sft"} for terms in losses(tiny_model(), strategy, index=0))
    assert strategy.past == 1


@pytest.mark.parametrize("adapter", [None, Adapter(r=2)], ids=["full", "lora"])
def test_it_is_what_a_second_model_as_teacher_gives(adapter):
    """The teacher is swapped in between the forward and the backward of the student; its gradient must not notice."""
    model = begin_task(tiny_model(), adapter, 0, 0)
    twin, teacher = copy.deepcopy(model), copy.deepcopy(model).eval()
    strategy = LwF(LwF.Config(weight=3.0))
    strategy.past = 1
    seen = losses(model, strategy, max_grad_norm=0)
    assert seen[0]["lwf"] == 0.0
    assert seen[-1]["lwf"] > 1e-3
    assert strategy.extra_parameters == (0 if adapter else sum(p.numel() for p in model.parameters()))

    view = task_view(EXAMPLES, index=1, max_steps=4, batch_size=3)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for step, examples in enumerate(view.batches()):
        batch = view.encode(examples)
        out = view.forward(twin, batch)
        with torch.no_grad():
            before = teacher(**batch.inputs).logits
        positions = [b for row in range(3) for b, y in zip(before[row], batch.labels[row, 1:], strict=False) if y >= 0]
        kl = [
            (torch.softmax(b / 2, -1) * (torch.log_softmax(b / 2, -1) - torch.log_softmax(a / 2, -1))).sum()
            for a, b in zip(out.logits, positions, strict=True)
        ]
        term = 3.0 * sum(kl) / len(kl)
        assert seen[step]["lwf"] == pytest.approx(term.item(), abs=1e-5)
        optimizer.zero_grad()
        (out.loss + term).backward()
        optimizer.step()
    for name, weight in twin.named_parameters():
        assert torch.allclose(weight, dict(model.named_parameters())[name], atol=1e-5), name


def test_rehearsed_examples_are_not_distilled():
    """The term is the same with and without rehearsed rows in the batch."""
    terms = []
    for source in (None, "memory"):
        model, strategy, view = tiny_model(), LwF(), task_view(EXAMPLES, index=1)
        strategy.past = 1
        strategy.before_task(model, view)
        with torch.no_grad():
            model.lm_head.weight.mul_(1.1)
        batch = view.encode([*EXAMPLES, *([ask("zz", "yyyyyyy", source=source)] if source else [])])
        terms.append(strategy.loss(model, batch, view.forward(model, batch))["lwf"].item())
    assert terms[0] > 1e-3
    assert terms[1] == pytest.approx(terms[0], rel=1e-4)


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"temperature": 0.0}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(LwF, **settings)


@pytest.mark.parametrize(
    "adapter", [None, Adapter(r=2), Adapter(r=2, between_tasks="stack")], ids=["full", "lora", "stack"]
)
def test_the_start_model_teaches_from_the_first_task_on(adapter):
    """Two tasks, a stop between them: the term of the last step is the KL to the model before the first step, T = 1."""
    start = tiny_model()
    model, strategy, value = copy.deepcopy(start), LwF(LwF.Config(teacher="start", temperature=1.0, weight=0.3)), None
    for index in (0, 1):
        again = LwF(strategy.config)
        again.load_state(strategy.state())
        strategy = again
        if not (index and adapter and adapter.between_tasks == "continue"):
            model = begin_task(model, adapter, index, 0)
        seen = losses(model, strategy, index=index)
        assert (seen[0]["lwf"] == 0.0) == (index == 0)
        view = task_view(EXAMPLES)
        batch = view.encode(EXAMPLES)
        out = view.forward(model, batch)
        value = strategy.loss(model, batch, out)["lwf"]
        with torch.no_grad():
            before = start(**batch.inputs).logits[:, :-1][batch.labels[:, 1:] != -100].log_softmax(-1)
        expected = 0.3 * (before.exp() * (before - out.logits.log_softmax(-1))).sum(-1).mean()
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert value.item() > 1e-3
    assert strategy.extra_parameters == (0 if adapter else sum(p.numel() for p in model.parameters()))


def test_an_adapter_that_is_merged_takes_the_start_model_away_and_is_refused_before_anything_is_trained():
    def config(**settings):
        model = {**tiny_config()["model"], "adapter": {"r": 2, "between_tasks": "merge"}}
        return tiny_config(model=model, strategies={"lwf": settings})

    with pytest.raises(UserError, match=r"lwf: needs model\.adapter\.between_tasks: continue or stack, or no adapter"):
        load_run(config(teacher="start"))
    assert load_run(config())
    assert load_run(config(teacher="start", weight=0))


def test_a_stop_changes_nothing_for_the_start_model(tmp_path):
    """Law 6 with this teacher, which law 6 of the registry does not ask."""
    _, subject = find_subject("lwf", {"teacher": "start"})
    assert LAWS[6].test(subject).startswith("stopped after task 2 of 3")
    subject.close()
