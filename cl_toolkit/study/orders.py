"""The task orders of a comparison."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cl_toolkit.errors import UserError, did_you_mean, quoted, refuse_doubles, short

FORMS = "expected a list of task lists, given, reversed, and {random: how many, seed: 0}"


def orders_of(orders: Any, tasks: Callable[[], Sequence[str]], where: str) -> list[list[str] | None]:
    """Every order as task names; None for the stream's own, and [None] where nothing else is asked for.

    tasks: the names in the stream's own order, asked for only where an order is made of them. Random orders depend on their
    seed and the names alone; none of them is the stream's own or its reverse, or one of the others.
    """
    if orders is None or orders == []:
        return [None]
    if not isinstance(orders, list):
        raise UserError(f"{where}: orders: {FORMS}, got {quoted(orders)}")
    found: list[list[str] | None] = []
    for item in orders:
        if item is None or item == "given":
            found.append(None)
        elif item == "reversed":
            found.append(list(tasks())[::-1])
        elif isinstance(item, Mapping) and "random" in item and set(item) <= {"random", "seed"}:
            number, seed = item["random"], item.get("seed", 0)
            if not all(isinstance(n, int) and not isinstance(n, bool) for n in (number, seed)) or number < 1:
                raise UserError(
                    f"{where}: orders: random: expected a whole number of 1 or more, got {quoted(dict(item))}"
                )
            found += drawn(list(tasks()), number, seed, where)
        elif isinstance(item, list):
            found.append(item)
        else:
            raise UserError(f"{where}: orders: {FORMS}, got {quoted(item)}")
    refuse_doubles(["the stream's own" if o is None else ", ".join(map(str, o)) for o in found], f"{where}: orders")
    return found


def drawn(tasks: Sequence[str], number: int, seed: int, where: str) -> list[list[str] | None]:
    """So many random orders. One is the names by their hashes, which is the same with every version of Python."""
    most = max(0, math.factorial(len(tasks)) - 2)
    if number > most:
        others = f"{len(tasks)} tasks have {most} orders beside their own and its reverse"
        raise UserError(f"{where}: orders: random: expected at most {most}, since {others}; got {number}")
    found: list[list[str] | None] = []
    draw = 0
    while len(found) < number:
        order = sorted(tasks, key=lambda name: hashlib.sha256(json.dumps([seed, draw, name]).encode()).digest())
        if order not in (list(tasks), list(tasks)[::-1], *found):
            found.append(order)
        draw += 1
    return found


def order_name(order: Sequence[str] | None) -> str:
    """An order's name, by its content: the tasks with + between, or a hash where that would be long or no folder's name."""
    if order is None:
        return "given"
    name = "+".join(map(str, order))
    if len(name) <= 40 and re.fullmatch(r"[\w.+-]*[\w+-]", name):
        return name
    return f"order-{hashlib.sha256(json.dumps(list(order)).encode()).hexdigest()[:8]}"


def find_order(wanted: str, orders: Sequence[Sequence[str] | None]) -> Sequence[str] | None:
    """One of the orders of a comparison, by its name or its number from 1."""
    names = {order_name(order): order for order in orders}
    if wanted.isdigit() and 1 <= int(wanted) <= len(orders):
        return orders[int(wanted) - 1]
    if wanted not in names:
        raise UserError(f"--order {short(wanted)}: no such order{did_you_mean(wanted, names)}")
    return names[wanted]
