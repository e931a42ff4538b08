"""The source of what is not built in: a file with the files beside it that it imports, a notebook's class, a distribution."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where code comes from (`my.py:Mine`, `package.module:Class`) and a hash over all of it. distribution: name and version
    of the installed package that brings it."""

    origin: str
    digest: str
    distribution: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        kept = {key: value for key, value in asdict(self).items() if value is not None}
        return {"from": kept.pop("origin"), "hash": kept.pop("digest"), **kept}


def digest_of(parts: Iterator[bytes] | list[bytes]) -> str:
    """The first 16 hex digits of a SHA-256 over parts, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The SHA-256 of what a file holds, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(paths: Iterable[Path]) -> str:
    """A hash over files' names and what they hold; of one that cannot be read, that it cannot."""
    found = hashlib.sha256()
    for path in paths:
        try:
            content = bytes.fromhex(file_hash(path))
        except OSError:
            content = b""
        found.update(digest_of([str(path).encode(), content]).encode())
    return found.hexdigest()[:16]


def file_source(path: Path, origin: str | None = None) -> Source:
    """A file and, where it is Python, the files of one's own that it imports, directly or through others."""
    paths = own_files(path.resolve())
    return Source(origin or str(path), digest_of([p.read_bytes() for p in paths]))


def object_source(thing: Any, origin: str | None = None) -> Source:
    """A class or function: its module's files, or its own source where it was typed into a notebook or a script."""
    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    origin = origin or f"{thing.__module__}:{thing.__qualname__}"
    if file is None or thing.__module__ == "__main__":
        return Source(origin, digest_of([typed_source(thing).encode()]))
    name = thing.__module__.split(".")[0]
    distribution = None
    if not is_own(Path(file)):
        try:
            (owner, *_) = packages_distributions().get(name, [name])
            distribution = f"{owner} {version(owner)}"
        except PackageNotFoundError:
            distribution = None
    paths = own_files(Path(file).resolve())
    return Source(origin, digest_of([p.read_bytes() for p in paths]), distribution)


def typed_source(thing: Any) -> str:
    """The text of a class or function and of the functions of its own module that it names; its bytecode where there is no
    text."""
    seen: dict[str, str] = {}

    def visit(item: Any) -> None:
        name = f"{item.__module__}.{item.__qualname__}"
        if name in seen:
            return
        try:
            seen[name] = inspect.getsource(item)
        except (OSError, TypeError):
            seen[name] = "\n".join(_code_text(code) for code in _codes(item))
        for code, scope in _scoped(item):
            for used in code.co_names:
                other = scope.get(used)
                if isinstance(other, (types.FunctionType, type)) and other.__module__ == item.__module__:
                    visit(other)
                elif isinstance(other, (int, float, str, bool, tuple)):
                    seen.setdefault(f"{name} uses {used}", repr(other))

    visit(thing)
    return "\n".join(f"{name}\n{text}" for name, text in sorted(seen.items()))


def _functions(item: Any) -> Iterator[types.FunctionType]:
    members = vars(item).values() if isinstance(item, type) else [item]
    for member in members:
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, types.FunctionType):
            yield function


def _scoped(item: Any) -> Iterator[tuple[types.CodeType, dict[str, Any]]]:
    for function in _functions(item):
        yield function.__code__, function.__globals__


def _codes(item: Any) -> Iterator[types.CodeType]:
    for code, _ in _scoped(item):
        yield code


def _code_text(code: types.CodeType) -> str:
    consts = [_code_text(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_name} {code.co_code.hex()} {code.co_names} {consts}"


READERS = ("report", "check", "cli", "__main__.py")
"""Packages and files of the toolkit that read records, print or test: no number of a run depends on them."""


@cache
def toolkit_source() -> str:
    """A hash over the source of the toolkit, without what only reads records."""
    root = Path(__file__).resolve().parent
    rooms = {"cl_toolkit": root}
    for name in ("strategies", "benchmarks"):
        module = __import__(f"cl_toolkit.{name}", fromlist=["__file__"])
        rooms[name] = Path(str(module.__file__)).resolve().parent
    digest = hashlib.sha256()
    for name, folder in rooms.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder)
            if inner.parts[0] not in READERS:
                digest.update(f"{name}/{inner.as_posix()}".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages, wherever they lie."""


@cache
def _not_own() -> frozenset[Path]:
    """The folders of Python and of the toolkit."""
    pythons = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    toolkit = Path(__file__).resolve().parent
    rooms = [toolkit, *(toolkit.parent / room for room in ("strategies", "benchmarks", "configs"))]
    return frozenset(root.resolve() for root in (*pythons, *rooms))


def is_own(path: Path) -> bool:
    """Whether a file is the user's: neither Python's, nor of an installed package, nor the toolkit's."""
    resolved = path.resolve()
    if not INSTALLED.isdisjoint(resolved.parts):  # also of a user, of the system below a venv, of another venv
        return False
    return _not_own().isdisjoint((resolved, *resolved.parents))


def own_files(path: Path, met: dict[Path, None] | None = None) -> list[Path]:
    """A Python file and the files of one's own that it imports, each once; any other file alone."""
    met = {} if met is None else met
    if path in met:
        return list(met)
    met[path] = None
    if path.suffix != ".py":
        return list(met)
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return list(met)
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        found = [file for name in names for file in _module_files(name, path.parent)]
        if isinstance(node, ast.ImportFrom) and node.level:  # of the package that it stands in
            found += _own_package(path.parents[min(node.level, len(path.parents)) - 1])
        for file in found:
            own_files(file, met)
    return list(met)


def _own_package(folder: Path) -> list[Path]:
    """All files of a package of one's own, which need not have an `__init__.py`."""
    return sorted(p.resolve() for p in folder.rglob("*.py")) if is_own(folder / "__init__.py") else []


def _module_files(name: str, folder: Path) -> list[Path]:
    """The files of one's own behind `import name` in a file of that folder: of a package all of them. Found as Python finds
    them: a folder without `__init__.py` comes last."""
    top = name.split(".")[0]
    if is_own(folder / f"{top}.py"):
        if (folder / f"{top}.py").is_file():
            return [folder / f"{top}.py"]
        if (folder / top / "__init__.py").is_file():
            return _own_package(folder / top)
    if top in sys.stdlib_module_names:
        return []
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        folders = [folder / top, *map(Path, (spec and spec.submodule_search_locations) or ())]
    elif spec.submodule_search_locations:
        folders = [Path(place) for place in spec.submodule_search_locations]
    else:
        return [Path(spec.origin).resolve()] if is_own(Path(spec.origin)) else []
    return [file for place in dict.fromkeys(folders) for file in _own_package(place)]


def loaded_from(files: list[Path], folder: Path) -> list[str]:
    """The loaded modules that come from these files, or bear the name under which a file of that folder finds them."""
    tops = {f.relative_to(folder).parts[0].removesuffix(".py") for f in files if f.is_relative_to(folder)}
    names = {f.name for f in files}
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        same = file is not None and Path(file).name in names and Path(file).resolve() in files
        if same or name.split(".")[0] in tops:
            places = [file] if file else list(getattr(module, "__path__", ()))
            if name != "__main__" and any(is_own(Path(place)) for place in places):  # may be called as a library is
                found.append(name)
    return found
