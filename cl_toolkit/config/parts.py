"""The classes behind a config's strategies, and what they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.registry import STRATEGIES, made
from cl_toolkit.strategy import Strategy, Tags

if TYPE_CHECKING:
    from cl_toolkit.config.schema import Component


def tags_of(component: Component) -> Tags:
    """What a strategy with these settings asks for."""
    cls, settings = strategy_class(component), component.settings
    return (settings if isinstance(settings, cls) else made(cls, settings, f"strategies.{component.name}")).as_set


def strategy_class(component: Component) -> type[Strategy]:
    """The class behind a strategy component; its settings may be a ready instance (notebooks)."""
    if isinstance(component.settings, Strategy):
        return type(component.settings)
    return STRATEGIES.get(component.name, "strategies")
