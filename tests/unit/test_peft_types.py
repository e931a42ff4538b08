"""Adapters of PEFT's other types: their keys, what can be done with them, and runs that stop and go on."""

import subprocess
import sys

import pytest
import torch
from longer import AT_EACH_HOOK, long_but
from peft import PeftModel
from pieces import ask, byte_codec, equal, task_view, tiny_model, train, weights_of
from tiny import Trajectory, stop_after_a_task, tiny_config, tiny_run_config, trajectory
from transformers import AutoModelForCausalLM

import cl_toolkit as cl
from cl_toolkit.config.build import adapter_of
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters, trials
from cl_toolkit.models.peft_types import known
from cl_toolkit.models.sections import Adapter
from cl_toolkit.models.targets import check_targets
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch says it of PEFT's shira
EXAMPLES = [ask(q, q[::-1]) for q in ("ab", "cde", "fghi", "j")]
IA3 = {"type": "ia3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
TYPES = {
    "dora": {"type": "dora", "r": 2},
    "ia3": IA3,
    "oft": {"type": "oft", "oft_block_size": 4},
    "shira": {"type": "shira", "r": 2},
    "pissa": {"type": "pissa", "r": 2},
    "osf": {"type": "osf"},
    "ln_tuning": {"type": "ln_tuning"},
    "tied": {"r": 2, "modules_to_save": ["lm_head"]},
    "modules_to_save": {"r": 2, "modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
}


def adapter(**section):
    return adapter_of(section, "file.yaml")


def model_of(section):
    return {**tiny_config()["model"], "adapter": section}


def logits(model):
    with torch.no_grad():
        return model.eval()(**byte_codec().batch(EXAMPLES).inputs).logits


def test_types_are_those_that_peft_has():
    assert {"lora", "dora", "rslora", "pissa", "olora", "ia3", "oft", "boft", "osf", "shira", "vera", "loha"} <= set(
        known()
    )
    assert adapter(type="ln-tuning").type == "ln_tuning"
    assert isinstance(adapter(r=3, use_rslora=True), Adapter)  # nothing of PEFT is asked
    with_more = adapter(r=3, use_dora=True)
    assert with_more.settings() == {**Adapter(r=3).settings(), "use_dora": True}


@pytest.mark.parametrize(("section", "message"), [
    ({"type": "shyra"}, r"file.yaml: model.adapter.type: unknown type 'shyra'; did you mean 'shira'"),
    ({"type": "shira", "rank": 2}, r"file.yaml: model.adapter.rank: unknown key"),
    ({"type": "oft", "oft_blok_size": 2}, r"model.adapter.oft_blok_size: unknown key; did you mean 'oft_block_size'"),
    ({"type": "oft", "oft_block_size": "big"}, r"model.adapter.oft_block_size: expected .*whole number.*, got 'big'"),
    ({"r": 2, "modules_to_safe": []}, r"model.adapter.modules_to_safe: unknown key; did you mean 'modules_to_save'"),
    ({"type": "dora", "use_dora": True}, r"model.adapter.use_dora: unknown key"),
    ({"r": 0, "use_dora": True}, r"model.adapter.r: expected .*1"),
    ({"type": "shira", "between_tasks": "merged"}, r"between_tasks: expected continue | merge | stack"),
])  # fmt: skip
def test_a_wrong_key_is_refused_with_the_nearest_right_one(section, message):
    with pytest.raises(UserError, match=message):
        adapter(**section)


@pytest.mark.parametrize(("section", "message"), [
    ({"type": "prompt_tuning", "num_virtual_tokens": 2}, r"model.adapter.type: prompt_tuning: puts virtual tokens before"),
    ({"type": "eva"}, r"model.adapter.type: eva: begins with more of training examples than the inputs"),
    ({"r": 2, "corda_config": {"corda_method": "kpm"}}, r"corda_config: does nothing with type lora; use type corda, or"),
    ({"type": "pissa", "eva_config": {"rho": 2.0}}, r"model.adapter.eva_config: does nothing with type pissa; leave it out"),
    ({"init_lora_weights": "lora_ga"}, r"model.adapter.type: lora: begins with more of training examples"),
    ({"type": "adalora", "total_step": 9}, r"model.adapter.type: adalora: must be told of each optimizer step"),
    ({"type": "adalora"}, r"model.adapter.type: adalora: must be told of each optimizer step"),
    ({"type": "poly"}, r"model.adapter: PEFT refuses it: ValueError: task_ids"),
    ({"type": "lily", "between_tasks": "merge"}, r"between_tasks: merge: an adapter of type lily cannot: .* continue or stack"),
    ({"type": "osf", "between_tasks": "stack"}, r"between_tasks: stack: an adapter of type osf cannot: .* continue or merge"),
    ({**TYPES["modules_to_save"], "between_tasks": "stack"}, r"between_tasks: stack: .*lora cannot: "),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_a_model_is_loaded(section, message):
    with pytest.raises(UserError, match=message):
        tiny_run_config(model=model_of(section))


@pytest.mark.parametrize(("strategy", "life"), [("reg_lora", "merge"), ("o_lora", "stack")])
def test_a_strategy_of_lora_pairs_says_so(strategy, life):
    with pytest.raises(
        UserError, match=rf"strategies.{strategy}: needs pairs of the adapter, which type dora does not give"
    ):
        tiny_run_config(model=model_of({**TYPES["dora"], "between_tasks": life}), strategies={strategy: {}})
    assert tiny_run_config(model=model_of({"type": "rslora", "between_tasks": life}), strategies={strategy: {}})


def test_a_trial_of_plain_lora_says_what_is_taken_for_granted():
    assert trials.abilities(adapter(type="lora", r=8, bias="none")) == Adapter.known
    assert "stack" in trials.abilities(adapter(bias="all")).cannot  # of the biases there is one


@pytest.mark.parametrize("life", ["continue", "merge", "stack"])
@pytest.mark.parametrize("name", ["dora", "ia3", "oft", "shira"])
def test_each_life_cycle_is_what_it_is_of_lora(name, life):
    its, model = adapter(**TYPES[name], between_tasks=life), tiny_model()
    start, base = weights_of(model), logits(model)
    for index in range(2):
        before = logits(model)
        model = adapters.begin_task(model, its, index, 0)
        torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)
        label = f"task{0 if life == 'continue' else index}"
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {n for n in adapters.weights(model) if adapters.is_of(n, label)}
        assert list(adapters.loaded(model))[-1] == label
        frozen = {n: w for n, w in weights_of(model).items() if n not in trained}
        train(model, task_view(EXAMPLES), learning_rate=0.05)
        assert all(torch.equal(model.state_dict()[n], w) for n, w in frozen.items())
        after = logits(model)
        assert not torch.allclose(after, before, atol=1e-3)
        if life != "merge":
            with adapters.disabled(model):
                torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=1e-5)
        model = adapters.end_task(model, its)
        torch.testing.assert_close(logits(model), after, atol=1e-3, rtol=1e-3)
    assert (set(model.state_dict()) == set(start)) == (life == "merge")


def test_who_edits_gradients_by_hooks_is_refused_with_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"model.adapter.type: osf edits gradients in hooks .* use one process"):
        tiny_run_config(model=model_of(TYPES["osf"]))
    assert tiny_run_config(model=model_of(TYPES["oft"]))


def test_modules_to_save_are_trained_whole():
    model = adapters.begin_task(tiny_model(), adapter(**TYPES["modules_to_save"]), 0, 0)
    whole = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    assert len(whole) == 3
    assert all(".mlp.modules_to_save.task0." in name for name in whole)
    with pytest.raises(UserError, match=r"model.adapter.modules_to_save: no layer mpl"):
        adapters.begin_task(tiny_model(), adapter(modules_to_save=["mpl"]), 0, 0)


def test_settings_that_name_no_layer_are_refused_and_those_of_the_models_own_layers_hold():
    for key, value in (
        ("rank_pattern", {"q_prj": 1}),
        ("alpha_pattern", {"mlp": 1}),  # a part of the model, and no adapted layer
        ("exclude_modules", ["q_prj"]),
    ):
        with pytest.raises(UserError, match=rf"model\.adapter\.{key}: no "):
            adapters.begin_task(tiny_model(), adapter(r=2, **{key: value}), 0, 0)
    for key, value in (("rank_pattern", {"*q_proj": 1}), ("exclude_modules", "(q_proj")):
        with pytest.raises(UserError, match=rf"model\.adapter\.{key}: '.*q_proj' is no pattern: "):
            adapters.begin_task(tiny_model(), adapter(r=2, **{key: value}), 0, 0)
    weights = {"target_modules": ["q_proj"], "target_parameters": ["k_proj.weight"]}
    check_targets(tiny_model(), adapter(r=2, **weights, rank_pattern={"k_proj.weight": 1}))  # as PEFT calls a weight
    section = {
        "r": 2,
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 1},
        "runtime_config": {"ephemeral_gpu_offload": False},
    }
    its = tiny_run_config(model=model_of(section)).model.adapter  # the small model of the trial has other layers
    ranks = {
        layer.r["task0"]
        for name, layer in adapters.layers(adapters.begin_task(tiny_model(), its, 0, 0))
        if "q_proj" in name
    }
    assert 1 in ranks


