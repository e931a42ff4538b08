"""Distillation on the model's own rollouts against numbers worked by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pieces import ask, byte_codec, configured, equal, task_view, tiny_model, train, weights_of
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters, logits
from cl_toolkit.models.carried import carried
from cl_toolkit.models.divergences import divergence
from cl_toolkit.models.sections import Adapter
from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.runs.identity import components
from cl_toolkit.strategies.objectives.on_policy import DEMONSTRATION, SOLUTION, OnPolicy, told
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Message, Stream

QUESTIONS = [ask(q, q[:1]) for q in ("ab", "abcdef", "c", "défg", "hij klm", "n", "op", "qrstuvw")]
P, Q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
KINDS = ("forward", "reverse", "jsd")


def on_policy(**config):
    return OnPolicy(OnPolicy.Config(**{"max_completion_length": 5, **config}))


def view(objective, examples=QUESTIONS, **changes):
    settings = {"score": lambda e, a: 0.0, "seeds": {"data": 0, "memory": 0, "rollout": 3}, **changes}
    return task_view(examples, objective, **settings)


def moved(model, by=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by)


# divergences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mixture", "value", "slope"),
    [
        ("forward", 0.5, 0.143841, 0.25),  # 1/2 ln 2 + 1/2 ln 2/3; q - p
        ("reverse", 0.5, 0.130812, 0.205990),  # 1/4 ln 1/2 + 3/4 ln 3/2; q (ln q/p - KL)
        ("jsd", 0.5, 0.033822, 0.055105),  # m = (3/8, 5/8); (1 - b) q (ln q/m - KL(q || m))
        ("jsd", 0.1, 0.012752, 0.021804),  # m = (11/40, 29/40)
    ],
)
def test_each_divergence_and_its_direction_by_hand(kind, mixture, value, slope):
    student = Q.clone().requires_grad_()
    found = divergence(P, student, kind, mixture)
    assert found.item() == pytest.approx(value, abs=2e-6)
    assert torch.autograd.grad(found.sum(), student)[0][0].tolist() == pytest.approx([-slope, slope], abs=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixture", [0.1, 0.5, 0.7])
def test_gradients_are_those_of_the_formulas_and_exactly_nothing_where_both_agree(kind, mixture):
    draw = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(40, 17, generator=draw, dtype=torch.float64) for _ in range(2))
    q.requires_grad_()
    a, b = p.softmax(-1), q.softmax(-1)
    m = mixture * a + (1 - mixture) * b
    kl = lambda x, y: (x * (x / y).log()).sum(-1)  # noqa: E731
    by_hand = {"forward": kl(a, b), "reverse": kl(b, a), "jsd": mixture * kl(a, m) + (1 - mixture) * kl(b, m)}[kind]
    found = divergence(p, q, kind, mixture)
    assert torch.allclose(found.double(), by_hand, atol=1e-5)
    assert torch.allclose(*(torch.autograd.grad(x.sum(), q)[0] for x in (found, by_hand)), atol=1e-6)
    same = q.detach().float().requires_grad_()
    assert not torch.autograd.grad(divergence(same.detach(), same, kind, mixture).sum(), same)[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_that_are_far_apart_stay_finite(kind):
    far = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    found = divergence(far.detach().flip(1), far, kind)
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), far)[0].isfinite().all()


def test_the_temperature_divides_both():
    halved = divergence(P * 0.5, Q * 0.5, "forward")
    assert divergence(P, Q, "forward", temperature=2.0).item() == pytest.approx(halved.item())


# the objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", ["live", "start", "ema"])
def test_a_teacher_that_is_the_student_teaches_nothing(kind, teacher):
    objective, model = on_policy(teacher=teacher, context="none", divergence=kind, temperature=0.7), tiny_model()
    before = weights_of(model)
    train(model, view(objective), optim="sgd", learning_rate=1.0)
    assert equal(weights_of(model), before)
    other = on_policy(teacher=teacher, context="demonstration", divergence=kind)
    train(model, view(other), optim="sgd", learning_rate=1.0)
    assert not equal(weights_of(model), before), "one that sees more must change something"


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_by_hand(kind):
    """SDFT: the same answers behind the question alone and behind question and demonstration; the mean over all tokens."""
    objective, model, codec = on_policy(divergence=kind, teacher="start"), tiny_model(), byte_codec()
    task = view(objective)
    objective.before_task(model, task)
    moved(model, 0.02)
    batch = task.encode(task.examples, model)
    total = count = 0.0
    for row, example in enumerate(task.examples):
        answer = batch.labels[row][batch.labels[row] >= 0].tolist()
        seen = told(example, f"\n\nThis is an example for a response to the question:\n{example.target}\n\n"
                    "Now answer with a response of your own.")  # fmt: skip
        said = []
        for asked, teaches in ((seen, True), (example, False)):
            one = codec.batch([asked], [answer])
            at = torch.tensor([i - 1 for i in range(one.labels.shape[1]) if one.labels[0, i] >= 0])
            moved(model, -0.02 if teaches else 0.0)
            with torch.no_grad():
                said.append(model(**one.inputs).logits[0, at])
            moved(model, 0.02 if teaches else 0.0)
        total, count = total + divergence(*said, kind).sum(), count + len(answer)
    assert objective.forward(model, batch).loss.item() == pytest.approx(float(total / count), rel=1e-4)


def test_how_rows_of_the_vocabulary_are_cut_does_not_matter(monkeypatch):
    found = []
    for chunk in (logits.CHUNK, 12 * 259 * 3):
        monkeypatch.setattr(logits, "CHUNK", chunk)
        objective, model = on_policy(divergence="jsd"), tiny_model()
        train(model, view(objective), optim="sgd", learning_rate=0.1)
        found.append(weights_of(model))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


def test_the_ema_teacher_moves_once_for_each_step_and_not_for_what_is_encoded_aside():
    objective, model = on_policy(teacher="ema", teacher_update_rate=0.25), tiny_model()
    task = view(objective)
    objective.before_task(model, task)
    start = weights_of(model)["lm_head.weight" if "lm_head.weight" in weights_of(model) else "model.norm.weight"]
    name = next(n for n, w in objective.teacher._copy.items() if w.shape == start.shape and torch.equal(w, start))
    kept = lambda: objective.teacher._copy[name].clone()  # noqa: E731
    objective.encode(model, task, task.examples)
    assert torch.equal(kept(), start)  # nothing has been learned
    moved(model, 1.0)
    task.encode(task.examples[:2], model)
    assert torch.equal(kept(), start)
    objective.encode(model, task, task.examples)
    assert torch.allclose(kept(), start + 0.25)
    objective.encode(model, task, task.examples)
    assert torch.allclose(kept(), start + 0.4375)  # 0.25 + 0.75 * 0.25


@pytest.mark.parametrize(("teacher", "copied"), [("ema", True), ("start", False), ("live", False)])
def test_a_fresh_adapter_is_copied_where_the_teacher_will_follow_it(teacher, copied):
    model = adapters.begin_task(tiny_model(), Adapter(r=2), 0, seed=0)
    objective = on_policy(teacher=teacher, context="none")
    task = view(objective)
    objective.before_task(model, task)
    assert (objective.extra_parameters > 0) == copied
    batch = task.encode(task.examples, model)
    assert objective.forward(model, batch).loss.item() == pytest.approx(0.0, abs=1e-6)
    moved(model)
    apart = objective.forward(model, task.encode(task.examples, model)).loss.item()
    assert (apart > 1e-4) == (teacher != "live")


# contexts ---------------------------------------------------------------------------------------------------------


def test_the_context_follows_in_the_last_user_turn():
    turns = tuple(
        Message(role=r, content=c) for r, c in (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    )
    changed = told(QUESTIONS[0].__class__(id="x", messages=turns, target="t", source="memory"), " {d}")
    assert [m.content for m in changed.messages] == ["s", "a", "b", "c {d}"]
    assert (changed.target, changed.source) == ("t", "memory")


def test_what_the_teacher_of_each_rollout_sees():
    """SDPO: another rollout that was right; else how one's own was scored; one that alone was right sees nothing."""
    objective, codec = on_policy(context="feedback", num_generations=2), byte_codec()
    task = view(objective, [ask("q", "ab")], codec=codec, score=lambda e, a: float(a == e.target))
    right, wrong = [*b"ab", codec.eos], [*b"x{}", codec.eos]
    example = task.examples[0]
    see = lambda i, *rows: objective.seen(task, example, i, rows).question  # noqa: E731
    solution = "q\nCorrect solution:\n\nab\n\n\n\nCorrectly solve the original question.\n"
    assert see(0, wrong, right) == see(0, right, right) == solution
    assert see(1, wrong, right) == "q"
    assert see(0, wrong, wrong) == (
        "q\nThe following is feedback from your unsuccessful earlier attempt:\n\nx{}\n\nscore: 0\n\n\n\n"
        "Correctly solve the original question.\n"
    )


