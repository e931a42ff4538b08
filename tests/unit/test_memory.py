"""The arithmetic of memory against what torch allocates."""

import json
from contextlib import nullcontext

import pytest
import torch
from tiny import Trajectory, tiny_config
from transformers import LlamaConfig, LlamaForCausalLM

from cl_toolkit.cli import planned
from cl_toolkit.engine.blocks import checkpointed
from cl_toolkit.engine.sections import Train
from cl_toolkit.engine.torch_engine import make_optimizer
from cl_toolkit.models import adapters
from cl_toolkit.models.arrays import SmallViT
from cl_toolkit.models.sections import Adapter
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.runs.run import Run
from cl_toolkit.strategy import Cost
from cl_toolkit.study.cells import load_run, load_study
from cl_toolkit.study.measured import STEPS, measured
from cl_toolkit.study.memory import GIB, Job, Memory, Shape, arithmetic, passing, shape_of, states
from cl_toolkit.study.plan import shape

TRAIN = dict.fromkeys(Train.__dataclass_fields__) | {
    "optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
}  # fmt: skip
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300},
    "20M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
            "num_key_value_heads": 2, "vocab_size": 8000},
}  # fmt: skip
ROWS, TOKENS = 2, 48
WITHIN = 1.25


def llama(name, adapter=False):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(use_cache=False, **SHAPES[name])).train()
    return adapters.begin_task(model, Adapter(r=4, target_modules=("q_proj", "v_proj")) if adapter else None, 0, 0)


