"""DeepSpeed's engine follows the torch engine at every ZeRO stage, and leaves nothing behind."""

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_settings import (
    ALWAYS,
    BF16,
    EACH,
    EACH_TORCH,
    EACH_ZERO,
    FROZEN,
    GRID,
    LOSSES,
    OFFLOAD,
    REOPEN,
    RUNS,
    SETTINGS,
    SHARDS,
    SHARED,
    STAGES,
    STRATEGY_SETTINGS,
    USUAL,
    WITH_PENALTY,
    WITHOUT_TERM,
    is_quick,
)
from longer import long_but
from once import Results
from pieces import ask, task_view
from tiny import tiny_run_config

from cl_toolkit.engine.deepspeed_engine import DeepSpeedSession
from cl_toolkit.errors import UserError
from cl_toolkit.strategies.objectives import rft
from cl_toolkit.strategies.replay import Replay

pytest.importorskip("deepspeed", reason="deepspeed is not installed here (it is for Linux)")
pytestmark = pytest.mark.processes

QUICK_RUNS = [run for run in RUNS if run[1] in ALWAYS]
WORKER = Path(__file__).with_name("worker.py")
UPSTREAM = ("`torch.jit.script_method` is deprecated",)  # deepspeed imports torch._inductor


def launch(world, settings, folder):
    """Starts the worker in `world` processes. Every warning in them is an error."""
    (folder / "settings.json").write_text(json.dumps(settings))
    flags = ["-W", "error", *(part for message in UPSTREAM for part in ("-W", f"ignore:{message}"))]
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {key: value for key, value in os.environ.items() if key not in names} | {"OMP_NUM_THREADS": "1"}
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    started = []
    for rank in range(world):
        # one process starts as plain `python`, several as a launcher starts them
        values = (rank, rank, world, "127.0.0.1", port) if world > 1 else ()
        command = [sys.executable, *flags, WORKER, folder / "settings.json", folder / "result.json"]
        mine = env | {key: str(value) for key, value in zip(names, values, strict=False)}
        with (folder / f"{rank}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=mine, stdout=log, stderr=subprocess.STDOUT))
    return started


def run_all(world, settings, folder, limit):
    """The results of settings by name, in `world` processes. limit: seconds."""
    started = launch(world, settings, folder)
    try:
        for rank, process in enumerate(started):
            code = process.wait(timeout=limit)
            assert code == 0, (folder / f"{rank}.log").read_text()[-4000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    def of(world):
        run = partial(run_all, world, limit=1200)
        return Results(tmp_path_factory, f"engine-{world}", SETTINGS[world], is_quick, run)

    return {world: of(world) for world in SETTINGS}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    settings = {1: EACH_TORCH | GRID, 2: GRID}
    return {n: run_all(n, mine, tmp_path_factory.mktemp(f"grid-{n}"), 3600) for n, mine in settings.items()}


def difference(result, reference):
    """The largest difference of any loss term of any step."""
    pairs = list(zip(result["steps"], reference["steps"], strict=True))
    assert all(a["losses"].keys() == b["losses"].keys() and a["seen"] == b["seen"] for a, b in pairs)
    return max(abs(a["losses"][name] - b["losses"][name]) for a, b in pairs for name in b["losses"])


@pytest.mark.parametrize(("world", "name"), long_but(QUICK_RUNS, [run for run in RUNS if run[1] not in BF16]))
def test_follows_the_torch_engine(results, world, name):
    """Law 9."""
    result = results[world][name]
    reference = results[1]["torch-frozen" if name in FROZEN else "torch"]
    assert difference(result, reference) < 1e-5
    for step, expected in zip(result["steps"], reference["steps"], strict=True):
        assert step["norm"] == pytest.approx(expected["norm"], abs=1e-4)
        assert step["rate"] == pytest.approx(expected["rate"])
    assert result["weights"] == pytest.approx(reference["weights"], rel=1e-5)


def check_follows(result, reference):
    """Law 9 for one setting; and a penalty saw whole weights. Returns the largest difference in the loss."""
    found = difference(result, reference)
    assert found < 1e-5
    assert result["weights"] == pytest.approx(reference["weights"], rel=1e-4)
    assert result["plain"] == [True, True]
    assert result["trained"] == reference["trained"]
    assert result["read"] == reference["read"]
    return found


@pytest.mark.parametrize("name", long_but(ALWAYS, EACH_ZERO))
def test_each_strategy_follows_the_torch_engine_at_zero_3(results, name):
    """In two processes and several parts."""
    check_follows(results[2][name], results[1][f"torch-{'lwf' if name in SHARDS else name}"])


@pytest.mark.parametrize("name", long_but(ALWAYS, SHARED))
def test_what_is_shared_before_and_after_a_task_is_what_one_process_finds(results, name):
    """The Fisher of ewc, the filter of rft: in two processes, each of which looks at its share."""
    result, reference = results[2][name], results[1][f"torch-{name}"]
    print(f"\n{name:14} {check_follows(result, reference):.1e}")
    assert result["passed"] < 0.7 * reference["passed"] or name == "3-ewc-one"
    if "ewc" in name:
        assert max(s["losses"]["ewc"] for s in reference["steps"] if s["task"] == "task1") > 1e-4


@pytest.mark.parametrize("name", long_but(ALWAYS, OFFLOAD))
def test_what_is_offloaded_follows_the_torch_engine(results, name):
    """Optimizer and, at ZeRO-3, weights on the host; gradients are penalised and edited."""
    check_follows(results[2][name], results[1]["torch-offload"])
    assert max(s["losses"].get("pull", 0) for s in results[2][name]["steps"]) > 1e-4


def test_an_edited_gradient_is_not_clipped_by_its_old_norm():
    """Seen: a loss off by 0.13 after six steps of EWC."""
    config = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    tiny_run_config(engine={"deepspeed": config}, strategies={"replay": {}})
    tiny_run_config(engine={"deepspeed": config}, strategies={"ewc": {}}, train={"max_grad_norm": 0})
    for name in ("ewc", "agem"):
        with pytest.raises(
            UserError, match=rf"norm before strategy {name} has changed it; use train.max_grad_norm: 0, or"
        ):
            tiny_run_config(engine={"deepspeed": config}, strategies={name: {}})


@pytest.mark.parametrize("stage", long_but({3}, STAGES))
def test_prototype_distill_follows_the_torch_engine(results, stage):
    """In one process; its objective cannot be cut. The encoder's prototypes grow while ZeRO is closed."""
    result, reference = results[1][f"{stage}-prototype_distill"], results[1]["torch-prototype_distill"]
    assert difference(result, reference) < 1e-5
    assert result["weights"] == pytest.approx(reference["weights"], rel=1e-4)
    assert max(s["losses"].get("prototype_distill", 0) for s in reference["steps"]) > 1e-4


@pytest.mark.parametrize("name", long_but(ALWAYS, [n for n in USUAL if "-" not in n]))
def test_there_is_something_to_follow(results, name):
    result = results[1][f"torch-{name}"]
    if name in WITHOUT_TERM:
        assert result["weights"] != pytest.approx(results[1][f"off-{name}"]["weights"], rel=5e-4)
    else:
        assert max(s["losses"][name] for s in result["steps"] if s["task"] == "task1") > 1e-4


@pytest.mark.parametrize("name", long_but(ALWAYS, USUAL))
def test_a_penalty_reads_whole_weights(results, name):
    """Never an empty shard, in which it would be 0 and its gradient of no shape."""
    read = results[2][name]["read"]
    assert bool(read) == (name in WITH_PENALTY)
    assert all(math.prod(shape) > 0 for shape in read.values())


@pytest.mark.grid
@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", [1, 2])
def test_grid(grid, world, stage, name):
    found = check_follows(grid[world][f"{stage}-{name}"], grid[1][f"torch-{name}"])
    print(f"\n{name:16}  ZeRO-{stage}  {world} processes  {found:.1e}")


def test_every_strategy_is_there():
    """But those for objectives that cannot be cut."""
    from cl_toolkit.registry import OBJECTIVES, STRATEGIES

    cut = {name for name in OBJECTIVES if OBJECTIVES.get(name, "test").divisible}
    # lm is a sum over counts as sft is; it is not on the grid yet
    assert cut <= {"sft", "rft", "on_policy", "dpo", "lm", *LOSSES}
    tags = {name: STRATEGIES.get(name, "test").tags for name in STRATEGIES}
    gives = [OBJECTIVES.get(name, "test").gives for name in cut]
    assert set(STRATEGY_SETTINGS) == {n for n, t in tags.items() if any(t.needs <= given for given in gives)}
    assert all(tags[name].zero_stages == STAGES for name in STRATEGY_SETTINGS)
    assert all(OBJECTIVES.get(name, "test").zero_stages == STAGES for name in cut)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_refused_with_what_to_do_instead(stage, monkeypatch):
    monkeypatch.setattr(Replay, "tags", replace(Replay.tags, zero_stages=(0, 1)))
    changes = {"strategies": {"replay": {}}, "engine": {"deepspeed": {"zero_optimization": {"stage": stage}}}}
    if stage < 2:
        tiny_run_config(**changes)
        return
    with pytest.raises(UserError) as caught:
        tiny_run_config(**changes)
    wanted = f"engine.deepspeed: strategy replay does not work at ZeRO-{stage}; use stage 1 instead"
    assert str(caught.value).endswith(wanted)


@pytest.mark.parametrize(("stage", "sizes"), [(2, [128, 2]), (3, [130])])
def test_rollouts_of_a_share_are_one_call_at_zero_3(stage, sizes):
    """Where shares differ by one example, the number of calls may not."""
    calls = []

    def writer(model, codec, prompts, *_, **__):
        calls.append(len(prompts))
        return [[0]] * len(prompts)

    objective, examples = rft.RFT(rft.RFT.Config(num_generations=2)), [ask(str(i)) for i in range(65)]
    model, view = SimpleNamespace(zero_optimization_stage=lambda: stage), task_view(examples, objective)
    view.codec.writer = writer
    assert len(objective.sample(model, view, examples)) == 65
    assert calls == sizes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # deepspeed imports torch._inductor
def test_a_teacher_is_refused_where_weights_are_on_disk(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    plain = torch.nn.Linear(1, 1)
    plain.weight.ds_tensor = SimpleNamespace(final_location="nvme")
    session = SimpleNamespace(module=plain)
    swap = DeepSpeedSession._swapped_shards(session, {"weight": torch.zeros(1, 1)})
    with pytest.raises(UserError, match=r"offload_param\.device: nvme .* use cpu instead$"), swap:
        pass


def test_a_teacher_leaves_backward_its_memory(results):
    """A forward between a forward and its backward does not keep ZeRO-3 from letting go of weights."""
    without, beside = results[1]["whole"]
    assert beside == without < 0.5


def test_answers_at_zero_3_are_those_of_the_plain_model(results):
    """With weights put together once each process answers its share; else all answer everything. Nothing stays whole."""
    found = results[2]["answered"]
    assert all(way["same"] for way in found.values())
    assert found["again"]["forwards"] == found["whole"]["forwards"] < 0.75 * found["lockstep"]["forwards"]
    assert found["whole"]["left"] == found["again"]["left"] == 0


def test_the_run_uses_everything_that_law_9_names(results):
    """Two tasks, a penalty that is not zero, clipping, a number of parts that varies, unequal shares and a filler."""
    steps = results[1]["torch"]["steps"]
    assert [s["task"] for s in steps] == ["task0"] * 6 + ["task1"] * 6
    assert any(s["losses"].get("pull", 0) > 1e-3 for s in steps)
    assert max(s["norm"] for s in steps) > 1
    assert len({s["rate"] for s in steps}) > 3
    for world in SETTINGS:
        parts = [s["parts"] for s in results[world]["3-parts"]["steps"]]
        assert max(parts[:6]) > 1
        assert len(set(parts)) > 2
    shares = results[2]["3-whole"]["shares"]
    assert ["task"] * 2 in shares  # of five
    assert ["task"] in shares  # of the reference gradient's three
    assert ["filler"] in shares  # of one
    assert any("memory" in share for share in shares)


@pytest.mark.parametrize(("world", "name"), long_but(QUICK_RUNS, RUNS))
def test_module_is_plain_after_each_task(results, world, name):
    """Shapes, dtypes, attributes and hooks are those of before."""
    assert results[world][name]["plain"] == [True, True]


@pytest.mark.parametrize("name", long_but(ALWAYS, BF16))
def test_bf16(results, name):
    """As near to torch's bf16 as bf16 is to itself, and the weights keep fp32's digits."""
    assert difference(results[2][name], results[1]["torch-bf16"]) < 2e-2
    assert difference(results[2][name], results[1]["torch"]) > 1e-5
    assert results[2][name]["rounded"] == []


@pytest.mark.parametrize("name", long_but(ALWAYS, REOPEN))
def test_opening_again_and_again_takes_no_memory(results, name):
    assert len(set(results[1][name]["tensors"])) == 1
    assert results[1][name]["memory"][-1] - results[1][name]["memory"][1] < 2  # MiB
