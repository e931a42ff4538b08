"""EWC against a logistic unit worked out by hand, and against its definition on a language model."""

import pytest
import torch
from longer import long_but
from pieces import array_view, ask, byte_codec, configured, task_view, tiny_model, train, weights_of

from cl_toolkit import UserError
from cl_toolkit.engine import access
from cl_toolkit.engine.processes import Processes
from cl_toolkit.models.adapters import begin_task
from cl_toolkit.models.nets import Net
from cl_toolkit.models.sections import Adapter
from cl_toolkit.seeds import generator_from
from cl_toolkit.strategies.ewc import EWC, squared_gradients
from cl_toolkit.strategies.objectives.rft import RFT
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.types import Example

EXAMPLES = [ask("ab", "c"), ask("d", "ef"), ask("gh", "i"), ask("jkl", "mn")]


def ewc(**settings):
    return EWC(EWC.Config(**settings))


def with_past(strategy, *tasks):
    strategy.past = [{"fisher": {"w": torch.tensor([f])}, "anchor": {"w": torch.tensor([a])}} for f, a in tasks]
    return strategy


def penalty_at(strategy, theta):
    w = torch.tensor([theta], requires_grad=True)
    value = strategy.penalty({"w": w})["ewc"]
    value.backward()
    return value.item(), w.grad.item()


def logistic(w, x):
    """Logits of the classes 0 and 1, whose probabilities are 1 - sigmoid(w x) and sigmoid(w x). (1, 2)"""
    return torch.stack([torch.zeros(()), w[0] * x])[None]


def test_the_fisher_of_a_logistic_unit_is_x2_p_1_minus_p():
    w = torch.zeros(1, requires_grad=True)
    found = squared_gradients([w], logistic(w, 2.0), torch.tensor([1]), "exact", None)
    assert float(sum(p * square[0] for p, square in found)) == pytest.approx(2**2 * 0.5 * 0.5)
    # at w = 1: p = sigmoid(2) = 0.880797, so 4 * 0.880797 * 0.119203
    w = torch.ones(1, requires_grad=True)
    exact = sum(p * square[0] for p, square in squared_gradients([w], logistic(w, 2.0), None, "exact", None))
    assert float(exact) == pytest.approx(0.419974, abs=1e-5)
    # the true label 1 alone: (x (1 - p))^2
    ((one, (square,)),) = squared_gradients([w], logistic(w, 2.0), torch.tensor([1]), "empirical", None)
    assert one == 1.0
    assert float(square) == pytest.approx((2 * 0.119203) ** 2, abs=1e-5)
    # drawn labels: in the mean the exact one
    generator = generator_from("draws")
    drawn = [next(squared_gradients([w], logistic(w, 2.0), None, "sampled", generator))[1][0] for _ in range(3000)]
    assert float(torch.stack(drawn).mean()) == pytest.approx(0.419974, abs=0.06)


def test_the_penalty_has_the_half():
    assert penalty_at(with_past(ewc(weight=10.0), (1.0, 0.0)), 0.5) == (1.25, 5.0)


def test_separate_adds_a_term_per_task_and_online_looks_at_the_last_weights():
    past = (1.0, 0.0), (3.0, 1.0)
    assert penalty_at(with_past(ewc(weight=2.0), *past), 0.5)[0] == pytest.approx(0.25 + 3 * 0.25)
    online = ewc(weight=2.0, mode="online", gamma=0.5)
    assert penalty_at(with_past(online, (4.0, 1.0)), 0.5)[0] == pytest.approx(0.5 * 4 * 0.25)
    same = [penalty_at(with_past(ewc(mode=mode), (2.0, 0.0)), 0.3) for mode in ("separate", "online")]
    assert same[0] == same[1]  # one past task and gamma = 1


def test_gamma_zero_has_no_penalty():
    assert with_past(ewc(mode="online", gamma=0.0), (1.0, 0.0)).penalty({"w": torch.ones(1)}) == {}