class Repeats(torch.nn.Module):
    """A model to which the letter z is e^by times as likely for each z that it has seen, and all else equally likely."""

    def __init__(self, by):
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(by))

    def forward(self, input_ids, **inputs):
        seen = (input_ids == ord("z")).cumsum(1)
        return SimpleNamespace(logits=self.by * seen[..., None] * (torch.arange(259) == ord("z")))


@pytest.mark.parametrize("teacher", ["live", "start", "ema"])
@pytest.mark.parametrize("context", ["demonstration", "feedback"])
def test_a_teacher_that_cannot_use_what_it_is_shown_is_told_of(teacher, context):
    objective, codec = on_policy(teacher=teacher, context=context), byte_codec()
    task = view(objective, [ask("q", "zz"), ask("x", "z")])
    for by, says in ((-1.0, True), (1.0, False), (0.0, False)):
        objective.before_task(Repeats(by), task)
        assert len(objective.noticed()) == says
        if says:
            (note,) = objective.noticed()
            likely = []
            for words in ("{}", DEMONSTRATION if context == "demonstration" else SOLUTION):
                logp = []
                for e in task.examples:
                    (text, answer) = codec.ids(told(e, words.format(e.target)) if words != "{}" else e)
                    seen = [*text, *answer]
                    for t in range(len(text), len(seen)):
                        z = -seen[:t].count(ord("z"))
                        logp.append(z * (seen[t] == ord("z")) - math.log(258 + math.exp(z)))
                likely.append(f"{sum(logp) / len(logp):.2f}")
            assert f"(log-probability of a token {likely[1]}, {likely[0]} without; 2 examples)" in note
    plain = on_policy(context="none", teacher=teacher)
    plain.before_task(Repeats(-1.0), task)
    assert not plain.noticed()


