"""Reinforcement fine-tuning on verifiable rewards: GRPO, RLOO and ReMax, with rollout-based instance filtering.

    L = - mean over answer tokens of min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta KL,   rho = pi / pi_old

Lai et al. 2025, arXiv 2507.05386 (RFT in continual post-training). GRPO: Shao et al. 2024, arXiv 2402.03300. RLOO:
Ahmadian et al. 2024, arXiv 2402.14740. ReMax: Li et al. 2023, arXiv 2310.10505. Dr. GRPO: Liu et al. 2025, arXiv 2503.20783.
Low-variance KL: Schulman's k3 estimator. Names of settings are TRL's.

As published: GRPO is loss_type grpo; Dr. GRPO loss_type dr_grpo with scale_rewards false; RLOO algorithm rloo with kl_in
reward; the code of Lai et al. (EasyR1) has kl_max 10. TRL adds 1e-4 to the standard deviation, EasyR1 and we 1e-6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.engine.access import eval_mode, evaluating, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.measure.rewards import Rewards
from cl_toolkit.models.logits import predicted
from cl_toolkit.models.rollouts import divided, greedy, sampled
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.objective import Objective
from cl_toolkit.ranges import above, at_least, refuse_idle
from cl_toolkit.strategy import Cost
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from cl_toolkit.models.text import TextCodec
    from cl_toolkit.sources import Source
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example

torch = LazyModule("torch")


def advantages(rewards: Tensor, algorithm: str, baseline: Tensor | None = None, scale: bool = True) -> Tensor:
    """Advantages of rollouts, each against the others of its prompt. rewards (B, n) -> (B, n).

    grpo: (r - mean) / (std + 1e-6) with the n-1 estimate of std; not divided without `scale`. rloo: r minus the mean of the
    other n-1. remax: r minus the reward of the greedy answer, `baseline` (B,).
    """
    if algorithm == "remax":
        assert baseline is not None
        return rewards - baseline[:, None]
    # equal rewards carry no signal at all; their rounded mean may differ from them
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    centred = torch.where(equal, 0.0, rewards - rewards.mean(1, keepdim=True))
    if algorithm == "rloo":
        n = rewards.shape[1]
        return centred * n / (n - 1)
    return centred / (rewards.std(1, keepdim=True) + 1e-6) if scale else centred


def low_variance_kl(reference: Tensor, logp: Tensor, most: float | None = None) -> Tensor:
    """exp(d) - d - 1 with d = log pi_ref - log pi, per token: never negative, 0 where both agree. most: it is clamped there,
    and d to 20 on both sides, as in EasyR1; what is clamped has no gradient."""
    d = reference - logp
    if most is None:
        return torch.exp(d) - d - 1
    d = d.clamp(-20, 20)
    return (torch.exp(d) - d - 1).clamp(max=most)


def informative(accuracy: Tensor, rule: str) -> Tensor:
    """Which prompts to keep, by their rollouts' accuracy (B, n) -> (B,) bool.

    incompetent: drop those without a right rollout. zero_variance: drop those whose rollouts are all equally good (all
    right or all wrong). Both readings of the paper's filter are in circulation; both look at accuracy, since the format
    alone varies.
    """
    return accuracy.any(1) if rule == "incompetent" else (accuracy != accuracy[:, :1]).any(1)


class RFT(Objective):
    """Policy gradient on the model's own answers, with a KL to the model at the start of the task.

    Reward: 0.9 accuracy + 0.1 format (`reward_weights`), and further `rewards`. Accuracy is the task's scorer. Format is 1 for
    an answer that ended by itself and matches `format_pattern` as a whole. Counts are of the whole step, so that bnpo is TRL's
    dapo too (and the token mean of verl and EasyR1). Each of the `global_batch_size` prompts gets `num_generations` rollouts.
    """

    paper = "Lai et al. 2025, arXiv 2507.05386"
    gives = frozenset({"logits"})
    needs = frozenset({"logits", "generates"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """algorithm: advantages; grpo divides by the standard deviation unless scale_rewards is false. loss_type: bnpo (mean
        over all answer tokens of the step), grpo (mean over answers of the mean over an answer's tokens), dr_grpo (sum over
        the number of answers times max_completion_length). num_generations: rollouts per prompt. beta: weight of the KL; 0: no
        reference is kept. kl_in: the loss (k3, per token), or each rollout's reward (k1, summed over its tokens). kl_max: clamp
        of a token's KL in the loss. epsilon: clip of the ratio; it acts only when num_iterations (updates per rollout) is above
        1. instance_filter: examples dropped before a task, by rollouts of the model at that time. rewards: further ones,
        scorers by name or `file.py:function`, and their weights; one of which less is better counts below 0."""

        algorithm: Literal["grpo", "rloo", "remax"] = "grpo"
        loss_type: Literal["bnpo", "grpo", "dr_grpo"] = "bnpo"
        scale_rewards: bool = True
        num_generations: Annotated[int, at_least(1)] = 8
        max_completion_length: Annotated[int, at_least(1)] = 32
        temperature: Annotated[float, above(0)] = 1.0
        beta: Annotated[float, at_least(0)] = 0.01
        kl_in: Literal["loss", "reward"] = "loss"
        kl_max: Annotated[float, above(0)] | None = None
        epsilon: Annotated[float, above(0)] = 0.2
        num_iterations: Annotated[int, at_least(1)] = 1
        instance_filter: Literal["none", "incompetent", "zero_variance"] = "none"
        reward_weights: tuple[Annotated[float, at_least(0)], Annotated[float, at_least(0)]] = (0.9, 0.1)
        rewards: dict[str, Annotated[float, at_least(0)]] = field(default_factory=dict, hash=False)
        format_pattern: str = r"\S.*"

        def __post_init__(self) -> None:
            if self.num_generations < 2 and self.algorithm != "remax":
                raise ValueError(f"num_generations: expected 2 or more, got {self.num_generations}")
            if not any((*self.reward_weights, *self.rewards.values())):
                raise ValueError("reward_weights: expected one above 0, got two zeros: nothing would be rewarded")
            refuse_idle(self, self.algorithm != "grpo", f"with algorithm {self.algorithm}", "scale_rewards")
            refuse_idle(self, self.kl_in == "reward", "with kl_in reward: the loss has no KL", "kl_max")
            alone = self.num_generations == 1 and self.instance_filter == "zero_variance"
            refuse_idle(self, alone, "with num_generations 1: one rollout is as good as itself", "instance_filter")
            refuse_idle(self, self.num_iterations == 1, "with num_iterations 1: the ratio is 1", "epsilon")
            refuse_idle(self, self.reward_weights[1] == 0, "with a weight of 0 for the format", "format_pattern")
            try:
                re.compile(self.format_pattern)
            except re.error as error:
                raise ValueError(f"format_pattern: not a regular expression: {error}") from error

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.updates, self.copies = self.config.num_iterations, self.config.num_generations
        self.reference = Teacher()
        self.further = Rewards(self.config.rewards, "objective.rewards")

    def cost(self) -> Cost:
        # sampling reads a row once, token by token, which takes about as long as three forwards
        greedy = 3.0 / self.copies if self.config.algorithm == "remax" else 0.0
        asked = 0 if self.config.beta == 0 else 2 if self.config.kl_in == "reward" else 1
        return Cost(
            forwards=3.0 + greedy + asked,
            calls=self.config.max_completion_length,
            copies=float(self.config.beta > 0),
        )

    @property
    def answer_limit(self) -> tuple[str, int] | None:
        return "max_completion_length", self.config.max_completion_length

    @property
    def extra_parameters(self) -> int:
        return self.reference.parameters

    def sources(self) -> dict[str, Source]:
        return self.further.sources()

    def before_task(self, model: nn.Module, task: TaskView) -> TaskView:
        if self.config.beta > 0:
            self.reference.take(model)
        if self.config.instance_filter == "none":
            return task
        mine = task.share(task.examples)
        accuracy, _ = self.score(task, mine, self.sample(model, task, mine, label="filter"))
        keep = informative(torch.tensor(task.gather(accuracy.tolist())), self.config.instance_filter).tolist()
        kept = [e for e, good in zip(task.examples, keep, strict=True) if good]
        # a task without a learnable example keeps them all: its rewards carry no signal and do no harm
        return task.keep(kept) if kept else task

    def sample(
        self, model: nn.Module, task: TaskView, examples: Sequence[Example], label: str = "rollout"
    ) -> list[list[list[int]]]:
        """Rollouts of the current model: token ids per example and sample."""
        settings = self.config
        found = sampled(
            model,
            task,
            examples,
            settings.num_generations,
            settings.max_completion_length,
            settings.temperature,
            label,
        )
        self.rollouts += len(examples) * settings.num_generations
        return found

    def score(
        self, task: TaskView, examples: Sequence[Example], rollouts: list[list[list[int]]]
    ) -> tuple[Tensor, Tensor]:
        """(accuracy, format) of rollouts, each (B, n) with values in [0, 1]."""
        assert task.score is not None  # a run's tasks have a scorer
        said = [[task.codec.said(a) for a in row] for row in rollouts]
        accuracy = [[task.score(e, text) for text in row] for e, row in zip(examples, said, strict=True)]
        shaped = [
            [self.well_formed(task.codec, answer, text) for answer, text in zip(*both, strict=True)]
            for both in zip(rollouts, said, strict=True)
        ]
        return torch.tensor(accuracy), torch.tensor(shaped)

    def well_formed(self, codec: TextCodec, answer: list[int], text: str) -> float:
        """1 for an answer that ended by itself and whose text matches the pattern."""
        matches = re.fullmatch(self.config.format_pattern, text, re.DOTALL) is not None
        return float(codec.ended(answer) and matches)

    def reward(self, task: TaskView, examples: Sequence[Example], rollouts: list[list[list[int]]]) -> Tensor:
        """What rollouts are worth, (B, n)."""
        accuracy, shaped = self.score(task, examples, rollouts)
        weight_accuracy, weight_format = self.config.reward_weights
        return weight_accuracy * accuracy + weight_format * shaped + self.further(task, examples, rollouts)

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        n, settings = self.config.num_generations, self.config
        rollouts = self.sample(model, task, examples)
        rewards, baseline = self.reward(task, examples, rollouts), None
        rows = [e for e in examples for _ in range(n)]
        batch = task.codec.batch(rows, [answer for row in rollouts for answer in row])
        if self.reference and settings.kl_in == "reward":
            rewards = rewards - settings.beta * self.drift(model, batch).view(-1, n)
        if settings.algorithm == "remax":
            likeliest = greedy(model, task, examples, settings.max_completion_length)
            baseline = self.reward(task, examples, [[answer] for answer in likeliest])[:, 0]
        found = advantages(rewards, settings.algorithm, baseline, settings.scale_rewards)
        batch.extra["advantages"] = found.flatten()
        return batch

    def drift(self, model: nn.Module, batch: Batch) -> Tensor:
        """log pi - log pi_ref of each row's answer, (E,): the k1 estimate of the KL, summed over the answer."""
        found, device = [], next(model.parameters()).device
        for chosen in divided(model, list(range(len(batch.examples)))):
            part = batch.rows(chosen).to(device)
            reference = self._reference_logp(model, part)
            assert reference is not None  # it is asked for where there is one
            with evaluating(unwrapped(model), plain=False):
                apart = predicted(model, part, self.config.temperature, logits=False).logp - reference
            found.append(apart.new_zeros(len(chosen)).index_add(0, part.asked.examples, apart).cpu())
        return torch.cat(found)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        # without dropout, as the rollouts were sampled: at unchanged weights the ratio is 1 and the KL is 0
        reference = self._reference_logp(model, part) if self.config.kl_in == "loss" else None
        with eval_mode(unwrapped(model)):
            said = predicted(model, part, self.config.temperature)
        asked, logp = part.asked, said.logp  # (N,)
        # by the model that sampled: what it is at the first update
        old = logp.detach() if self.updates == 1 else part.memo.setdefault("old", logp.detach())
        ratio = torch.exp(logp - old)
        advantage = part.extra["advantages"].to(logp)[asked.examples]
        clipped = ratio.clamp(1 - self.config.epsilon, 1 + self.config.epsilon)
        per_token = -torch.minimum(ratio * advantage, clipped * advantage)
        if reference is not None:
            per_token = per_token + self.config.beta * low_variance_kl(reference, logp, self.config.kl_max)
        return Outputs(loss=self.averaged(part, per_token), logits=said.logits)

    def averaged(self, part: Batch, values: Tensor) -> Tensor:
        """This part's share in the mean over the step of values (N,), one for each answer token."""
        asked, answers = part.asked, max(part.total["sequences"], 1)
        if self.config.loss_type == "bnpo":
            return asked.total(values) / max(part.total["tokens"], 1)
        if self.config.loss_type == "dr_grpo":
            return asked.total(values) / (answers * self.config.max_completion_length)
        lengths = torch.bincount(asked.examples, minlength=len(part.examples))
        return asked.total(values / lengths[asked.examples]) / answers

    def _reference_logp(self, model: nn.Module, part: Batch) -> Tensor | None:
        """log p of the part's targets by the model at the task's start, (N,); None without a reference."""
        if not self.reference:
            return None
        if "reference" not in part.memo:
            with self.reference(model):
                part.memo["reference"] = predicted(model, part, self.config.temperature, logits=False).logp
        return part.memo["reference"]