def kept_by(model, bf16=False, ask=None):
    """Bytes that a forward (ask; None: of the body, with tokens) keeps for its backward, beside weights and casts of them."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.T.shape) for p in model.parameters() if p.dim() == 2
    }
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:
            found[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that its place is not given to another
        return tensor

    ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % 300
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model.get_decoder()(input_ids=ids) if ask is None else ask()
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_weights_gradients_and_optimizer_are_exact(name, adapter):
    model = llama(name, adapter)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(Train(**TRAIN), weights)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    device, host = states(shape_of(model), Job())
    assert device["weights"] == sum(p.nbytes for p in model.parameters())
    assert device["gradients"] == sum(p.grad.nbytes for p in weights)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]  # not the counts of steps
    assert device["optimizer"] == sum(t.nbytes for t in moments)
    assert host == {}
    if name == "20M":
        assert 15e6 < sum(p.numel() for p in model.parameters()) < 25e6


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_near(name, checkpointing, bf16):
    model = llama(name)
    job = Job(rows=ROWS, tokens=TOKENS, bf16=bf16, checkpointing=checkpointing)
    with checkpointed(model) if checkpointing else nullcontext():
        found = kept_by(model, bf16)
    told = passing(shape_of(model, bf16), job)["activations"]
    if checkpointing:  # a block's own are there in the backward only
        sizes = SHAPES[name]
        found += kept_by(llama(name), bf16) / sizes["num_hidden_layers"]
    assert found / WITHIN < told < found * WITHIN


def test_a_net_made_of_blocks_has_activations_of_their_widths():
    vit = SmallViT(name="small-vit", image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=3)
    model, found = vit.load(0).train(), shape_of(vit.load(0))
    assert (found.layers, found.width, found.keys, found.vocabulary) == (3, 32, 32, 0)
    told = passing(found, Job(rows=ROWS, tokens=vit.places))["activations"]
    kept = kept_by(model, ask=lambda: model(x=torch.rand(ROWS, 1, 16, 16)))
    assert kept / 2 < told < kept * 2  # within what the module says of others than Llama's kind


def test_a_shape_is_the_same_without_memory():
    with torch.device("meta"):
        assert shape_of(llama("20M")) == shape_of(LlamaForCausalLM(LlamaConfig(use_cache=False, **SHAPES["20M"])))
    assert shape_of(llama("tiny")).block == sum(p.numel() for p in llama("tiny").model.layers[0].parameters())


LARGE = Shape(total=8_000, trained=8_000, weight_bytes=32_000, block=500)


@pytest.mark.parametrize(
    ("stage", "processes", "wanted"),
    [
        (None, 1, {"weights": 32_000, "gradients": 32_000, "optimizer": 64_000}),
        (0, 4, {"weights": 32_000, "gradients": 32_000, "optimizer": 64_000, "buckets": 32_000}),
        (1, 4, {"weights": 32_000, "gradients": 32_000, "optimizer": 24_000, "buckets": 32_000}),
        (2, 4, {"weights": 32_000, "gradients": 8_000, "optimizer": 24_000, "buckets": 32_000}),
        (
            3,
            4,
            {"weights": 8_000, "gradients": 8_000, "optimizer": 24_000, "weights gathered": 4_000, "buckets": 32_000},
        ),
    ],
)
def test_what_each_stage_shards(stage, processes, wanted):
    """Counted once on tensors of two processes: bytes per parameter 10 at stages 1 and 2 between two steps (weights 4, their
    copy 2, moments 4), 14 at 3 (shards 2, copy 2, moments 4, gradients 2, bucket 4)."""
    assert states(LARGE, Job(stage=stage, processes=processes)) == (wanted, {})


def test_what_is_offloaded_lies_on_the_host():
    job = Job(stage=3, processes=4, offload=frozenset({"optimizer", "param"}))
    device, host = states(LARGE, job)
    assert device == {"weights gathered": 4_000, "buckets": 32_000}
    assert host == {"weights": 8_000, "gradients": 8_000, "optimizer": 24_000}


def test_logits_are_made_of_a_few_rows_at_a_time():
    wide = Shape(total=1, trained=1, weight_bytes=4, vocabulary=2**16)
    some, all_of_them = (
        passing(wide, Job(rows=8, tokens=4096, targets=4096, logits=kept))["logits"] for kept in (False, True)
    )
    assert some == 2**26 * 12
    assert all_of_them == 8 * 4096 * 2**16 * 12


def test_copies_of_strategies_and_what_they_look_at():
    cost = Cost(copies=1, copies_per_task=2)
    alone = arithmetic(LARGE, Job(cost=cost, past=3, reads=2))
    assert alone.device["strategies"] == 7 * 32_000
    assert arithmetic(LARGE, Job(stage=1, cost=cost, past=3, reads=2)).device["strategies"] == 9 * 32_000


@pytest.mark.parametrize("name", ["ewc", "lwf", "si", "prototype_distill"])
def test_strategies_keep_as_many_copies_as_they_say(name, tmp_path):
    """Of two tasks: those of `extra_parameters`, which leaves out what only lives within a task (of si, four of six)."""
    within = {"si": 4}.get(name, 0)
    objective = (
        {"name": "supcon", "projection_size": 4, "hidden_size": 4} if name == "prototype_distill" else {"name": "sft"}
    )
    config = load_run(tiny_config(strategies={name: {}}, objective=objective))
    run = Run(config, tmp_path, None)
    cost = run.execute()["cost"]
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    said = STRATEGIES.get(name, "test").tags.cost
    kept = run.strategy.extra_parameters / trained
    assert kept == pytest.approx(said.copies - within + 2 * said.copies_per_task, rel=0.2)
    assert cost["extra_parameters"] >= run.strategy.extra_parameters


@pytest.mark.parametrize("name", ["coda_prompt", "compression_memory"])
def test_a_plan_trains_prompts_alone_where_the_model_is_frozen(name, tmp_path):
    run = Run(load_run(tiny_config(strategies=[name])), tmp_path, None)
    whole, found = shape(load_run(tiny_config()), run.stream, False), shape(run.config, run.stream, False)
    record = Trajectory(run).record
    assert found.total > whole.total
    assert found.trained == record["adapters"][0]["trained_parameters"]


def test_a_plan_says_where_it_does_not_fit():
    study = load_study(tiny_config(methods={"sequential": {}, "ewc": {"strategies": {"ewc": {}}}}))
    found = planned.look(study, processes=2, gib=1e-4, measure=False)
    assert [row["run"].split("/")[0] for row in found["runs"]] == ["sequential", "ewc"]
    plain, ewc = (row["memory"]["device"] for row in found["runs"])
    assert ewc["strategies"] == (2 + 2) * 4 * found["runs"][1]["trained"]  # two copies, two that it looks at
    assert "strategies" not in plain
    assert len(found["notes"]) == 2
    assert all(
        "in this order: train.per_device_train_batch_size: 1, train.gradient_ch" in note for note in found["notes"]
    )
    json.dumps(found["runs"])
    lines = list(planned.told(found))
    assert any(line.startswith("memory of each of 2 processes in ewc/") for line in lines)
    assert planned.look(study, processes=2, gib=80, measure=False)["notes"] == []


def test_steps_are_measured(monkeypatch):
    config = load_run(tiny_config(strategies={"replay": {}}))
    from cl_toolkit.data.streams import build_stream

    assert 0 < measured(config, build_stream(config)) < 5
    assert STEPS == 3


def test_whole_weights_must_fit_at_every_stage():
    """Loading, scoring and an engine that is closed have them on the device, with the copies that strategies keep."""
    shape = Shape(total=1000, trained=10, weight_bytes=2000, start_bytes=4000)
    found = arithmetic(shape, Job(stage=3, processes=100, cost=Cost(copies=1)))
    assert sum(found.device.values()) < found.total == found.whole == 4040
    assert found.host == {"weights, at the start": 4000}
    assert found.plain()["device_total"] == 4040


def test_each_method_is_counted_with_what_its_own_strategies_build():
    methods = {"sequential": {}, "prompts": {"strategies": {"coda_prompt": {"components": 2}}}}
    found = planned.look(load_study(tiny_config(methods=methods, seeds=[0])), processes=1, gib=None, measure=False)
    whole, prompts = (row["trained"] for row in found["runs"])
    assert prompts < whole  # a frozen model, and two prompts before it


def test_a_device_is_not_planned_full():
    assert Memory({"weights": 89.0}, {}).fits(100)
    assert not Memory({"weights": 91.0}, {"stores": 5.0}).fits(100)
    assert GIB == 2**30
