"""The contract suite: the laws of the house against any strategy or objective, a guest's or our own."""

from cl_toolkit.check.laws import LAWS, Result, check

__all__ = ["LAWS", "Result", "check"]
