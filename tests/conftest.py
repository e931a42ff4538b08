"""Shared by all tests: one thread, no network, a cache of their own."""

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    os.environ["CL_TOOLKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


HELD = {"modules": 0}


def pytest_runtest_setup(item):
    """Libraries stay until the end: the collector of garbage need not look at their half a million objects again and again."""
    if len(sys.modules) > HELD["modules"] + 200:
        gc.collect()
        gc.freeze()
        HELD["modules"] = len(sys.modules)
