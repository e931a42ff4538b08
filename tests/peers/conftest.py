"""What Avalanche needs to be imported, and what it says."""

import vision  # noqa: F401  # its operators are declared


def pytest_configure(config):
    # said of what no test here uses: a solver that Avalanche imports, its own metrics
    for message in ("no QP solver found", "No loggers specified"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:UserWarning")
