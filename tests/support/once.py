"""What takes long and is plain data is made once, however many processes pytest has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, as JSON: the first that asks makes it, the others wait and read it. name: unique in the suite."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in that of the session
        shared = shared.parent
    path = shared / f"{name}.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


class Results(dict[str, Any]):
    """Results by the names of settings. The quick ones are tried when the first of them is asked for, and so are the others.

    name: unique in the suite. quick: whether a setting is, by its name. run: tries settings in an empty folder.
    """

    def __init__(
        self,
        factory: pytest.TempPathFactory,
        name: str,
        settings: Mapping[str, Any],
        quick: Callable[[str], bool],
        run: Callable[[Mapping[str, Any], Path], Mapping[str, Any]],
    ):
        super().__init__()
        self.factory, self.name, self.settings, self.quick, self.run = factory, name, settings, quick, run

    def __missing__(self, key: str) -> Any:
        group = f"{self.name}-{'quick' if self.quick(key) else 'long'}"
        mine = {k: setting for k, setting in self.settings.items() if self.quick(k) == self.quick(key)}
        self.update(once(self.factory, group, lambda: self.run(mine, self.factory.mktemp(group))))
        return self[key]
