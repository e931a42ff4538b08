"""Guard: the largest share that passes, by hand and on a stream; what it leaves untouched; who may look at validation data."""

import copy
import math

import pytest
import torch
from pieces import ask, configured, equal, task_view, tiny_model, train, weights_of
from tiny import tiny_config, tiny_run_config, trajectory
from torch import nn

from cl_toolkit.errors import UserError
from cl_toolkit.measure.validation import Validation
from cl_toolkit.models.adapters import logits_of
from cl_toolkit.strategies.guard import Guard
from cl_toolkit.study.cells import load_run

EXAMPLES = [ask("ab", "c"), ask("d", "efg"), ask("gh", "i")]
ANCHORED = {"anchors": ["vowels"], "valid_size": 12}


class One(nn.Module):
    """One weight, at 0 in the beginning."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def guard(**settings):
    strategy = Guard(configured(Guard, **settings))
    strategy.name = "guard"
    return strategy


def kept(strategy, score, targets):
    """The weight after each of some tasks whose training ends at `targets`, and the share of each that was kept. score: of the
    anchors, given the weight."""
    model, after, shares = One(), [], []
    for index, target in enumerate(targets):
        view = task_view(EXAMPLES, index=index, validation=lambda model: score(model.w.item()))
        model = strategy.before_task(model, view)
        model.w.data.fill_(target)
        model = strategy.after_task(model, view)
        after.append(model.w.item())
        shares.append(strategy.told()["share"])
    return after, shares


def shares(run):
    """How much of each task a run has kept."""
    return [row["told"]["guard"]["share"] for row in run.record["adapters"]]


def test_the_largest_share_whose_anchors_lose_no_more_than_the_margin():
    assert kept(guard(margin=0.45, steps=10), lambda w: {"a": -w}, [1.0]) == ([pytest.approx(0.4)], [0.4])


def test_a_fall_by_the_margin_is_no_more_than_the_margin():
    strategy = guard(margin=0.02, steps=1)
    assert kept(strategy, lambda w: {"a": 0.8 if w == 0 else 0.78}, [1.0]) == (
        [1.0],
        [1.0],
    )  # 0.8 - 0.78 > 0.02 in floats


def test_a_score_that_is_no_number_is_a_fall():
    assert kept(guard(margin=0.5, steps=2), lambda w: {"a": math.nan if w > 0.5 else 1.0}, [1.0]) == ([0.5], [0.5])


def test_switched_off_it_needs_no_anchor_and_chooses_by_nothing(tmp_path):
    assert load_run(tiny_config(strategies={"guard": {"margin": None}}))
    run = trajectory(tmp_path, stream=ANCHORED, strategies={"guard": {"margin": None}}).run
    assert run.validation is None
    assert not run.record["notes"]


def test_every_anchor_must_pass_and_scores_need_not_be_monotonic():
    strategy = guard(margin=0.1, steps=4)
    falls = {1.0: (0.3, 0.0), 0.75: (0.0, 0.2), 0.5: (0.1, 0.1), 0.25: (0.9, 0.9)}

    def score(w):
        one, other = falls.get(w, (0.0, 0.0))
        return {"a": 1 - one, "b": 1 - other}

    assert kept(strategy, score, [1.0]) == ([0.5], [0.5])


def test_what_is_lost_is_counted_from_the_start_model_over_all_tasks():
    """A task's fall of 0.25 would pass a margin of 0.375 by itself; the second is halved, the third taken back as a whole."""
    strategy = guard(margin=0.375, steps=2)
    assert kept(strategy, lambda w: {"a": -w}, [0.25, 0.5, 0.75]) == ([0.25, 0.375, 0.375], [1.0, 0.5, 0.0])


