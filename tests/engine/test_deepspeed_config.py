"""A user's DeepSpeed config against `train`."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from cl_toolkit.engine.deepspeed_config import final_config, offloaded, with_buckets, zero_stage
from cl_toolkit.engine.sections import Train
from cl_toolkit.errors import UserError

TRAIN = Train(
    num_train_epochs=1,
    max_steps=-1,
    global_batch_size=32,
    per_device_train_batch_size=4,
    learning_rate=3e-4,
    optim="adamw_torch",
    weight_decay=0.1,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_epsilon=1e-8,
    max_grad_norm=1.0,
    lr_scheduler_type="cosine",
    lr_scheduler_kwargs=None,
    warmup_ratio=0.0,
    lr_over="stage",
    lr_per_stage=None,
    bf16=True,
    packing=None,
    compile="none",
    gradient_checkpointing=False,
    logging_steps=10,
    num_threads=1,
)

HUGGING_FACE = {
    "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "offload_param": {"device": "cpu"}},
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95], "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": "auto"}},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": 1.0,
    "wall_clock_breakdown": True,
    "steps_per_print": "auto",
}


def test_the_rest_is_passed_through_and_auto_is_filled():
    final = final_config(HUGGING_FACE, TRAIN)
    assert final == {
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
        "wall_clock_breakdown": True,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
    }
    assert "auto" not in json.dumps(final).replace("torch_autocast", "")
    assert HUGGING_FACE["zero_optimization"]["reduce_bucket_size"] == "auto"  # the user's dict is not changed


def test_nothing_given_is_stage_2_and_a_config_without_zero_is_stage_0():
    assert zero_stage(final_config(None, TRAIN)) == 2
    assert zero_stage(final_config({}, TRAIN)) == 0


def test_a_file_is_the_same_as_its_content(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(HUGGING_FACE))
    assert final_config(str(path), TRAIN) == final_config(HUGGING_FACE, TRAIN)


@pytest.mark.parametrize(
    ("given", "key", "instead"),
    [
        ({"train_batch_size": 16}, "train_batch_size", "train.global_batch_size"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "train.per_device_train_batch_size"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps", "train.per_device_train_batch_size"),
        ({"gradient_clipping": 0.5}, "gradient_clipping", "train.max_grad_norm"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type", "train.optim"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}, "optimizer.params.lr", "train.learning_rate"),
        ({"optimizer": {"params": {"betas": [0.9, 0.9]}}}, "optimizer.params.betas", "train.adam_beta2"),
        ({"optimizer": {"params": {"momentum": 0.9}}}, "optimizer.params.momentum", "train.optim"),
        ({"optimizer": "adam"}, "optimizer", "type and params"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type", "train.lr_scheduler_type"),
        ({"scheduler": {"params": {"total_num_steps": 9}}}, "scheduler.params.total_num_steps", "train.warmup_ratio"),
        ({"bf16": {"enabled": False}}, "bf16", "train.bf16: false"),
        ({"torch_autocast": {"enabled": False}}, "torch_autocast", "train.bf16: false"),
        ({"fp16": {"enabled": True}}, "fp16", "train.bf16"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage", "0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage", "0, 1, 2 or 3"),
    ],
)
def test_a_contradiction_is_refused_in_one_line(given, key, instead):
    with pytest.raises(UserError) as caught:
        final_config(given, TRAIN)
    message = str(caught.value)
    assert message.startswith("engine.deepspeed: ")
    assert key in message
    assert instead in message
    assert "\n" not in message


@pytest.mark.parametrize(("content", "why"), [(None, "cannot be read"), ("{", "not valid JSON"), ("[]", "JSON object")])
def test_a_bad_file_is_named(tmp_path, content, why):
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=why) as caught:
        final_config(str(path), TRAIN)
    assert str(path) in str(caught.value)


def test_does_not_load_deepspeed_or_torch():
    code = "import sys, cl_toolkit.engine.deepspeed_config; print({'torch', 'deepspeed'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_a_section_that_switches_nothing_on_is_off():
    train = replace(TRAIN, bf16=False)
    assert final_config({"bf16": {}, "fp16": {}}, train)["torch_autocast"]["enabled"] is False
    with pytest.raises(UserError, match=r"fp16: remove it"):
        final_config({"fp16": {"enabled": True}}, train)
    with pytest.raises(UserError, match=r"bf16: remove it and write train.bf16: true"):
        final_config({"bf16": {"enabled": True}}, train)


def test_buckets_are_no_larger_than_what_is_trained():
    small = with_buckets({"zero_optimization": {"stage": 2}}, 1500)["zero_optimization"]
    assert small == {"stage": 2, "reduce_bucket_size": 2048, "allgather_bucket_size": 2048}
    assert with_buckets({"zero_optimization": {"stage": 1}}, 10**10)["zero_optimization"]["reduce_bucket_size"] == 5e8
    own = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 7}}
    assert with_buckets(own, 1500)["zero_optimization"]["reduce_bucket_size"] == 7
    assert with_buckets({"zero_optimization": 1}, 1500) == {"zero_optimization": 1}


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (
            {"sequence_parallel_size": 2},
            "rows are whole on each process here; leave it out and use train.per_device_train",
        ),
        ({"tensor_parallel": {"autotp_size": 2}}, "use ZeRO-3, which shards weights"),
        ({"tensor_parallel": {"tp": {"tp_size": 4}}}, "use ZeRO-3, which shards weights"),
        ({"pipeline": {"stages": 2}}, "use ZeRO-3, which shards weights"),
        ({"elasticity": {"enabled": True}}, "the same command goes on with any number of processes"),
        ({"hybrid_engine": {"enabled": True, "max_out_tokens": 5}}, "answers are written under `generation`"),
    ],
)
def test_what_cuts_a_model_in_other_ways_is_refused_with_what_to_do(given, instead):
    with pytest.raises(UserError, match=rf"^engine.deepspeed: {next(iter(given))}: ") as caught:
        final_config(given, TRAIN)
    assert instead in str(caught.value)


def test_what_is_switched_off_is_not_refused():
    off = {
        "sequence_parallel_size": 1,
        "tensor_parallel": {"autotp_size": 1},
        "pipeline": {},
        "elasticity": {"enabled": False},
    }
    assert final_config(off, TRAIN)["sequence_parallel_size"] == 1


@pytest.mark.parametrize(
    ("zero", "wanted"),
    [
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, {"optimizer"}),
        ({"stage": 3, "offload_param": {"device": "nvme"}, "offload_optimizer": {"device": "none"}}, {"param"}),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, set()),
        (None, set()),
    ],
)
def test_what_is_offloaded(zero, wanted):
    assert offloaded({"zero_optimization": zero} if zero else {}) == wanted