def test_the_running_fisher_decays():
    model, view = tiny_model(), task_view(EXAMPLES)
    one = ewc(mode="online", gamma=0.5, fisher="empirical")
    one.after_task(model, view)
    first = {n: f.clone() for n, f in one.past[0]["fisher"].items()}
    one.after_task(model, view)
    assert len(one.past) == 1
    assert all(torch.allclose(f, 1.5 * first[n]) for n, f in one.past[0]["fisher"].items())


def by_hand(model, view, sizes):
    """Mean over groups of examples of the squared gradient of sum or mean log p, by the objective's own loss."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = dict.fromkeys(names, 0)
    for group in sizes:
        batch = view.encode([EXAMPLES[i] for i in group])
        scale = batch.total["tokens"] if len(group) == 1 else 1  # the objective averages over tokens
        grads = torch.autograd.grad(view.forward(model, batch).loss * scale, parameters)
        for name, grad in zip(names, grads, strict=True):
            total[name] = total[name] + len(group) * grad**2 / len(EXAMPLES)
    return total


@pytest.mark.parametrize(("kind", "groups"), [("empirical", [[0], [1], [2], [3]]), ("batched", [[0, 1, 2, 3]])])
def test_the_fisher_of_a_language_model(kind, groups):
    model, view = tiny_model(), task_view(EXAMPLES)
    strategy = ewc(fisher=kind)
    before = weights_of(model)
    strategy.after_task(model, view)
    expected = by_hand(model, view, groups)
    for name, value in strategy.past[0]["fisher"].items():
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-8), name
    assert all(torch.equal(v, before[n]) for n, v in weights_of(model).items())
    assert not any(p.grad is not None for p in model.parameters())
    assert strategy.extra_parameters == 2 * sum(p.numel() for p in model.parameters())


def test_batches_make_the_fisher_much_smaller():
    traces = {}
    for kind in ("empirical", "batched"):
        strategy = ewc(fisher=kind)
        strategy.after_task(tiny_model(), task_view(EXAMPLES))
        traces[kind] = sum(float(f.sum()) for f in strategy.past[0]["fisher"].values())
    assert traces["batched"] < traces["empirical"] / 4


def test_sampled_estimates_exact_on_sequences():
    model, view = tiny_model(), task_view(EXAMPLES[:1])
    traces = {}
    for kind in ("exact", "sampled"):
        draws = [
            ewc(fisher=kind).fisher(model, view, dict(model.named_parameters()))
            for _ in range(300 if kind == "sampled" else 1)
        ]
        traces[kind] = sum(sum(float(f.sum()) for f in draw.values()) for draw in draws) / len(draws)
    assert traces["sampled"] == pytest.approx(traces["exact"], rel=0.25)


class One(Processes):
    """One of several processes, which keeps what it would add to the others'."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world

    def sum_(self, tensors):
        self.found = [tensor.clone() for tensor in tensors]


KINDS = ("exact", "sampled", "empirical", "batched", "rollouts")


@pytest.mark.parametrize(
    ("world", "kind"), [(2, k) for k in KINDS] + long_but({(5, k) for k in KINDS[1:]}, [(5, k) for k in KINDS])
)
def test_shares_add_up_to_what_one_process_finds(kind, world):
    """Also of labels and rollouts that are drawn, and where a process has no example."""
    model, settings = tiny_model(), {"fisher": kind}
    view, codec = {"batch_size": 2}, byte_codec()
    if kind == "rollouts":
        settings = {}
        view |= {"objective": RFT(RFT.Config(num_generations=2, max_completion_length=3)), "score": lambda e, a: 0.0}
    names = dict(model.named_parameters())
    alone = ewc(**settings).fisher(model, task_view(EXAMPLES, codec=codec, **view), names)
    jobs = [One(rank, world) for rank in range(world)]
    for job in jobs:
        ewc(**settings).fisher(model, task_view(EXAMPLES, codec=codec, processes=job, **view), names)
    *totals, count = (sum(parts) for parts in zip(*(job.found for job in jobs), strict=True))
    idle = sum(int(job.found[-1]) == 0 for job in jobs)
    assert idle == max(world - (2 if kind == "batched" else 4), 0)
    for name, total in zip(names, totals, strict=True):
        assert (total / count - alone[name]).abs().max() <= 1e-5 * alone[name].abs().max(), name


