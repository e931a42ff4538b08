"""Settings that are drawn and not enumerated: the tree-structured Parzen estimator of Optuna (Bergstra et al. 2011; Akiba et
al. 2019, 1907.10902). The only door to optuna, which the extra `tune` installs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_toolkit.errors import UserError
from cl_toolkit.study.search import Axes, Span, combinations, rounded

AT_RANDOM = 10
"""Trials of a method that are drawn before any result is looked at: Optuna's own number."""
DRAWS = 100
"""Draws of what was tried already, after which the first value that was not is taken."""


def drawn(
    axes: Axes, known: Sequence[tuple[Mapping[str, Any], float | None]], count: int, seed: int
) -> list[dict[str, Any]]:
    """So many new combinations. known: those that were tried, each with how good it was (more is better; None: it failed). The
    same arguments give the same combinations, so that a search which was stopped goes on as it would have."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("search.sampler: tpe needs optuna: pip install 'cl-toolkit[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: distribution(optuna.distributions, axis) for key, axis in axes.items()}
    sampler = optuna.samplers.TPESampler(seed=seed + len(known), n_startup_trials=AT_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, merit in known:
        params = {key: values[key] if isinstance(axis, Span) else axis.index(values[key]) for key, axis in axes.items()}
        # Optuna forgets a trial that failed, and would draw its like again and again; a pruned one counts as the worst
        state = optuna.trial.TrialState.PRUNED if merit is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(state=state, params=params, distributions=distributions, value=merit))
    met = [dict(values) for values, _ in known]
    found: list[dict[str, Any]] = []
    for _ in range(DRAWS + count):
        if len(found) == count:
            break
        params = study.ask(distributions).params
        values = {key: value_of(axis, params[key]) for key, axis in axes.items()}
        if values not in met:
            met.append(values)
            found.append(values)
    lists = {key: axis for key, axis in axes.items() if not isinstance(axis, Span)}
    rest = (values for values in combinations(lists) if values not in met) if len(lists) == len(axes) else iter(())
    return [*found, *(values for values, _ in zip(rest, range(count - len(found)), strict=False))]


def distribution(kinds: Any, axis: Span | Sequence[Any]) -> Any:
    """What Optuna draws a setting from; of a list the place in it, since its values may be anything."""
    if not isinstance(axis, Span):
        return kinds.CategoricalDistribution(list(range(len(axis))))
    kind = kinds.IntDistribution if axis.whole else kinds.FloatDistribution
    return kind(axis.low, axis.high, log=axis.log)


def value_of(axis: Span | Sequence[Any], drawn: Any) -> Any:
    """A setting's value."""
    if not isinstance(axis, Span):
        return axis[drawn]
    return drawn if axis.whole else min(max(rounded(drawn), axis.low), axis.high)
