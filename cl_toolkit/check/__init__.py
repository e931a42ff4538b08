"""The contract suites: the laws of the house against whatever a config can name, a guest's or our own."""

from cl_toolkit.check.law import Result
from cl_toolkit.check.suites import SUITES, check

__all__ = ["SUITES", "Result", "check"]
