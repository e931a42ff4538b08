"""`python docs/reference.py [FOLDER]`: the API reference as pages, by default in docs/reference. A warning is an error."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pdoc
from jinja2 import ChoiceLoader, DictLoader, pass_context
from jinja2.runtime import Context
from pdoc.render_helpers import to_markdown_with_context

MODULES = (
    "cl_toolkit",
    *(f"cl_toolkit.{name}" for name in ("strategy", "objective", "task_view", "types", "registry", "data.streams")),
    *(f"cl_toolkit.{name}" for name in ("models.kind", "models.requests", "measure.probe", "measure.scorers")),
    *(f"cl_toolkit.{name}" for name in ("runs.tracker", "runs.events")),
)
"""What `import cl_toolkit` offers, and the contracts of what can be brought along."""

INDEX = """{% set root_module_name = false %}{% extends "default/index.html.jinja2" %}
{% block title %}cl-toolkit{% endblock %}{% block logo %}<h1>cl-toolkit</h1>{% endblock %}"""

NAME = r"`?[a-z]\w*`?"
ENTRY = re.compile(rf"(?:^|(?<=\.) )({NAME}(?:, {NAME})*): ", re.MULTILINE)


@pass_context
def markdown(context: Context, text: str) -> str:
    """A docstring as Markdown: text as it is, and what stands as `name: what that is` as a list."""
    listed = ENTRY.sub(lambda found: f"\n- **{found[1].replace('`', '')}**: ", text)
    before, mark, entries = listed.partition("\n- **")
    rest = entries.replace("\n\n- **", mark)  # else a list of paragraphs
    return to_markdown_with_context(context, f"{before}\n{mark}{rest}")


def build(folder: Path) -> None:
    """Write the pages of `MODULES`; raises where pdoc warns."""
    pdoc.render.configure(docformat="markdown", show_source=False)
    pdoc.render.env.loader = ChoiceLoader([DictLoader({"index.html.jinja2": INDEX}), pdoc.render.env.loader])
    pdoc.render.env.filters["to_markdown"] = markdown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "reference")
