"""Layers for an adapter that are chosen by their condition numbers (`target_modules: kappa`)."""

import pytest
import torch
from peft.helpers import find_kappa_target_modules
from pieces import tiny_model
from tiny import TINY, stopped_and_the_same, tiny_config

from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.sections import Adapter
from cl_toolkit.models.targets import check_targets
from cl_toolkit.models.tiny import TinyLM
from cl_toolkit.study.cells import load_run
from cl_toolkit.study.plan import fitting

HEAD = "lm_head"


def linear(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != HEAD}


def adapted(model, wanted, life="continue", index=0):
    model = adapters.begin_task(model, Adapter(r=2, target_modules=wanted, between_tasks=life), index, 0)
    return [name for name, *_ in adapters.pairs(model)]


def test_it_picks_all_but_the_ill_conditioned_layer():
    """Seven layers, six of condition number 1: of 0.9 of them, six."""
    model = tiny_model()
    names = set(linear(model))
    for layer in linear(model).values():
        torch.nn.init.orthogonal_(layer.weight)
    ill = "model.layers.0.mlp.up_proj"
    model.get_submodule(ill).weight.data[0] *= 1e-3
    assert set(adapted(model, "kappa(0.9)")) == names - {ill}


def test_it_picks_what_peft_picks_without_a_head():
    model = tiny_model(seed=3)
    model.lm_head = torch.nn.Identity()
    for wanted, share in (("kappa", 0.2), ("kappa(0.5)", 0.5), ("kappa(1)", 1.0)):
        theirs = find_kappa_target_modules(model, top_p=share, show_progress=False)["target_modules"]
        mine = check_targets(with_head := tiny_model(seed=3), Adapter(target_modules=wanted))
        assert list(mine) == theirs
        assert with_head.get_output_embeddings() not in mine.values()


def test_the_order_is_that_of_fp64():
    model = tiny_model(seed=1)
    kappa = {n: torch.linalg.cond(m.weight.detach().double()).item() for n, m in linear(model).items()}
    assert list(check_targets(model, Adapter(target_modules="kappa(.5)"))) == sorted(kappa, key=kappa.__getitem__)[:3]


def test_a_stack_keeps_the_choice():
    model = tiny_model()
    chosen = adapted(model, "kappa(0.4)", "stack")
    adapter = Adapter(r=2, target_modules="kappa(0.4)", between_tasks="stack")
    model = adapters.begin_task(tiny_model(), adapter, 0, 0)
    for _, layer in adapters.layers(model):
        layer.get_base_layer().weight.data.mul_(torch.rand(1)).add_(torch.eye(*layer.get_base_layer().weight.shape))
    model = adapters.begin_task(model, adapter, 1, 0)
    assert [name for name, *_ in adapters.pairs(model)] == chosen
    assert [len(past) for _, past in adapters.frozen_pairs(model)] == [1] * 2


def test_without_weights_there_are_as_many():
    assert len(check_targets(TinyLM().skeleton(), Adapter(target_modules="kappa(0.5)"))) == len(
        check_targets(TinyLM().load(0), Adapter(target_modules="kappa(0.5)"))
    )


@pytest.mark.parametrize(("wanted", "said"), [("kappa", True), ("all-linear", False), (["q_proj"], False)])
def test_a_plan_says_that_it_does_not_know_which(wanted, said):
    config = load_run(tiny_config(model={**TINY, "adapter": {"r": 2, "target_modules": wanted}}))
    told = "target_modules: kappa: as many layers are counted, but which, the"
    assert any(told in note for note in fitting(config, build_stream(config))) == said


@pytest.mark.parametrize("wanted", ["kappa(0)", "kappa(2)", "kappa(a)", "kappa("])
def test_a_share_that_is_none_is_refused(wanted):
    expected = (
        r"model.adapter.target_modules: expected kappa, or with the share of the layers, .* kappa\(0.5\); got 'kappa\("
    )
    with pytest.raises(UserError, match=expected):
        TinyLM().check(Adapter(target_modules=wanted), False)


@pytest.mark.parametrize("section", [{"between_tasks": "merge"}, {"type": "dora"}])
def test_a_run_that_is_stopped_goes_on(tmp_path, section):
    """Merged, the layers are chosen anew in each task."""
    changes = {"model": {**TINY, "adapter": {"r": 2, "target_modules": "kappa(0.3)", **section}}}
    stopped_and_the_same(tmp_path, **changes)


@pytest.mark.parametrize(("wrong", "right"), [("kapa", "kappa"), ("Kappa", "kappa"), ("all-liner", "all-linear")])
def test_a_slip_of_the_pen_is_shown_the_right_word(wrong, right):
    with pytest.raises(UserError, match=f"no layer matches '{wrong}' .*; did you mean {right}\\?"):
        check_targets(tiny_model(), Adapter(target_modules=wrong))
