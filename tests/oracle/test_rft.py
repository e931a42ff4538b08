"""RFT against numbers worked by hand (research/methods.md 5.4)."""

import math

import pytest
import torch
from pieces import ask, byte_codec, configured, equal, task_view, tiny_model, token_logprobs, train, weights_of
from rewarded import QUESTIONS, even, rft, view

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.logits import predicted
from cl_toolkit.models.sections import Adapter
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.strategies.objectives.rft import RFT, advantages, informative, low_variance_kl
from cl_toolkit.types import IGNORE

# advantages, KL, rewards ------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert advantages(rewards, "grpo")[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert advantages(rewards, "rloo")[0].tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3], abs=1e-6)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_advantages_of_a_group_sum_to_zero_and_a_constant_does_not_matter(algorithm):
    rewards = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    found = advantages(rewards, algorithm)
    assert found.sum(1).abs().max() < 1e-5
    assert torch.allclose(advantages(rewards + 0.7, algorithm), found, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.9, 1.0, 0.3])
def test_equal_rewards_have_no_advantage_at_all(algorithm, n, reward):
    assert not advantages(torch.full((3, n), reward), algorithm).any()


def test_low_variance_kl():
    d = torch.tensor([0.0, math.log(2), -math.log(2), 3.0, -3.0], dtype=torch.float64)
    found = low_variance_kl(d, torch.zeros(5, dtype=torch.float64)).tolist()
    assert found[:2] == pytest.approx([0.0, 0.306853], abs=1e-6)
    assert found[2] == pytest.approx(0.5 + math.log(2) - 1)
    assert min(found) == 0.0


def test_the_reward_of_right_and_of_formatted():
    objective, codec = rft(), byte_codec()
    task = task_view([ask("q", "ab")], objective, codec=codec, score=lambda e, a: float(a == e.target))
    ended, cut, wrong, blank = [*b"ab", codec.eos], [*b"ab"], [*b"x", codec.eos], [codec.eos]
    accuracy, shaped = objective.score(task, task.examples, [[ended, cut, wrong, blank]])
    a, b = objective.config.reward_weights
    assert (a * accuracy + b * shaped)[0].tolist() == pytest.approx([1.0, 0.9, 0.1, 0.0])


@pytest.mark.parametrize(
    ("p", "zero_variance", "incompetent"), [(0.5, 0.99219, 0.99609), (0.1, 0.56953, 0.56953), (0.9, 0.56953, 1.0)]
)
def test_how_often_the_filters_keep_a_prompt(p, zero_variance, incompetent):
    right = (torch.rand(40_000, 8, generator=torch.Generator().manual_seed(1)) < p).float()
    assert informative(right, "zero_variance").float().mean().item() == pytest.approx(zero_variance, abs=0.01)
    assert informative(right, "incompetent").float().mean().item() == pytest.approx(incompetent, abs=0.01)


def test_the_filters_on_scores_between_right_and_wrong():
    """A scorer such as token_f1 gives parts of a point; equal parts say as little as equal points."""
    scores = torch.tensor([[0.5, 0.5], [0.5, 0.7], [0.0, 0.0], [1.0, 1.0], [0.0, 0.2]])
    assert informative(scores, "zero_variance").tolist() == [False, True, False, False, True]
    assert informative(scores, "incompetent").tolist() == [True, True, False, True, True]


def test_the_filter_drops_examples_before_the_task():
    objective, model = rft(instance_filter="zero_variance"), tiny_model()
    task = view(objective, score=lambda e, a: 1.0 if e.id == "c" else even(e, a))
    kept = objective.before_task(model, task)
    assert 0 < len(kept.examples) < len(task.examples)
    assert "c" not in {e.id for e in kept.examples}
    nothing = rft(instance_filter="incompetent")
    hopeless = view(nothing, score=lambda e, a: 0.0)
    assert nothing.before_task(model, hopeless).examples == hopeless.examples


# updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("n", [3, 4])
def test_equal_rewards_change_nothing(algorithm, n):
    """Everything right and nothing formatted: all rewards are 0.9."""
    objective = rft(algorithm=algorithm, num_generations=n, beta=0.0, format_pattern="never")
    model = tiny_model()
    before = weights_of(model)
    view_ = view(objective, score=lambda e, a: 1.0)
    train(model, view_, optim="sgd", learning_rate=1.0)
    assert equal(weights_of(model), before)
    train(model, view(objective), optim="sgd", learning_rate=1.0)
    assert not equal(weights_of(model), before), "unequal rewards must change something"


def test_the_gradient_is_the_policy_gradient():
    """One update per rollout: the loss has the gradient of -A log p, averaged over the tokens of the step."""
    objective, model = rft(beta=0.0), tiny_model()
    task = view(objective)
    batch = task.encode(task.examples, model)
    loss = objective.forward(model, batch).loss
    found = torch.autograd.grad(loss, list(model.parameters()))
    logp = token_logprobs(model(**batch.inputs).logits, batch.labels)
    by_hand = -(batch.extra["advantages"][:, None] * logp).sum() / (batch.labels != IGNORE).sum()
    for a, b in zip(found, torch.autograd.grad(by_hand, list(model.parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_the_clipped_ratio_by_hand():
    """With stored log-probabilities that make the ratio 2 or 1/2, only what is not clipped has a gradient."""
    objective, model = rft(beta=0.0, num_iterations=2, epsilon=0.2), tiny_model()
    task = view(objective, QUESTIONS[:1])
    batch = task.encode(task.examples, model)
    owners = batch.asked.examples
    now = token_logprobs(model(**batch.inputs).logits, batch.labels)[batch.labels[:, 1:] != IGNORE].detach()
    objective.forward(model, batch)  # the first update
    assert torch.allclose(batch.memo["old"], now, atol=1e-5)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    ratios = torch.tensor([2.0, 0.5, 2.0, 0.5])
    batch.extra, batch.memo["old"] = {"advantages": signs}, now - ratios.log()[owners]
    targets = (batch.labels != IGNORE).sum(1)
    # min(ratio A, clip(ratio) A): 1.2, 0.5, -2.0, -0.8
    wanted = -(torch.tensor([1.2, 0.5, -2.0, -0.8]) * targets).sum() / targets.sum()
    assert objective.forward(model, batch).loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for row, moves in enumerate([False, True, True, False]):
        alone = batch.rows([row])
        alone.memo["old"] = batch.memo["old"][owners == row]
        gradients = torch.autograd.grad(objective.forward(model, alone).loss, list(model.parameters()))
        assert any(g.any() for g in gradients) == moves


def test_two_updates_per_rollout_take_two_steps_and_count_examples_once():
    seen = []
    for iterations in (1, 2):
        objective, model = rft(num_iterations=iterations), tiny_model()
        train(model, view(objective), watch=lambda s: seen.append((s.step_number, s.examples_seen)))  # 2 batches
    assert seen == [(1, 4), (2, 8), (1, 4), (2, 4), (3, 8), (4, 8)]  # prompts, not rollouts


# the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", [None, "continue", "merge", "stack"])
def test_the_reference_by_switching_off_and_by_a_copy(life):
    """A fresh adapter is switched off; full weights, a trained adapter and a stack are copied. The KL starts at 0."""
    adapter = None if life is None else Adapter(r=2, between_tasks=life)
    model = tiny_model()
    for index in range(2):
        model = adapters.begin_task(model, adapter, index, seed=0)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        objective = rft(beta=1.0, num_iterations=1)
        task = view(objective, index=index)
        objective.before_task(model, task)
        fresh = life == "merge" or (life is not None and index == 0)
        assert objective.extra_parameters == (0 if fresh else size)
        before = weights_of(model)
        batch = task.encode(task.examples, model)
        assert equal(weights_of(model), before)
        batch.extra["advantages"].zero_()
        assert objective.forward(model, batch).loss.item() == pytest.approx(0.0, abs=1e-6)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05)
        moved = objective.forward(model, batch).loss.item()
        assert moved > 1e-4
        again = task.encode(task.examples, model)  # the reference is still the model of the start
        with torch.no_grad():
            assert not torch.allclose(objective._reference_logp(model, again), predicted(model, again).logp, atol=1e-3)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
        model = adapters.end_task(model, adapter)


def test_both_kinds_of_reference_give_the_same_kl():
    model = adapters.begin_task(tiny_model(), Adapter(r=2), 0, seed=0)
    off, copy = Teacher(), Teacher()
    off.take(model)
    copied = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    copy.load_state(off.state() | {"without_adapter": False, "copy": copied, "active": adapters.active(model)})
    with torch.no_grad():
        for parameter in adapters.weights(model).values():
            parameter.add_(0.1)
    batch = byte_codec().batch(QUESTIONS)
    found = []
    for reference in (off, copy):
        with reference(model):
            found.append(token_logprobs(model(**batch.inputs).logits, batch.labels))
    assert off.parameters == 0
    assert torch.allclose(*found, atol=1e-5)
    assert not torch.allclose(found[0], token_logprobs(model(**batch.inputs).logits, batch.labels), atol=1e-2)


def test_settings_without_meaning_are_refused():
    for config, message in (
        ({"num_generations": 1}, "num_generations: expected 2 or more"),
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
        ({"num_iterations": 0}, "num_iterations: expected 1 or more"),
        ({"format_pattern": "("}, "format_pattern: not a regular expression"),
        ({"reward_weights": [0, 0]}, "reward_weights: expected one above 0"),
        ({"reward_weights": [1, -1]}, r"reward_weights\[1\]: expected 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            configured(RFT, **config)


def test_under_dropout_the_ratio_is_1_and_the_kl_0_at_unchanged_weights():
    model = adapters.begin_task(tiny_model(), Adapter(r=4, lora_dropout=0.5), 0, seed=0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.weight.shape[0] == 4:
            torch.nn.init.normal_(layer.weight)
    model.train()
    objective = rft(beta=1.0, num_iterations=2)
    task = view(objective)
    objective.before_task(model, task)
    batch = task.encode(task.examples, model)
    batch.extra["advantages"].zero_()
    for _ in range(2):  # the old log-probabilities and the reference's are those of the first time
        assert objective.forward(model, batch).loss.item() == pytest.approx(0.0, abs=1e-6)
        assert model.training


def test_the_reference_is_asked_in_the_parts_of_the_training_forward():
    """No forward of training, reference or old log-probabilities has more rows than a part; how it is cut changes nothing."""
    final = []
    for size in (None, 3):
        objective, model, rows = rft(beta=0.1, num_iterations=2), tiny_model(), []
        forward = objective.forward

        def watched(model, part, forward=forward, rows=rows):
            handle = model.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
            try:
                return forward(model, part)
            finally:
                handle.remove()

        objective.forward = watched
        train(model, view(objective), optim="sgd", per_device_train_batch_size=size)
        assert max(rows) == (size or 16)
        final.append(weights_of(model))
    assert all(torch.allclose(final[0][name], final[1][name], atol=1e-5) for name in final[0])


# ReMax, normalisations, where the KL goes, further rewards ----------------------------------------------------------


def test_remax_takes_the_greedy_answers_reward_as_baseline():
    found = advantages(torch.tensor([[1.0, 0.0], [0.9, 0.1]]), "remax", torch.tensor([1.0, 0.1]))
    assert torch.allclose(found, torch.tensor([[0.0, -1.0], [0.8, 0.0]]))
    objective, model = rft(algorithm="remax", num_generations=1, beta=0.0, reward_weights=(1.0, 0.0)), tiny_model()
    task = view(objective)
    batch = task.encode(task.examples, model)
    answers = [batch.labels[i][batch.labels[i] != IGNORE].tolist() for i in range(len(QUESTIONS))]
    own = [task.codec.writer(model, task.codec, [task.codec.ids(e)[0]], 5)[0] for e in QUESTIONS]
    worth = [
        even(e, task.codec.said(a)) - even(e, task.codec.said(g))
        for e, a, g in zip(QUESTIONS, answers, own, strict=True)
    ]
    assert batch.extra["advantages"].tolist() == worth
    assert len(set(worth)) > 1


def test_without_scale_rewards_are_only_centred():
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "grpo", scale=False)
    assert found[0].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize(
    ("loss_type", "wanted"),
    [
        ("bnpo", -(1 * 1.0 + 4 * -0.5) / 5),  # TRL: (per_token_loss * mask).sum() / mask.sum()
        ("grpo", -(1.0 - 0.5) / 2),  # ((per_token_loss * mask).sum(-1) / mask.sum(-1)).mean()
        ("dr_grpo", -(1 * 1.0 + 4 * -0.5) / (2 * 5)),  # (per_token_loss * mask).sum() / (B * max_completion_length)
    ],
)
def test_the_normalisations_of_an_answer_of_one_token_and_one_of_four(loss_type, wanted):
    objective, model, codec = rft(loss_type=loss_type, beta=0.0), tiny_model(), byte_codec()
    batch = codec.batch(QUESTIONS[:2], [[65], [66, 67, 68, 69]])
    batch.extra["advantages"], total = torch.tensor([1.0, -0.5]), batch.counts()
    batch.total = total
    assert objective.forward(model, batch).loss.item() == pytest.approx(wanted)
    parts = [batch.rows([row]) for row in (1, 0)]  # cut into parts it is the same
    for part in parts:
        part.total = total
    assert sum(objective.forward(model, part).loss.item() for part in parts) == pytest.approx(wanted)


def test_the_kl_is_clamped_as_in_easyr1():
    d = torch.tensor([2.0, 15.0, 25.0, -25.0], requires_grad=True)
    clamped = low_variance_kl(d, torch.zeros(4), 10.0)
    assert clamped.tolist() == pytest.approx([math.exp(2) - 3, 10.0, 10.0, 10.0])
    assert torch.autograd.grad(clamped.sum(), d)[0].tolist() == pytest.approx([math.exp(2) - 1, 0.0, 0.0, 0.0])
    assert low_variance_kl(d, torch.zeros(4))[1].item() == pytest.approx(3.269e6, rel=1e-3)


def test_rloo_with_the_kl_in_the_reward_by_hand():
    """Ahmadian et al.: r - beta (log pi - log pi_ref) of the whole answer, and nothing in the loss."""
    objective, plain, model = (
        rft(algorithm="rloo", beta=0.5, kl_in="reward", reward_weights=(1.0, 0.0)),
        rft(algorithm="rloo", beta=0.0, reward_weights=(1.0, 0.0)),
        tiny_model(),
    )
    start = tiny_model()
    task = view(objective)
    objective.before_task(model, task)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    batch, other = task.encode(task.examples, model), view(plain).encode(task.examples, model)
    assert torch.equal(batch.labels, other.labels)
    said = [token_logprobs(m(**batch.inputs).logits, batch.labels).sum(1) for m in (model, start)]
    answers = [batch.labels[i][batch.labels[i] != IGNORE].tolist() for i in range(len(batch.labels))]
    right = torch.tensor([even(None, task.codec.said(answer)) for answer in answers])
    wanted = advantages((right - 0.5 * (said[0] - said[1])).view(-1, 4), "rloo").flatten()
    assert torch.allclose(batch.extra["advantages"], wanted, atol=1e-4)
    assert not torch.allclose(batch.extra["advantages"], other.extra["advantages"], atol=1e-2)
    other.extra["advantages"] = batch.extra["advantages"]
    assert objective.forward(model, batch).loss.item() == pytest.approx(plain.forward(model, other).loss.item())


def test_further_rewards_by_name_and_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def short(example, answer):\n    return 1 / (1 + len(answer))\n")
    further = {"exact_match": 0.5, f"{file}:short": 2.0}
    objective, codec = rft(rewards=further, reward_weights=(0.0, 0.1)), byte_codec()
    task = task_view([ask("q", "ab")], objective, codec=codec, score=lambda e, a: 0.0)
    right, cut = [*b"ab", codec.eos], [*b"x"]
    found = objective.reward(task, task.examples, [[right, cut]])[0].tolist()
    assert found == pytest.approx([0.1 + 0.5 + 2 / 3, 1.0])
    before = objective.sources()
    assert list(before) == [f"rewards.{file}:short"]  # what is built in is known by the toolkit
    file.write_text("def short(example, answer):\n    return 0.0\n")
    assert rft(rewards=further).sources() != before
    for name, message in (("exact", "objective.rewards: unknown scorer 'exact'"), ("perplexity", "reads likelihood")):
        with pytest.raises(UserError, match=message):
            rft(rewards={name: 1.0})
