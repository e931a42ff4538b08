"""The page, hook by hook: what is called when, on what, and how often."""

import pytest
import torch
from pieces import ask, task_view, tiny_model, train, train_settings

from cl_toolkit import Strategy, UserError, compose
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.strategies.objectives.sft import SFT

EXAMPLES = [ask(str(i), "ab"[i % 2]) for i in range(5)]


class Told(Strategy):
    """Writes down each hook, and gives another model where it may."""

    def __init__(self):
        super().__init__()
        self.told = []

    def build(self, model, index):
        self.told.append(("build", index))
        self.built = model
        return model

    def before_task(self, model, task):
        self.told.append(("before_task", model is self.built, torch.is_grad_enabled()))
        return model

    def batches(self, model, task, batches):
        self.told.append(("batches", len(batches), tuple(task.examples) == tuple(EXAMPLES[:4])))
        return batches

    def loss(self, model, part, out):
        self.told.append(("loss", len(part.examples), out.loss.requires_grad, model.training))
        return {"extra": 0.0 * out.loss}

    def penalty(self, weights):
        self.told.append(("penalty", len(weights) > 3))
        return {}

    def before_step(self, model, step):
        self.told.append(("before_step", step.number))

    def after_task(self, model, task):
        self.told.append(("after_task", [p.grad for p in model.parameters() if p.grad is not None]))
        return "another"


class Starts(SFT):
    """Drops the last example."""

    def before_task(self, model, task):
        self.started = model
        return task.keep(task.examples[:4])


def test_every_hook_has_its_turn():
    strategy, objective, seen = Told(), Starts(), []
    view = task_view(EXAMPLES, objective, batch_size=2, index=3)
    found = train(tiny_model(), view, strategy, lambda s: seen.append((s.step_number, sorted(s.losses), s.steps)),
                  per_device_train_batch_size=1)  # fmt: skip
    step = [("loss", 1, True, True)] * 2 + [("penalty", True)]
    assert strategy.told == [
        ("build", 3),
        ("before_task", True, True),
        ("batches", 2, True),
        *step,
        ("before_step", 0),
        *step,
        ("before_step", 1),
        ("after_task", []),
    ]
    assert seen == [(1, ["extra", "starts"], 2), (2, ["extra", "starts"], 2)]
    assert found == "another"


