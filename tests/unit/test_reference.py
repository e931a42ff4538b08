"""The API reference is built without a warning, and a warning would end it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def built(code, folder):
    """docs/reference.py after `code`, in a process of its own: pdoc imports what annotations name into the modules."""
    run = f"import sys; sys.path.insert(0, {str(ROOT / 'docs')!r}); import reference, pathlib\n{code}\n"
    run += f"reference.build(pathlib.Path({str(folder)!r}))"
    return subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, timeout=300)


def test_the_reference_is_built_without_a_warning(tmp_path):
    done = built("", tmp_path)
    assert done.returncode == 0, done.stderr
    strategy = (tmp_path / "cl_toolkit" / "strategy.html").read_text(encoding="utf-8")
    assert "<strong>needs_trained</strong>" in strategy
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(page in index for page in ("cl_toolkit.html", "models/kind.html", "runs/tracker.html"))


def test_a_warning_ends_it(tmp_path):
    (tmp_path / "unreadable.py").write_text("def f(x: 'Missing') -> None: ...\n", encoding="utf-8")
    done = built(f"sys.path.insert(0, {str(tmp_path)!r}); reference.MODULES = ('unreadable',)", tmp_path / "pages")
    assert done.returncode != 0
    assert "Missing" in done.stderr
