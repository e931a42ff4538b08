"""Imports point one way, and each heavy library has its doors. Read from the source, without importing it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"cl_toolkit": "cl_toolkit", "strategies": "cl_toolkit.strategies", "benchmarks": "cl_toolkit.benchmarks"}


def module_of(path):
    """`strategies/replay.py` -> `cl_toolkit.strategies.replay`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([ROOMS[parts[0]], *parts[1:]]).removesuffix(".__init__")


def imports_of(path):
    """(module, whether it is imported when the file is) of every import; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            child.parent = parent

    def above(node):
        while hasattr(node, "parent"):
            node = node.parent
            yield node

    for node in ast.walk(tree):
        outer = list(above(node))
        if any(isinstance(o, ast.If) and "TYPE_CHECKING" in ast.unparse(o.test) for o in outer):
            continue
        at_once = not any(isinstance(o, (ast.FunctionDef, ast.Lambda)) for o in outer)
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in FILES else node.module), at_once
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "LazyModule":
            yield node.args[0].value, False


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


LEAVES = {"errors", "types", "lazy", "ranges", "sources"}
LAYERS = [
    (
        {
            "types",
            "errors",
            "lazy",
            "ranges",
            "plain_yaml",
            "sources",
            "typed",
            "metrics",
            "objective",
            "scorers",
        },
        LEAVES,
    ),
    ({"strategy", "memory"}, LEAVES),
    ({"checkpoint"}, LEAVES),
    ({"registry"}, LEAVES),
    ({"task_view", "generate", "template"}, LEAVES),
    ({"codec"}, LEAVES | {"template"}),
    ({"learn"}, LEAVES | {"strategy"}),
    ({"encoder"}, LEAVES | {"nets"}),
    ({"targets", "folders", "soundness"}, LEAVES),
    ({"hub"}, LEAVES | {"folders", "soundness", "targets"}),
    ({"adapters"}, LEAVES | {"encoder", "generate", "targets", "task_view"}),
    ({"evaluate"}, LEAVES | {"engine.processes", "generate", "registry", "scorers"}),
    ({"probes.curves"}, LEAVES | {"evaluate"}),
]


@pytest.mark.parametrize(("modules", "allowed"), LAYERS, ids=lambda v: "+".join(sorted(v)))
def test_the_lower_storeys_import_nothing_from_above(modules, allowed):
    for module in modules:
        assert of(f"cl_toolkit.{module}") <= allowed, module


def test_the_page_knows_no_method():
    assert of("cl_toolkit.learn") == {"strategy"}


def test_who_may_know_the_run_and_the_study():
    users = {name: {short(n) for n in FILES if name in of(n)} for name in ("runner", "study", "cli", "api")}
    assert {n for n in users["runner"] if not n.startswith("check")} <= {"study", "api", "cli"}
    assert users["study"] <= {"api", "cli", "plan", "worker"}
    assert users["cli"] == {"__main__"}
    assert users["api"] <= {"__init__", "cl_toolkit", "cli", "show"}
    above = {
        "runner",
        "state",
        "study",
        "workers",
        "worker",
        "api",
        "cli",
        "plan",
        "show",
        "report",
        "check",
        "console",
    }
    for name in FILES:
        if short(name).split(".")[0] not in {*above, "cl_toolkit", "__main__"}:
            assert not of(name) & above, name


CORE = LEAVES | {
    "strategy",
    "objective",
    "memory",
    "generate",
    "adapters",
    "task_view",
    "metrics",
    "checkpoint",
    "encoder",
}


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("cl_toolkit.strategies")])
def test_a_strategy_imports_the_core_alone(name):
    assert of(name) <= CORE, "no engine, no other strategy, no benchmark"


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("cl_toolkit.benchmarks")])
def test_a_benchmark_imports_types_and_errors_alone(name):
    assert {m for m in of(name) if not m.startswith("benchmarks.")} <= LEAVES
    assert not {m.split(".")[0] for m, _ in IMPORTS[name]} & {"transformers", "peft", "deepspeed", "yaml"}


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("cl_toolkit.report")])
def test_the_report_imports_no_model_code(name):
    assert {m for m in of(name) if m.split(".")[0] != "report"} <= LEAVES | {
        "metrics",
        "registry",
        "record",
        "checkpoint",
    }
    assert not {m.split(".")[0] for m, _ in IMPORTS[name]} & {"torch", "transformers", "peft", "deepspeed"}


DOORS = {
    "transformers": {"models", "hub", "targets", "generate", "engine.torch_engine", "engine.deepspeed_engine"},
    "peft": {"adapters"},
    "deepspeed": {"engine.deepspeed_engine"},
    "yaml": {"plain_yaml"},
    "omegaconf": {"plain_yaml"},
    "filelock": {"lock"},
    "typer": {"cli"},
    "safetensors": {"checkpoint", "warmup", "folders"},
    "tokenizers": {"models"},
}


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_doors(library):
    users = {short(n) for n, found in IMPORTS.items() if any(m.split(".")[0] == library for m, _ in found)}
    assert users <= DOORS[library], f"{users - DOORS[library]} may not import {library}"


LIGHT = ["__init__", "api", "cli", "config", "study_config", "refusals", "registry", "typed", "errors", "strategy", "show",
         "ranges", "plain_yaml", "console", "sources",
         "study", "record", "types", "lazy", "objective", "memory", "metrics", "models"]  # fmt: skip


def test_what_answers_at_once_imports_nothing_heavy_at_once():
    heavy = {"torch", "transformers", "peft", "deepspeed", "numpy", "scipy", "pandas", "matplotlib"}
    light = {"cl_toolkit", *(f"cl_toolkit.{n}" for n in LIGHT if n != "__init__")}
    light |= {n for n in FILES if n.startswith(("cl_toolkit.strategies", "cl_toolkit.benchmarks"))}
    for name in sorted(light):
        now = {m.split(".")[0] for m, at_once in IMPORTS[name] if at_once}
        assert not now & heavy, name


def test_guests_rooms_are_imported_inside_the_package_only():
    for name, found in IMPORTS.items():
        assert not {m.split(".")[0] for m, _ in found} & {"strategies", "benchmarks", "configs", "tests"}, name
    for path in (ROOT / "tests").rglob("*.py"):
        for m, _ in imports_of(path):
            assert m.split(".")[0] not in {"strategies", "benchmarks", "configs", "tests"}, path
