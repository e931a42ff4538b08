"""DeepSpeed's engine follows the torch engine at every ZeRO stage, and leaves nothing behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed", reason="deepspeed is not installed here (it is for Linux)")
pytestmark = pytest.mark.processes

WORKER = Path(__file__).with_name("worker.py")
STAGES = (0, 1, 2, 3)
MICRO = {"whole": None, "parts": 2}  # examples per forward
UPSTREAM = ("`torch.jit.script_method` is deprecated",)  # deepspeed imports torch._inductor

REFERENCES = {
    "torch": {"engine": "torch"},
    "torch-frozen": {"engine": "torch", "frozen": True},
    "torch-bf16": {"engine": "torch", "bf16": True},
}
LAW_9 = {f"{s}-{m}": {"engine": "deepspeed", "stage": s, "micro": MICRO[m]} for s in STAGES for m in MICRO}
FROZEN = {f"{s}-frozen": {"engine": "deepspeed", "stage": s, "frozen": True} for s in (2, 3)}
BF16 = {f"{s}-bf16": {"engine": "deepspeed", "stage": s, "bf16": True} for s in (0, 2, 3)}
REOPEN = {f"{s}-reopen": {"engine": "reopen", "stage": s} for s in (0, 2, 3)}
EACH = {  # strategy -> highest stage at which it works, settings that make it felt
    "ewc": (3, {"weight": 100.0, "fisher": "empirical"}),
    "si": (3, {"weight": 10.0}),
    "agem": (3, {"memory_batch_size": 4}),
    "der": (3, {"memory_batch_size": 3, "buffer_size": 9, "top_k": 4}),
    "derpp": (3, {"memory_batch_size": 3, "buffer_size": 9, "top_k": 4}),
    "o_lora": (3, {}),
    "answer_styles": (3, {"share": 0.5}),
    "reg_lora": (2, {"share": 0.5}),
    "lwf": (2, {"weight": 5.0}),
    "logit_swap": (2, {}),
}
EACH_TORCH = {f"torch-{name}": {"engine": "torch", "strategy": [name, s]} for name, (_, s) in EACH.items()}
EACH_ZERO = {
    name: {"engine": "deepspeed", "stage": stage, "micro": 2, "strategy": [name, s]}
    for name, (stage, s) in EACH.items()
}
SETTINGS = {1: REFERENCES | LAW_9 | REOPEN | EACH_TORCH, 2: LAW_9 | FROZEN | BF16 | EACH_ZERO}
"""By number of processes."""
RUNS = [(world, name) for world in SETTINGS for name in LAW_9] + [(2, name) for name in FROZEN | BF16]


def launch(world, settings, folder):
    """Starts the worker in `world` processes. Every warning in them is an error."""
    folder.mkdir()
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


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All settings, by number of processes: {1: {name: result}, 2: {name: result}}."""
    results = {}
    for world, settings in SETTINGS.items():
        folder = tmp_path_factory.mktemp("engine") / str(world)
        started = launch(world, settings, folder)
        try:
            for rank, process in enumerate(started):
                code = process.wait(timeout=200)
                assert code == 0, (folder / f"{rank}.log").read_text()[-4000:]
        finally:
            for process in started:
                process.kill()
                process.wait()
        results[world] = json.loads((folder / "result.json").read_text())
    return results


def difference(result, reference):
    """The largest difference of any loss term of any step."""
    pairs = list(zip(result["steps"], reference["steps"], strict=True))
    assert all(a["losses"].keys() == b["losses"].keys() and a["seen"] == b["seen"] for a, b in pairs)
    return max(abs(a["losses"][name] - b["losses"][name]) for a, b in pairs for name in b["losses"])


@pytest.mark.parametrize(("world", "name"), [run for run in RUNS if run[1] not in BF16])
def test_follows_the_torch_engine(results, world, name):
    """Law 9."""
    result = results[world][name]
    reference = results[1]["torch-frozen" if name in FROZEN else "torch"]
    assert difference(result, reference) < 1e-5
    for step, expected in zip(result["steps"], reference["steps"], strict=True):
        assert step["norm"] == pytest.approx(expected["norm"], abs=1e-4)
        assert step["rate"] == pytest.approx(expected["rate"])
    assert result["weights"] == pytest.approx(reference["weights"], rel=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_each_strategy_follows_the_torch_engine(results, name):
    """Law 9 at the highest stage of a strategy, in two processes and several parts; and there is something to follow."""
    result, reference = results[2][name], results[1][f"torch-{name}"]
    assert difference(result, reference) < 1e-5
    assert result["weights"] == pytest.approx(reference["weights"], rel=1e-4)
    assert result["plain"] == [True, True]
    second = [s["losses"] for s in reference["steps"] if s["task"] == "task1"]
    if name not in ("agem", "answer_styles"):  # no term of their own
        assert max(terms[name] for terms in second) > 1e-4


def test_every_strategy_is_there():
    from cl_toolkit.registry import STRATEGIES

    assert set(EACH) == set(STRATEGIES) - {"replay", "power_law"}  # replay is a part of all the others here
    assert {name: max(STRATEGIES.get(name, "test").tags.zero_stages) for name in EACH} == {
        name: stage for name, (stage, _) in EACH.items()
    }


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


@pytest.mark.parametrize(("world", "name"), RUNS)
def test_module_is_plain_after_each_task(results, world, name):
    """Shapes, dtypes, attributes and hooks are those of before."""
    assert results[world][name]["plain"] == [True, True]


@pytest.mark.parametrize("name", BF16)
def test_bf16(results, name):
    """As near to torch's bf16 as bf16 is to itself, and the weights keep fp32's digits."""
    assert difference(results[2][name], results[1]["torch-bf16"]) < 2e-2
    assert difference(results[2][name], results[1]["torch"]) > 1e-5
    assert results[2][name]["rounded"] == []


@pytest.mark.parametrize("name", REOPEN)
def test_opening_again_and_again_takes_no_memory(results, name):
    assert len(set(results[1][name]["tensors"])) == 1
    assert results[1][name]["memory"][-1] - results[1][name]["memory"][1] < 2  # MiB