def test_a_teacher_of_a_stack_is_without_the_adapters_that_came_after_it():
    its, model, teacher = adapter(**IA3, between_tasks="stack"), tiny_model(), Teacher()
    model = adapters.begin_task(model, its, 0, 0)
    teacher.take(model)
    start = logits(model)
    for index in range(2):
        model = adapters.begin_task(model, its, index, 0) if index else model
        train(model, task_view(EXAMPLES), learning_rate=0.5)
        said = logits(model)
        assert not torch.allclose(said, start, atol=1e-3)
        with teacher(model):
            torch.testing.assert_close(logits(model), start, atol=1e-5, rtol=1e-5)
        assert torch.equal(logits(model), said)


LIVES = [(name, life) for name in TYPES for life in ("continue", "merge")]


@pytest.mark.parametrize(("name", "life"), long_but([("tied", "merge"), *LIVES[::4]], LIVES))
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(name, life, tmp_path):
    config = {"model": model_of({**TYPES[name], "between_tasks": life})}
    whole = trajectory(tmp_path / "whole", **config)
    run = Run(tiny_run_config(**config), tmp_path / "stopped", None)
    stop_after_a_task(run)
    again = Trajectory(Run(run.config, run.folder, None))
    assert again == whole
    assert comparable(again.record) == comparable(whole.record)


