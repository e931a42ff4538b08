"""A strategy asks what an objective gives, never what it is called: one that none has heard of works with all it can."""

import pytest
import torch
from longer import AT_EACH_HOOK, long_but
from tiny import tiny_run_config, trajectory

from cl_toolkit import Strategy, Tags, UserError
from cl_toolkit.config.refusals import conflict
from cl_toolkit.models.logits import target_logits
from cl_toolkit.objective import Objective
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.types import IGNORE, Outputs


class LM(Objective):
    """-log p of every token, those of the prompt included: plain language modelling."""

    gives = frozenset({"logits", "true_targets"})

    def encode(self, model, task, examples):
        batch = task.codec.batch(examples)
        wanted = batch.inputs["attention_mask"].bool() & (batch.labels != IGNORE).any(1, keepdim=True)
        batch.labels = torch.where(wanted, batch.inputs["input_ids"], IGNORE)
        batch.labels[:, 0] = IGNORE
        if batch.targets is not None:  # of rows that are only looked at
            batch.targets = batch.inputs["input_ids"].where(batch.inputs["attention_mask"].bool(), IGNORE)
            batch.targets[:, 0] = IGNORE
        return batch

    def forward(self, model, part):
        logits = target_logits(model, part)
        losses = torch.nn.functional.cross_entropy(logits, part.asked.labels, reduction="none")
        return Outputs(loss=part.asked.total(losses) / max(part.total["tokens"], 1), logits=logits)


class Wants(Strategy):
    tags = Tags(needs=frozenset({"wishes"}))


GUEST = {"name": f"{__name__}:LM"}
ABLE = [
    name
    for name in STRATEGIES
    if (tags := STRATEGIES.get(name, "test").tags).needs <= LM.gives and None in tags.life_cycles and not tags.validates
]


def test_a_guest_objective_has_many_strategies_to_work_with():
    assert set(ABLE) >= {"ewc", "lwf", "der", "derpp", "logit_swap", "replay", "agem", "si"}


@pytest.mark.parametrize("name", long_but(AT_EACH_HOOK, ABLE))
def test_a_guest_objective_works_with_a_strategy(name, tmp_path):
    plain = trajectory(tmp_path / "plain", objective=GUEST)
    beside = trajectory(tmp_path / "beside", objective=GUEST, strategies={name: {}})
    assert beside.record["status"] == "finished"
    assert beside != plain


def test_a_guest_objective_gives_no_prototypes():
    with pytest.raises(
        UserError, match=r"needs features and prototypes, which objective .*:LM does not give; use supcon$"
    ):
        tiny_run_config(objective=GUEST, strategies={"prototype_distill": {}})


def test_what_no_objective_gives_is_refused():
    assert not any("wishes" in OBJECTIVES.get(name, "test").gives for name in OBJECTIVES)
    wants = f"{__name__}:Wants"
    refusal = f"needs wishes, which objective sft does not give; no objective gives all that {wants} needs"
    with pytest.raises(UserError, match=refusal):
        tiny_run_config(strategies={wants: {}})


def test_two_strategies_whose_needs_no_objective_gives_are_both_named():
    with pytest.raises(UserError, match="no objective gives all that lwf and prototype_distill need"):
        tiny_run_config(strategies={"lwf": {}, "prototype_distill": {}})


def test_a_subclass_owns_what_its_parent_owns():
    class Mine(STRATEGIES.get("replay", "test")):
        pass

    assert conflict(Mine.tags, STRATEGIES.get("power_law", "test").tags) == "only one of them can own rehearsal"
