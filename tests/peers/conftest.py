"""What Avalanche needs to be imported, and what it says."""

import os

import vision  # noqa: F401  # its operators are declared

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # else importing from there warns, which is an error here


def pytest_configure(config):
    # said of what no test here uses: a solver that Avalanche imports, its own metrics
    for message in ("no QP solver found", "No loggers specified"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:UserWarning")