def test_the_model_that_a_hook_gives_is_the_one_that_is_trained():
    one, other = tiny_model(0), tiny_model(1)

    class Swap(Strategy):
        def build(self, model, index):
            return "built"

        def before_task(self, model, task):
            assert model == "built"
            return other

    before = [p.detach().clone() for p in other.parameters()]
    assert train(one, task_view(EXAMPLES), Swap()) is other
    assert any(not torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_a_term_with_the_objectives_name_is_refused():
    class Same(Strategy):
        def loss(self, model, part, out):
            return {"sft": out.loss}

    with pytest.raises(UserError, match="the loss term 'sft' is given twice"):
        train(tiny_model(), task_view(EXAMPLES), Same())


class Twice(SFT):
    updates, copies = 2, 1


def test_two_updates_on_one_batch():
    """Steps of both are counted, examples once; the schedule knows of them all."""
    rates, counts = [], []
    train(tiny_model(), task_view(EXAMPLES, Twice(), batch_size=5), None,
          lambda s: (rates.append(s.learning_rate), counts.append((s.step_number, s.examples_seen, s.tokens_seen))),
          learning_rate=0.2, lr_scheduler_type="linear", warmup_ratio=0.0, optim="sgd")  # fmt: skip
    assert rates == pytest.approx([0.1, 0.0])
    assert counts == [(1, 5, 10), (2, 5, 20)]


def counted(size):
    """A session after two steps of 5 examples with two tokens each."""
    kept = []
    train(
        tiny_model(), task_view(EXAMPLES, batch_size=5, epochs=2), None, kept.append, per_device_train_batch_size=size
    )
    return kept[-1]


@pytest.mark.parametrize(("size", "parts"), [(None, 1), (5, 1), (2, 3), (1, 5)])
def test_what_a_session_counts(size, parts):
    session = counted(size)
    assert session.examples_seen == 10
    assert session.tokens_seen == 20
    assert session.forwards == session.backwards == 2 * parts
    assert session.extra_backwards == 0
    assert session.trained_parameters == session.all_parameters == sum(p.numel() for p in tiny_model().parameters())
    assert session.trained_names == {name for name, _ in tiny_model().named_parameters()}


def test_frozen_weights_are_counted_apart():
    model, kept = tiny_model(), []
    frozen = next(model.parameters())
    frozen.requires_grad = False
    train(model, task_view(EXAMPLES, batch_size=5), None, kept.append)
    assert kept[0].all_parameters - kept[0].trained_parameters == frozen.numel()


def test_a_session_leaves_no_hook_behind():
    model = tiny_model()
    train(model, task_view(EXAMPLES, batch_size=5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_objective_that_cannot_be_cut_is_not_cut():
    class Whole(SFT):
        divisible = False

    with pytest.raises(RuntimeError, match="objective whole cannot be cut into parts"):
        train(tiny_model(), task_view(EXAMPLES, Whole(), batch_size=5), per_device_train_batch_size=2)
    train(tiny_model(), task_view(EXAMPLES, Whole(), batch_size=5), per_device_train_batch_size=5)


class Wrong(Strategy):
    """A term that is no number at its third step."""

    def before_task(self, model, task):
        self.step = 0
        return model

    def loss(self, model, part, out):
        self.step += 1
        return {"wrong": out.loss * (torch.nan if self.step == 3 else 0.0)}


def test_a_term_that_is_no_number_is_told_with_step_task_and_examples():
    with pytest.raises(UserError) as error:
        train(tiny_model(), task_view(EXAMPLES, name="jan", batch_size=5, epochs=4), Wrong(), logging_steps=100)
    ids = str(error.value).partition("(examples ")[2].partition(" and ")[0].split(", ")
    assert str(error.value).startswith("task jan: step 3: the loss term wrong is nan (examples ")
    assert len(ids) == 4
    assert set(ids) < {e.id for e in EXAMPLES}
    assert " and 1 more); a lower train.learning_rate" in str(error.value)


def test_a_norm_that_is_infinite_is_told_and_few_examples_by_name():
    class Huge(Strategy):
        def before_step(self, model, step):
            name = next(iter(step.grads))
            step.grads[name] = step.grads[name] + torch.inf

    with pytest.raises(UserError, match=r"step 1: the norm of the gradient is (inf|nan) \(examples 0\); a lower"):
        train(tiny_model(), task_view(EXAMPLES[:1]), Huge(), max_grad_norm=1.0)


class Late:
    """Two processes, of which the other one sees nothing wrong."""

    rank, world = 0, 2

    def share(self, examples):
        return list(examples)

    def sum(self, values):
        return dict(values)

    def max(self, value):
        return value

    def barrier(self):
        """The other one is there."""


@pytest.mark.parametrize(("logging", "seen"), [(1, 3), (2, 4), (100, 8)])
def test_with_several_processes_it_is_told_at_the_next_log_or_the_last_step(logging, seen):
    """All must stop together, and looking at each step would wait for the device; the step that is named is the first."""
    from cl_toolkit.learn import learn

    steps = []
    engine = TorchEngine(train_settings(logging_steps=logging, max_grad_norm=0.0), torch.device("cpu"), Late())
    view = task_view(EXAMPLES, batch_size=5, epochs=8)
    with pytest.raises(UserError, match=r"step 3: the loss term wrong is no longer a finite number; a lower"):
        learn(tiny_model(), view, view.objective, Wrong(), engine, lambda s: steps.append(s.step_number))
    assert len(steps) == seen - 1


def test_bf16_computes_in_bf16_and_keeps_its_weights():
    kept = []

    class Look(Strategy):
        def loss(self, model, part, out):
            kept.append(out.logits.dtype)
            return {}

    model = tiny_model()
    train(model, task_view(EXAMPLES, batch_size=5), Look(), bf16=True)
    train(model, task_view(EXAMPLES, batch_size=5), Look())
    assert kept == [torch.bfloat16, torch.float32]
    assert "forward" not in vars(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weights_that_the_loss_does_not_use_have_a_gradient_of_zero():
    seen = {}

    class Ask(Strategy):
        def before_step(self, model, step):
            other = step.gradient_of(EXAMPLES[:1])
            seen.update(own=step.grads["unused"].clone(), other=other["unused"], names=set(other) == set(step.grads))
            seen["length"] = len(step.grads) == len(step.weights)

    model = tiny_model()
    model.unused = torch.nn.Parameter(torch.ones(2))
    train(model, task_view(EXAMPLES, batch_size=5), Ask(), weight_decay=0.0)
    assert seen["own"].tolist() == seen["other"].tolist() == [0, 0]
    assert seen["names"]
    assert seen["length"]
    assert model.unused.tolist() == [1, 1]


def test_composed_strategies_are_asked_only_where_one_of_them_does_something():
    told = Told()
    assert compose(told, Strategy()).uses("penalty")
    assert not compose(Strategy(), Wrong()).uses("penalty")
    assert not Wrong().uses("before_step")


def test_passes_beside_training_are_counted_over_the_steps():
    kept = []

    class Ask(Strategy):
        def before_step(self, model, step):
            step.gradient_of(EXAMPLES[:1])

    train(tiny_model(), task_view(EXAMPLES, batch_size=5, epochs=3), Ask(), kept.append)
    assert (kept[-1].extra_backwards, kept[-1].backwards, kept[-1].forwards) == (3, 3, 6)


@pytest.mark.parametrize(("size", "last"), [(None, [True]), (2, [False, False, True])])
def test_the_last_part_is_known(size, last):
    """By it DeepSpeed knows when the gradient is whole."""
    view = task_view(EXAMPLES, batch_size=5)
    engine = TorchEngine(train_settings(per_device_train_batch_size=size), torch.device("cpu"))
    with engine.open(tiny_model(), view, 1) as session:
        assert [session.last_part for _ in session.parts(view.encode(EXAMPLES))] == last


@pytest.mark.parametrize(("processes", "closed"), [(None, 1), (Late(), 0)])
def test_after_an_error_one_process_closes_and_several_do_not_wait_for_each_other(processes, closed):
    view, closings = task_view(EXAMPLES, batch_size=5), []
    session = TorchEngine(train_settings(), torch.device("cpu"), processes).open(tiny_model(), view, 1)
    session.close = lambda: closings.append(1)
    with pytest.raises(KeyError), session:
        raise KeyError
    assert len(closings) == closed
    assert not session.module._forward_hooks
    with session:
        pass
    assert len(closings) == closed + 1
