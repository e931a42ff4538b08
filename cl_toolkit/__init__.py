"""Continual-learning training for language models: strategies, task streams, forgetting curves."""

from cl_toolkit.api import Study, compare, export, load, load_model, register, run
from cl_toolkit.errors import UserError
from cl_toolkit.measure.scorers import Scorer
from cl_toolkit.ranges import above, at_least
from cl_toolkit.strategy import Cost, Strategy, Tags, compose

__all__ = [
    "Cost",
    "Scorer",
    "Strategy",
    "Study",
    "Tags",
    "UserError",
    "above",
    "at_least",
    "compare",
    "compose",
    "export",
    "load",
    "load_model",
    "register",
    "run",
]