def test_the_teachers_rows_are_cut_with_the_students():
    objective, model = on_policy(num_generations=2), tiny_model()
    task = view(objective)
    objective.before_task(model, task)
    batch = task.encode(task.examples, model)
    part = batch.rows([5, 2])
    theirs = carried(part, "teacher")
    assert theirs.asked.labels.tolist() == part.asked.labels.tolist()
    assert theirs.asked.examples.tolist() == part.asked.examples.tolist()
    filler = batch.rows(())
    assert carried(filler, "teacher").asked.labels.tolist() == filler.asked.labels.tolist()


# another model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_another_model_teaches_by_its_folder(folder):
    """GKD. One that has the start's weights teaches what the start teaches."""
    losses = []
    for teacher in (str(folder), "start"):
        objective, model = on_policy(teacher=teacher, context="none", divergence="jsd"), tiny_model()
        task = view(objective)
        objective.before_task(model, task)
        moved(model)
        losses.append(objective.forward(model, task.encode(task.examples, model)).loss.item())
        assert objective.extra_parameters == sum(p.numel() for p in model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 1e-4


def test_another_model_need_not_know_the_settings_of_the_models_template(folder):
    objective = on_policy(teacher=str(folder), context="none")
    task = view(objective)
    task.codec.prompt = replace(task.codec.prompt, chat_template_kwargs={"enable_thinking": False}, thoughts=True)
    objective.before_task(tiny_model(), task)
    assert objective.extra_parameters


def test_another_vocabulary_or_no_model_at_all_is_refused(folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["new"])
    objective = on_policy(teacher=str(folder), context="none")
    task = view(objective)
    task.codec.tokenizer = tokenizer
    with pytest.raises(UserError, match=r"objective.teacher: .*: has another vocabulary than the model"):
        objective.before_task(tiny_model(), task)
    with pytest.raises(UserError, match=r"objective.teacher: .*nowhere: "):
        on_policy(teacher=str(folder / "nowhere")).before_task(tiny_model(), view(objective))
    with pytest.raises(UserError, match=r"^objective.teacher: .*nowhere: no such folder"):
        on_policy(teacher=str(folder / "nowhere")).sources()


def test_a_result_is_known_by_the_folder_of_its_teacher(folder):
    config = load_run(tiny_config(objective={"name": "on_policy", "teacher": str(folder), "context": "none"}))
    stream = Stream.of("none", ())
    before = components(config, stream)["objective.teacher"]
    tiny_model(1).save_pretrained(folder)
    after = components(config, stream)["objective.teacher"]
    assert before.origin == after.origin == str(folder)
    assert before.digest != after.digest
    assert "objective.teacher" not in components(load_run(tiny_config(objective={"name": "on_policy"})), stream)


# runs -------------------------------------------------------------------------------------------------------------


def test_it_stands_beside_strategies_and_needs_what_it_needs(tmp_path):
    objective = {"name": "on_policy", "max_completion_length": 4, "num_generations": 2}
    record = cl.run(tiny_config(objective=objective, strategies={"replay": {}, "lwf": {}, "ewc": {}}), out=tmp_path)
    assert {"on_policy", "ewc", "lwf"} <= set(record["losses"][-1]["terms"])
    assert record["cost"]["rollouts"] > 2 * 32  # rehearsed questions are answered too
    for strategy, lacking in (("der", "true_targets"), ("logit_swap", "true_targets")):
        with pytest.raises(UserError, match=f"strategies.{strategy}: needs {lacking}, which objective on_policy does"):
            load_run(tiny_config(objective=objective, strategies={strategy: {}}))
    with pytest.raises(UserError, match="learns from conversations; stream digits gives arrays"):
        load_run({"name": "x", "stream": {"name": "digits"}, "model": {"name": "mlp"}, "objective": objective})


def test_settings_without_meaning_are_refused():
    for config, message in (
        ({"teacher": "strat"}, "teacher: expected start, live, ema, or a model by folder or id, got 'strat'"),
        ({"teacher": "EMA"}, "teacher: expected start, live, ema, or a model by folder or id, got 'EMA'"),
        ({"divergence": "backward"}, "divergence: expected"),
        ({"mixture": 1.0}, "mixture: expected"),
        ({"teacher_update_rate": 0}, "teacher_update_rate: expected a number in"),
        ({"num_generations": 0}, "num_generations: expected 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            configured(OnPolicy, **config)
