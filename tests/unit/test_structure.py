"""What a strategy adds to a model or unfreezes survives a stop, under every adapter life cycle."""

from itertools import pairwise

import pytest
import torch
from longer import long_but
from tiny import TINY, Trajectory, stop_after_a_task, tiny_run_config, trajectory

from cl_toolkit import UserError
from cl_toolkit.check.runs import TASKS
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.strategy import Strategy

LIVES = (None, "continue", "merge", "stack")


class AddsAHead(Strategy):
    """A head for the first task, a second one for the second, both trained to the end; built, so that they come back."""

    def build(self, model, index):
        if index < 2:
            draw = torch.Generator().manual_seed(index)
            head = torch.nn.Linear(3, 1, bias=False)
            head.weight.data = torch.randn(1, 3, generator=draw)
            setattr(model, f"bonus{index}", head)
        return model

    def heads(self, model):
        return [head for i in range(2) if (head := getattr(model, f"bonus{i}", None)) is not None]

    def before_task(self, model, task):
        for head in self.heads(model):
            head.requires_grad_(True)
        return model

    def loss(self, model, part, out):
        share = part.counts()["sequences"] / part.total["sequences"]
        return {"bonus": share * sum(((head.weight - 1) ** 2).sum() for head in self.heads(model))}


class UnfreezesNorms(Strategy):
    """Trains the norms beside the adapter, from the first task on; said once, where adapters leave it alone."""

    def before_task(self, model, task):
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.requires_grad_(True)
        return model


class FreezesOnce(Strategy):
    """Keeps the embedding as it is from the first task on, and says so in the first task only."""

    def before_task(self, model, task):
        if task.index == 0:
            model.get_input_embeddings().weight.requires_grad_(False)
        return model


class AddsAHeadLate(AddsAHead):
    """The same heads, made where they are not made again."""

    def build(self, model, index):
        return model

    def before_task(self, model, task):
        return super().before_task(super().build(model, task.index), task)


def changes(cls, life):
    adapter = {"r": 2, "lora_alpha": 4, "between_tasks": life}
    return {
        "stream": {"tasks": TASKS},
        "strategies": {f"{__name__}:{cls.__name__}": {}},
        "model": {**TINY, "adapter": adapter} if life else TINY,
    }


def stopped(folder, config):
    run = Run(config, folder, None)
    stop_after_a_task(run)
    return Run(config, folder, None)


SURVIVES = [(cls, life) for cls in (AddsAHead, UnfreezesNorms, FreezesOnce) for life in LIVES]


@pytest.mark.parametrize(("cls", "life"), long_but([*SURVIVES[::3], (UnfreezesNorms, "continue")], SURVIVES))
def test_what_is_added_or_unfrozen_survives_a_stop(tmp_path, cls, life):
    whole = trajectory(tmp_path / "whole", **changes(cls, life))
    again = Trajectory(stopped(tmp_path / "stopped", tiny_run_config(**changes(cls, life))))
    assert again.losses[4:] == whole.losses[4:]
    assert again.weights == whole.weights
    assert comparable(again.record) == comparable(whole.record)


@pytest.mark.parametrize("life", LIVES)
def test_added_heads_are_trained_in_every_task(tmp_path, life):
    found = trajectory(tmp_path, **changes(AddsAHead, life))
    terms = [row["bonus"] for row in found.losses]
    assert all(b < a for task in (terms[:4], terms[4:8], terms[8:]) for a, b in pairwise(task))
    weights = dict(found.run.model.named_parameters())
    assert [n.rpartition("bonus")[2] for n in weights if "bonus" in n] == ["0.weight", "1.weight"]


@pytest.mark.parametrize("life", LIVES)
def test_a_head_that_is_not_built_is_refused_on_going_on(tmp_path, life):
    run = stopped(tmp_path, tiny_run_config(**changes(AddsAHeadLate, life)))
    with pytest.raises(UserError, match=r"the weight .*bonus0.weight has no place in this model; .* hook `build`"):
        run.execute()


def test_norms_are_trained_beside_the_adapter(tmp_path):
    found = trajectory(tmp_path, **changes(UnfreezesNorms, "continue"))
    norms = [p for n, p in found.run.model.named_parameters() if "norm" in n]
    assert all((p != 1).any() for p in norms)
