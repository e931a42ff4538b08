"""Imports point one way, those inside functions too, and each heavy library has its doors. Read from the source, without
importing it."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"cl_toolkit": "cl_toolkit", "strategies": "cl_toolkit.strategies", "benchmarks": "cl_toolkit.benchmarks"}


def module_of(path):
    """`strategies/replay.py` -> `cl_toolkit.strategies.replay`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([ROOMS[parts[0]], *parts[1:]]).removesuffix(".__init__")


def imports_of(path, node=None, at_once=True):
    """(module, whether it is imported when the file is) of every import; those for type checkers alone are left out."""
    for child in ast.iter_child_nodes(node or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}: a relative import"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield (inner if inner in FILES else child.module), at_once
        elif isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id == "LazyModule":
            yield child.args[0].value, False
        yield from imports_of(path, child, at_once and not isinstance(child, ast.FunctionDef | ast.Lambda))


PATHS = [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
FILES = {module_of(p): p for p in PATHS}
IMPORTS = {name: list(imports_of(path)) for name, path in FILES.items()}


def short(name):
    return name.removeprefix("cl_toolkit.")


def of(module, at_once=None):
    """What of the toolkit itself a module imports."""
    return {
        short(m)
        for m, now in IMPORTS[module]
        if m.split(".")[0] == "cl_toolkit" and (at_once is None or now == at_once)
    }


def test_the_walk_sees_what_is_there():
    assert {"cl_toolkit.learn", "cl_toolkit.strategies.replay", "cl_toolkit.benchmarks.skills"} <= set(FILES)
    assert "strategy" in of("cl_toolkit.learn")
    assert ("peft", False) in IMPORTS["cl_toolkit.models.adapters"]
    assert ("torch", False) in IMPORTS["cl_toolkit.strategies.replay"]


STOREYS = (
    {"door"},
    {"data", "engine"},
    {"models"},
    {"measure"},
    {"benchmarks", "strategies"},
    {"config"},
    {"runs"},
    {"report"},
    {"study"},
    {"check", "entrance"},
    {"cli"},
    {"start"},
)
"""From the ground up; a room imports from rooms below, and from itself."""
BESIDE = {"api": "entrance", "cl_toolkit": "entrance", "__main__": "start"}
"""Files beside the rooms that use all of them; the other files there are the page and its contracts, the door."""


def room(name):
    """The room of a module."""
    first, _, rest = short(name).partition(".")
    is_room = rest or any(n.startswith(f"cl_toolkit.{first}.") for n in FILES)
    return first if is_room and first != "cl_toolkit" else BESIDE.get(first, "door")


HEIGHT = {name: height for height, rooms in enumerate(STOREYS) for name in rooms}


def test_every_room_has_a_storey():
    assert {room(name) for name in FILES} == set(HEIGHT)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards(name):
    """At import and inside functions alike; of two rooms on one storey neither knows the other."""
    for other in of(name):
        here, there = room(name), room(f"cl_toolkit.{other}")
        assert here == there or HEIGHT[there] < HEIGHT[here], f"{short(name)} imports {other}"


def test_there_is_no_circle():
    graph = {short(name): of(name) & {short(n) for n in FILES} for name in FILES}
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in graph[name]:
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_the_page_knows_no_method():
    assert of("cl_toolkit.learn") == {"strategy"}


HELPERS = {"data.store", "engine.access", "measure.rewards"}


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("cl_toolkit.strategies")])
def test_a_strategy_imports_the_door_and_helpers_of_models(name):
    for other in of(name):
        assert room(f"cl_toolkit.{other}") in ("door", "models") or other in HELPERS, other


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("cl_toolkit.benchmarks")])
def test_a_benchmark_imports_the_door_and_data(name):
    for other in of(name):
        assert room(f"cl_toolkit.{other}") in ("door", "data", "benchmarks"), other
    assert not {m.split(".")[0] for m, _ in IMPORTS[name]} & {"transformers", "peft", "deepspeed", "yaml"}


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("cl_toolkit.report")])
def test_the_report_imports_no_model_code(name):
    assert {m for m in of(name) if room(f"cl_toolkit.{m}") not in ("door", "report")} <= {
        "measure.metrics",
        "runs.record",
        "runs.checkpoint",
    }
    assert not {m.split(".")[0] for m, _ in IMPORTS[name]} & {"torch", "transformers", "peft", "deepspeed"}


DOORS = {
    "transformers": {
        "models.hub",
        "models.quantized",
        "models.tiny",
        "models.targets",
        "models.product",
        "models.prompted",
        "models.attended",
        "models.nets",
        "models.tokens",
        "models.fixed",
        "engine.schedules",
        "engine.access",
        "engine.deepspeed_engine",
    },
    "peft": {"models.adapters", "models.peft_types", "models.merging"},
    "vllm": {"models.by_vllm"},
    "optuna": {"study.sampler"},
    "submitit": {"study.by_submitit"},
    "ray": {"study.by_ray"},
    "deepspeed": {"engine.deepspeed_engine"},
    "yaml": {"config.plain_yaml"},
    "omegaconf": {"config.plain_yaml"},
    "filelock": {"runs.lock"},
    "typer": {"cli.app", "cli.product", "cli.tuning", "cli.watching"},
    "safetensors": {"data.kept", "runs.checkpoint", "runs.warmup", "models.folders", "models.product", "models.nets"},
    "tokenizers": {"models.tiny"},
}


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_doors(library):
    users = {short(n) for n, found in IMPORTS.items() if any(m.split(".")[0] == library for m, _ in found)}
    assert users <= DOORS[library], f"{users - DOORS[library]} may not import {library}"


LIGHT = {"door", "entrance", "config", "data", "study", "benchmarks", "strategies"}
LIGHT_FILES = {"cli.app", "cli.show", "cli.console", "runs.record", "runs.checkpoint", "measure.metrics", "measure.sections",
               "models.kind", "models.tiny", "models.arrays", "models.hub", "models.language", "models.replies",
               "models.requests", "models.adapters", "models.anchor", "models.targets", "models.teacher",
               "engine.choose", "engine.access", "engine.sections"}  # fmt: skip


def test_what_answers_at_once_imports_nothing_heavy_at_once():
    heavy = {"torch", "transformers", "peft", "deepspeed", "numpy", "scipy", "pandas", "matplotlib"}
    assert {short(name) for name in FILES} >= LIGHT_FILES
    for name in FILES:
        if room(name) in LIGHT or short(name) in LIGHT_FILES:
            now = {m.split(".")[0] for m, at_once in IMPORTS[name] if at_once}
            assert not now & heavy, name


def test_the_rooms_are_small_and_the_door_is_narrow():
    beside = list((ROOT / "cl_toolkit").glob("*.py"))
    assert len(beside) <= 14
    sizes = {path: path.read_text(encoding="utf-8").count("\n") for path in PATHS}
    assert {path.name: lines for path, lines in sizes.items() if lines > 400} == {}
    assert statistics.median(sizes.values()) <= 150
    long = [
        (path.name, node.name)
        for path in PATHS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_guests_rooms_are_imported_inside_the_package_only():
    for name, found in IMPORTS.items():
        assert not {m.split(".")[0] for m, _ in found} & {"strategies", "benchmarks", "configs", "tests"}, name
    for path in (ROOT / "tests").rglob("*.py"):
        for m, _ in imports_of(path):
            assert m.split(".")[0] not in {"strategies", "benchmarks", "configs", "tests"}, path