def test_fisher_examples_limits_the_work():
    view = task_view(EXAMPLES)
    few, seen = ewc(fisher_examples=2), []
    encode = view.encode
    view.encode = lambda examples, model=None: (seen.extend(examples), encode(examples, model))[1]
    few.after_task(tiny_model(), view)
    assert len(seen) == 2


def test_at_the_boundary_it_is_zero_with_zero_gradient_and_it_holds_the_weights():
    distances = {}
    for weight in (0.0, 1e4):
        model, strategy = tiny_model(), ewc(weight=weight, fisher="empirical")
        train(model, task_view(EXAMPLES, max_steps=2), strategy)
        anchor = weights_of(model)
        if weight:
            weights = dict(model.named_parameters())
            value = strategy.penalty(weights)["ewc"]
            assert value.item() == 0.0
            assert all(not g.any() for g in torch.autograd.grad(value, list(weights.values())))
            fisher = strategy.past[0]["fisher"]
        train(model, task_view([ask("zz", "yy")], index=1, max_steps=8), strategy, learning_rate=1e-2)
        distances[weight] = {n: (p.detach() - anchor[n]) ** 2 for n, p in model.named_parameters()}
    far, near = (sum(float((fisher[n] * d[n]).sum()) for n in fisher) for d in distances.values())
    assert near < far / 2


def test_weights_that_are_gone_are_refused_and_frozen_ones_cost_nothing():
    strategy = with_past(ewc(), (1.0, 0.0))
    model = begin_task(tiny_model(), Adapter(r=2), 0, 0)
    with pytest.raises(UserError, match="ewc: w was trained in a past task and is not there now"):
        strategy.before_task(model, task_view([ask("a", "b")], index=1))
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert float(strategy.penalty(weights)["ewc"]) == 0


@pytest.mark.parametrize("settings", [{"weight": -1}, {"gamma": 1.5}, {"fisher_examples": 0}])
def test_bad_settings(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: expected"):
        configured(EWC, **settings)


def test_what_does_not_fit_on_the_device_stays_on_the_host_and_does_the_same(monkeypatch):
    """A device that is full: nothing is moved there, and what has to be asked for is counted."""
    asked, model = [], tiny_model()

    def full(device, size):
        asked.append(size)
        return False

    monkeypatch.setattr(access, "has_room", full)
    kept = [{"fisher": {"w": torch.ones(3)}, "anchor": {"w": torch.zeros(3)}}]
    found = access.beside(model, kept)
    assert found[0]["fisher"]["w"].device.type == "cpu"
    assert asked == [0]  # what is there already needs no room
    meta = torch.nn.Linear(2, 2, device="meta")
    access.beside(meta, kept)
    assert asked[-1] == 24


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "batched"])
def test_outputs_that_training_does_not_compare_have_no_importance(kind):
    """A net of three classes and a row that may be one of two: p is the softmax of these two, so that F of the bias b_0 is
    p_0 p_1; that of the third, which the loss never moves, is 0."""
    objective = SFT(configured(SFT, among="choices"))
    net = Net(torch.nn.Flatten(), 1, 3)
    with torch.no_grad():
        net.classifier.weight.zero_()
        net.classifier.bias.copy_(torch.tensor([0.0, 1.0, 5.0]))
    rows = [Example(id=str(i), x=torch.ones(1), y=i % 2, target=str(i % 2), choices=("0", "1")) for i in range(2)]
    strategy = ewc(fisher=kind)
    strategy.after_task(net, array_view(rows, objective))
    bias = strategy.past[0]["fisher"]["classifier.bias"]
    assert bias[2] == 0.0
    assert bias.isfinite().all()
    assert bias[0] == pytest.approx(bias[1])
    if kind == "exact":
        assert bias[0].item() == pytest.approx(0.268941 * 0.731059, abs=1e-5)