def test_steps_1_is_all_or_nothing_and_nothing_is_bit_equal():
    model, strategy = tiny_model(), guard(margin=0.0, steps=1)
    before = weights_of(model)
    scores = iter([{"a": 1.0}, {"a": 0.5}])
    model = train(model, task_view(EXAMPLES, validation=lambda model: next(scores)), strategy, max_steps=3)
    assert strategy.told() == {"share": 0.0}
    assert equal(weights_of(model), before)
    assert strategy.extra_parameters == sum(p.numel() for p in model.parameters())


def test_within_the_margin_nothing_is_touched(tmp_path):
    guarded = trajectory(tmp_path / "guarded", stream=ANCHORED, strategies={"guard": {"margin": 1e6}})
    assert guarded == trajectory(tmp_path / "plain", stream=ANCHORED)
    assert shares(guarded) == [1.0, 1.0]


def test_on_a_stream_the_anchor_keeps_what_it_had_and_the_next_larger_share_would_not(tmp_path):
    stream = {**ANCHORED, "tasks": ["max"]}
    train_more = {"max_steps": 12}
    free = trajectory(tmp_path / "free", stream=stream, train=train_more)
    held = trajectory(
        tmp_path / "held", stream=stream, train=train_more, strategies={"guard": {"margin": 0.0, "steps": 20}}
    )
    (share,) = shares(held)
    assert 0 < share < 1
    run, start = held.run, held.run.strategy.start["vowels"]
    assert run.validation(run.model)["vowels"] >= start
    fresh, trained = run.load_model().state_dict(), free.run.model.state_dict()
    tried = copy.deepcopy(run.model)
    for taken in range(20, round(share * 20), -1):
        tried.load_state_dict({n: torch.lerp(fresh[n], trained[n], taken / 20) for n in fresh})
        assert run.validation(tried)["vowels"] < start


def test_validation_is_of_the_anchors_valid_examples_and_more_is_better(tmp_path):
    run = trajectory(tmp_path, stream=ANCHORED, strategies={"guard": {}}).run
    (exam,) = run.validation.exams
    (anchor,) = run.stream.anchors
    assert "strategies.guard: chooses by validation examples of vowels" in run.record["notes"]
    assert [e.id for e in exam.examples] == [e.id for e in anchor.valid]
    replies = run.answers(run.model, exam.ask())
    assert not exam.scorer.higher_is_better  # perplexity
    assert run.validation(run.model)["vowels"] == -exam.value(exam.read(replies))


def test_only_who_says_so_may_look():
    with pytest.raises(UserError, match="validate: is only for a strategy with `validates=True`"):
        task_view(EXAMPLES).validate(tiny_model())


def test_without_an_anchor_or_its_valid_examples_it_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"stream\.anchors: strategies\.guard checks them; expected one at least, got none"
    ):
        load_run(tiny_config(strategies={"guard": {}}))
    config = {"stream": {**ANCHORED, "valid_size": 0}, "strategies": {"guard": {}}}
    with pytest.raises(UserError, match=r"stream\.anchors: vowels has no valid examples"):
        trajectory(tmp_path, **config)
    assert tiny_run_config(stream={**ANCHORED, "valid_size": 0})  # nobody looks


def size_of_adapter(self, model):
    """A score that falls as soon as an adapter adds anything."""
    return {"vowels": -sum(float(p.detach().abs().sum()) for n, p in model.named_parameters() if "lora_B" in n)}


@pytest.mark.parametrize("life", ["continue", "merge", "stack"])
def test_an_adapter_that_is_taken_back_adds_nothing(life, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "__call__", size_of_adapter)
    model = {**tiny_config()["model"], "adapter": {"r": 2, "lora_alpha": 4, "between_tasks": life}}
    found = trajectory(tmp_path, stream=ANCHORED, model=model, strategies={"guard": {"margin": 0.0, "steps": 1}})
    run = found.run
    assert shares(found) == [0.0, 0.0]
    batch = run.codec.batch([ask("ab", "c")])
    now, start = (logits_of(model, batch.inputs) for model in (run.model, run.load_model()))
    assert torch.equal(now, start)
