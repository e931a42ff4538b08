"""What takes long and is plain data is made once, however many processes pytest has."""

import json
import os
from collections.abc import Callable
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