STRATEGIES = {
    "replay": {},
    "ewc": {},
    "si": {},
    "lwf": {},
    "agem": {},
    "der": {},
    "logit_swap": {},
    "merge": {},
    "ema": {},
}


PAIRS = [(strategy, name) for strategy in STRATEGIES for name in ("dora", "shira")]


@pytest.mark.parametrize(("strategy", "name"), long_but({(s, "dora") for s in AT_EACH_HOOK}, PAIRS))
def test_strategies_of_any_adapter_work(strategy, name, tmp_path):
    """Laws 1 and 2: on the first task, and switched off, they are sequential training."""
    common = {"model": model_of(TYPES[name]), "evaluate": {"forgetting_curve": {"schedule": "off"}}}
    alone = trajectory(tmp_path / "alone", **common)
    beside = trajectory(tmp_path / "beside", strategies={strategy: {}}, **common)
    assert alone != beside or strategy == "agem"  # whose gradients need not be in the way of each other
    off = dict(beside.run.strategy.tags.off)
    assert alone == trajectory(tmp_path / "off", strategies={strategy: off}, **common)
    if strategy != "logit_swap":  # the start model teaches from the first task on
        half = len(alone.losses) // 2
        assert alone.losses[:half] == beside.losses[:half]


def test_the_same_adapter_whatever_was_drawn_before():
    def made(seed):
        torch.manual_seed(seed)
        model = adapters.begin_task(tiny_model(), adapter(**TYPES["shira"]), 0, 0)
        return weights_of(adapters.end_task(model, adapter(**TYPES["shira"], between_tasks="merge")))

    assert equal(made(0), made(1))


def exported(section, folder, life, merge=False):
    """Logits of the live model after two tasks, and of what transformers and PEFT load of its folder."""
    changes = {"model": model_of({**section, "between_tasks": life}), "train": {"max_steps": 6, "learning_rate": 3e-2}}
    run = Run(tiny_run_config(**changes), folder / "run")
    run.execute()
    live, out = logits(run.model), cl.export(run.folder, folder / "out", merge=merge)
    whole = AutoModelForCausalLM.from_pretrained(out if merge else out / "base")
    return live, logits(whole if merge else PeftModel.from_pretrained(whole, out))


EXPORTED = pytest.mark.filterwarnings(  # what PEFT 0.21 says while it loads
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", "ignore:Unsupported layer type:UserWarning"
)


@EXPORTED
@pytest.mark.parametrize("name", ["dora", "ia3", "oft", "ln_tuning", "modules_to_save"])
def test_an_adapter_is_exported_as_peft_loads_it(name, tmp_path):
    assert torch.equal(*exported(TYPES[name], tmp_path, "continue"))


@EXPORTED
@pytest.mark.parametrize(("name", "life"), [("dora", "stack"), ("ia3", "stack"), ("pissa", "continue")])
def test_merged_there_is_no_adapter_to_load(name, life, tmp_path):
    live, found = exported(TYPES[name], tmp_path, life, merge=True)
    assert (live - found).abs().max() <= 1e-6 * max(1.0, float(live.abs().max()))


@pytest.mark.parametrize(("name", "life", "merge", "message"), [
    ("dora", "stack", False, r"cannot be joined into one \(a logit moves by .*--merge"),
    ("ia3", "stack", False, r"adapters of this type cannot be joined into one; --merge"),
    ("pissa", "continue", False, r"weights beside the adapter were changed, which its folder cannot hold; --merge"),
    ("oft", "stack", True, r"--merge: merging these adapters moves a logit by .*; in Python cl\.load_model"),
])  # fmt: skip
def test_what_would_be_loaded_as_another_model_is_not_exported(name, life, merge, message, tmp_path):
    """By what it says, not by its type."""
    with pytest.raises(UserError, match=message):
        exported(TYPES[name], tmp_path, life, merge)
    assert not list(tmp_path.glob("out*"))


def test_peft_says_nothing_of_kernels_that_it_will_not_use():
    """bitsandbytes, where it is installed, is imported with PEFT, by whatever comes first."""
    code = "from cl_toolkit.models import peft_types; peft_types.known()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
