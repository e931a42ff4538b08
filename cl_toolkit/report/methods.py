"""Which runs count, in what order methods come, and which method is the control of which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_toolkit.report.reading import Record, has_no_strategy, is_method, life_cycle, objective, one_level

Methods = Mapping[str, Sequence[Record]]
"""Method -> its finished runs."""


def is_plain(record: Record) -> bool:
    """One task after the other, and nothing done against forgetting."""
    return is_method(record) and has_no_strategy(record)


def control_names(records: Sequence[Record]) -> set[str]:
    """The methods that are controls: plain, with an objective that is a baseline; where there is none, all plain ones."""
    plain = [r for r in records if "config" in r and is_plain(r)]
    return {str(r["method"]) for r in [r for r in plain if r.get("baseline")] or plain}


def in_order(records: Sequence[Record]) -> list[Record]:
    """Controls first, then methods by name, then references (joint training and the like); within a method by order and
    seed. So neither colours nor bytes depend on the order in which files were found."""
    controls = control_names(records)

    def key(record: Record) -> tuple:
        method, seed = str(record.get("method")), str(record.get("seed"))
        group = 0 if method in controls else 1 if is_method(record) else 2
        return group, method, str(record.get("order")), len(seed), seed

    return sorted(records, key=key)


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Method -> its finished runs, in the order of the records."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.get("status") == "finished":
            groups.setdefault(str(record["method"]), []).append(record)
    return groups


def control_of(method: str, methods: Methods) -> tuple[str | None, str]:
    """The control's name (None without one), and what about it is not as it should be ("" when all is).

    It is plain, with the same objective and adapter life cycle; a plain method with another objective is compared with a
    baseline. Of several, the one with the fewest other settings.
    """
    own = methods[method][0]
    plain = [m for m, runs in methods.items() if m != method and is_plain(runs[0])]
    baselines = [m for m in plain if methods[m][0].get("baseline")]
    related = [m for m in plain if objective(methods[m][0]) == objective(own)]
    related = baselines if is_plain(own) else related
    matching = [m for m in related if life_cycle(methods[m][0]) == life_cycle(own)]
    candidates = matching or related or baselines
    if not candidates:
        return None, ""
    settings = one_level(own.get("config", {}))

    def differing(name: str) -> int:
        other = one_level(methods[name][0].get("config", {}))
        return sum(settings.get(k) != other.get(k) for k in settings.keys() | other.keys())

    missing = "" if matching else "adapter life cycle" if related else "objective"
    caveat = f"No control with the same {missing} was run." if missing else ""
    return min(candidates, key=lambda name: (differing(name), name)), caveat
