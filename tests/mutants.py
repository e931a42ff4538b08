"""How many small faults the tests notice: `python tests/mutants.py [-n 12|all] [-j 2] [MODULE ...]`, or `make mutants`.

One place of one module is changed at a time, in memory, in a process forked from one that has torch loaded and the toolkit
not; the tests run in a copy of the tree, the fast ones that enter the changed function, shortest first, until one fails.
Which tests enter which function is learned from one run of them all, on the unchanged tree. A change of a class or a module
itself is seen by all tests that enter the module. The sample of changes is drawn from a fixed seed.

Why not a library: mutmut names a mutant after its file, `strategies.ewc`, and looks for it under its module,
`cl_toolkit.strategies.ewc`, so that ours would all survive; cosmic-ray changes files of the working tree in place and starts
an interpreter for each.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.machinery
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
from changes import changed, changes

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = "not processes and not speed and not grid and not null"
ORACLE = "tests/oracle"
LAWS = "tests/laws/test_laws.py"
TEXT = ("tests/unit/test_codec.py", "tests/laws/test_codecs.py", "tests/cases", "tests/unit/test_evaluate.py")
GENERAL = "tests/oracle/test_beginnings.py"
PROBES = "tests/unit/test_probes.py"
TESTS: dict[str, tuple[str, ...]] = {
    "learn": (ORACLE,),
    "engine/torch_engine": (ORACLE,),
    "engine/session": (ORACLE,),
    "engine/deepspeed_config": ("tests/engine/test_deepspeed_config.py",),
    "task_view": (ORACLE,),
    "types": (ORACLE, "tests/unit/test_streams.py"),
    "data/store": (ORACLE,),
    "data/regimes": ("tests/unit/test_streams.py",),
    "measure/metrics": (ORACLE,),
    "measure/exam": (*TEXT, "tests/unit/test_arrays.py"),
    "measure/answers": (*TEXT, PROBES),
    "measure/probe": (PROBES,),
    "measure/matrix": (PROBES, "tests/unit/test_run.py"),
    "measure/probes/curves": (PROBES, "tests/unit/test_curves.py"),
    "measure/probes/drift": (PROBES,),
    "measure/probes/autopsy": ("tests/unit/test_autopsy.py",),
    "measure/content": ("tests/unit/test_autopsy.py",),
    "report/fits": ("tests/unit/test_fits.py",),
    "report/forgetting": ("tests/unit/test_fits.py",),
    "report/front": ("tests/unit/test_front.py",),
    "models/text": (*TEXT, ORACLE, "tests/unit/test_text.py"),
    "models/template": TEXT,
    "models/documents": ("tests/unit/test_text.py",),
    "models/classifier": ("tests/unit/test_classifier.py",),
    "models/replies": (*TEXT, PROBES, "tests/unit/test_arrays.py"),
    "models/generate": (*TEXT, ORACLE),
    "models/fixed": ("tests/unit/test_fixed.py",),
    "models/writers": (*TEXT, ORACLE, "tests/unit/test_fixed.py", "tests/unit/test_vllm.py"),
    "models/by_vllm": ("tests/unit/test_vllm.py",),
    "models/logits": (*TEXT, ORACLE),
    "runs/growth": ("tests/unit/test_growth.py",),
    "runs/tracker": ("tests/unit/test_trackers.py",),
    **{
        str(p.relative_to(ROOT).with_suffix("")): (ORACLE,)
        for room in ("strategies", "strategies/objectives")
        for p in sorted((ROOT / room).glob("[a-z]*.py"))
    },
}
"""Module -> the test files that concern it. With `--laws` a strategy or an objective is put to its laws too, if it lives."""
MOST = 40.0
"""Seconds of tests, at most, that one change is put to."""
LLAMA = "transformers.models.llama.modeling_llama"
HEAVY = ("torch", "numpy", "pandas", "scipy.stats", "matplotlib.pyplot", "peft", LLAMA, "typer", "pytest")
"""What takes long to load and is none of the toolkit."""


def warm() -> None:
    """Load what takes long, and nothing of the toolkit."""
    os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    for name in HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def in_child(work: Callable[[], int], log: Path) -> int:
    """Fork; the child does the work in a session of its own and ends with its answer. Returns the process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    code = 70
    try:
        code = int(work())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def pytest_in(copy: Path, chosen: list[str], plugins: list | None = None, more: tuple[str, ...] = ("-x",)) -> int:
    """pytest's exit code for some tests of the copy."""
    import pytest

    os.chdir(copy)
    sys.path.insert(0, str(copy))
    quiet = ("-p", "no:xdist", "-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
    temporary = f"--basetemp={copy / 'tmp' / str(os.getpid())}"
    return pytest.main([*chosen, *more, *quiet, "-m", LEFT_OUT, temporary], plugins=plugins)


class Entered:
    """A pytest plugin: which functions of the modules each test that passes has entered, and how long it took."""

    def __init__(self, paths: set[str], result: Path):
        self.paths, self.result, self.found = paths, result, {}

    def pytest_runtest_protocol(self, item):
        self.now, self.began = set(), time.perf_counter()
        sys.settrace(self.trace)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename in self.paths:
            self.now.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.now = None
        if report.when == "teardown" and self.now is not None:
            self.found[report.nodeid] = time.perf_counter() - self.began, sorted(self.now)

    def pytest_sessionfinish(self):
        sys.settrace(None)
        self.result.write_text(json.dumps(self.found))


def relatives(entered: set[str], known: dict[str, tuple]) -> set[str]:
    """With the tests that enter a function those of the same file and first parameter: fixtures share what they computed."""
    family = {(node.split("::")[0], node.partition("[")[2].strip("]").split("-")[0]) for node in entered if "[" in node}
    return entered | {n for n in known if (n.split("::")[0], n.partition("[")[2].strip("]").split("-")[0]) in family}


@dataclass
class Module:
    """A module and what became of its changes."""

    name: str
    path: str
    source: str
    killed: int = 0
    lived: list[str] = field(default_factory=list)
    sites: int = 0

    @property
    def tried(self) -> int:
        return self.killed + len(self.lived)


def make_copy(folder: Path) -> Path:
    """The tree as it is installed: the guests' rooms inside the package too."""
    copy = folder / "tree"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "results", "build", "dist", "__pycache__", "*.egg-info", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    for room in ("strategies", "benchmarks", "configs"):
        (copy / "cl_toolkit" / room).symlink_to(copy / room)
    (copy / "tmp").mkdir()
    return copy


def modules_of(copy: Path, wanted: list[str]) -> list[Module]:
    """The modules whose name holds one of the words; all without words."""
    found = []
    for name in TESTS:
        if not wanted or any(word in name for word in wanted):
            path = copy / "cl_toolkit" / f"{name}.py"
            found.append(Module(name, str(path), path.read_text(encoding="utf-8")))
    return found


def baseline(copy: Path, modules: list[Module]) -> dict[str, tuple[float, set]]:
    """Test that passes -> (seconds, functions that it enters)."""
    files = sorted({f for m in modules for f in TESTS[m.name] if (copy / f).exists()})
    result, log = copy / "entered.json", copy / "baseline.log"
    plugin = Entered({m.path for m in modules}, result)
    os.waitpid(in_child(lambda: pytest_in(copy, files, [plugin], ()), log), 0)
    if not result.exists():
        sys.exit(log.read_text()[-4000:])
    found = json.loads(result.read_text())
    lines = log.read_text().strip().splitlines()
    print(
        "on the unchanged tree:",
        lines[-1],
        *(line for line in lines if line.startswith("FAILED")),
        sep="\n",
        flush=True,
    )
    return {node: (seconds, {tuple(e) for e in entered}) for node, (seconds, entered) in found.items()}


def chosen_tests(module: Module, function: int, known: dict[str, tuple[float, set]]) -> list[str]:
    """The tests that a change in this function is put to, shortest first."""
    places = {(module.path, function)} if function else None
    entered = {n for n, (_, e) in known.items() if (e & places if places else any(p == module.path for p, _ in e))}
    entered |= set() if function else {n for n in known if n.startswith(GENERAL)}  # they read classes and enter nothing
    files = tuple(TESTS[module.name])
    entered = {n for n in relatives(entered, known) if n.startswith(files)}
    spent, chosen = 0.0, []
    for node in sorted(entered, key=lambda n: (known[n][0], n)):
        spent += known[node][0]
        if spent > MOST and chosen:
            break
        chosen.append(node)
    return chosen


def try_change(copy: Path, module: Module, index: int, tests: list[str]) -> Callable[[], int]:
    """What a child does for one change: run the tests with it."""

    def work() -> int:
        tree = changed(module.source, index)[0]
        plain = importlib.machinery.SourceFileLoader.get_code

        def get_code(loader, name):
            mine = os.path.realpath(loader.path) == os.path.realpath(module.path)
            return compile(tree, module.path, "exec", dont_inherit=True) if mine else plain(loader, name)

        importlib.machinery.SourceFileLoader.get_code = get_code
        return pytest_in(copy, tests)

    return work


def sampled(modules: list[Module], number: str, seed: int) -> list[tuple[Module, int]]:
    """The changes that are tried: so many of each module, always the same ones."""
    chosen = []
    for module in modules:
        found = list(changes(ast.parse(module.source)))
        module.sites = sum(not change.idle for change in found)
        places = range(len(found))
        if number != "all":
            draw = random.Random(f"{seed}/{module.name}")
            places = sorted(draw.sample(places, min(int(number), len(found))))
        chosen += [(module, index) for index in places if not found[index].idle]
    return chosen


def shown_as(module: Module, index: int) -> str:
    """A change in words."""
    _, line, _, what = changed(module.source, index)
    return f"{module.name}.py:{line}: {what}"


def laws_of(module: Module) -> list[str]:
    """The laws that a strategy or an objective is put to; none for other modules."""
    room, _, name = module.name.rpartition("/")
    words = {"der": "der or derpp", "replay": "replay or power_law"}.get(name, name)
    return (
        [LAWS, "-k", f"test_law and ({words}) and not law_8 and not rewards"] if room.startswith("strategies") else []
    )


def laws_hold(copy: Path, module: Module, known: dict[str, bool]) -> bool:
    """Whether they hold on the unchanged tree; asked once."""
    if module.name not in known:
        pid = in_child(lambda: pytest_in(copy, laws_of(module)), copy / "tmp" / "laws.log")
        known[module.name] = os.waitpid(pid, 0)[1] == 0
    return known[module.name]


def run_all(copy: Path, queue: list, known: dict, options: argparse.Namespace) -> None:
    """Try every change of the queue, `jobs` at a time; fills in what became of them."""
    lawful: dict[str, bool] = {}
    running: dict[int, tuple] = {}
    while queue or running:
        while queue and len(running) < options.jobs:
            module, index, *again = queue.pop(0)
            function, shown = changed(module.source, index)[2], shown_as(module, index)
            tests = laws_of(module) if again else chosen_tests(module, function, known)
            seconds = 100 if again else sum(known[t][0] for t in tests)
            log = copy / "tmp" / f"{module.name.replace('/', '-')}-{index}.log"
            # without a test that enters it, pytest is not asked, since it would run all there are
            pid = in_child(try_change(copy, module, index, tests) if tests else lambda: 0, log)
            running[pid] = module, index, shown, again, time.monotonic() + 60 + 3 * seconds
        for pid, (module, index, shown, again, limit) in list(running.items()):
            late = time.monotonic() > limit
            if late:
                os.killpg(pid, signal.SIGKILL)
                print(f"without end  {shown}", flush=True)
            ended, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if not ended:
                continue
            del running[pid]
            if status:
                module.killed += 1
            elif (
                laws_of(module)
                and options.laws
                and not again
                and lawful.setdefault(module.name, laws_hold(copy, module))
            ):
                queue.append((module, index, "laws"))
            else:
                module.lived.append(shown)
                print(f"lived  {shown}", flush=True)
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="words of module names; none: all")
    parser.add_argument("-n", "--number", default="12", help="changes per module, or `all`")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--again", help="the output of an earlier call: only what lived there")
    parser.add_argument("--laws", action="store_true", help="put what lives in a strategy to its laws too; slow")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the copy goes away
    folder, began = Path(tempfile.mkdtemp(prefix="mutants-")), time.monotonic()
    try:
        copy = make_copy(folder)
        modules = modules_of(copy, options.modules)
        warm()
        queue = sampled(modules, options.number, options.seed)
        if options.again:
            before = Path(options.again).read_text(encoding="utf-8").splitlines()
            queue = [(m, i) for m, i in queue if f"lived  {shown_as(m, i)}" in before]
        run_all(copy, queue, baseline(copy, modules), options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n| module | places | changed | noticed | share |\n| --- | --- | --- | --- | --- |")
    total = Module("all", "", "", sum(m.killed for m in modules), [s for m in modules for s in m.lived])
    total.sites = sum(m.sites for m in modules)
    for m in (*modules, total):
        print(f"| {m.name} | {m.sites} | {m.tried} | {m.killed} | {m.killed / max(m.tried, 1):.0%} |")
    print("\nNot noticed:", *(total.lived or ["none"]), sep="\n- ")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
