"""Import a heavy library at its first use, so that `--help`, `list` and the refusal of a wrong config answer at once."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class LazyModule:
    """Stands for a module; the first attribute access imports it.

    `torch = LazyModule("torch")` at the top of a strategy's file keeps its `Config` readable without loading torch.
    A guest's file may as well `import torch`.
    """

    def __init__(self, name: str):
        self._name = name
        self._module: ModuleType | None = None

    def __getattr__(self, attribute: str) -> Any:
        if self._module is None:
            self._module = importlib.import_module(self._name)
        found = getattr(self._module, attribute)
        setattr(self, attribute, found)  # the next access finds it here: a step of a small net counts microseconds
        return found
