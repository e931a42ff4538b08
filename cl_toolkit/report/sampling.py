"""How far a score may be off because a test set is a sample."""

from __future__ import annotations

import numpy as np

from cl_toolkit.report.reading import Record, scores


def sampling_variance(record: Record, path: str) -> float:
    """Variance of a run's ACC, BWT or learning accuracy (`metrics.acc`, ...) from the finite test sets alone (ours).

    A score p on m examples has variance p(1 - p) / m, which bounds partial credit between 0 and 1 too. p is drawn in as
    (p m + 1) / (m + 2) (Laplace), so that 0 and 1 are not taken for certain and no variance is below that of rounding to
    whole answers, 1 / (12 m^2). Cells count as independent; the cells of a BWT share their questions, so its variance is
    smaller than said here. 0 where nothing can be known: no `examples_scored`, scores outside 0 to 1 or of a scorer that
    could give such, another metric.
    """
    matrix, sizes = scores(record.get("matrix") or [[]]), record.get("examples_scored") or ()
    tasks = matrix.shape[1]
    if path not in WEIGHTS or len(sizes) != tasks or not tasks or not all(sizes):
        return 0.0
    weights = WEIGHTS[path](tasks)
    used = weights > 0
    p, m = matrix[used], np.broadcast_to(np.array(sizes, dtype=float), matrix.shape)[used]
    if not ((p >= 0) & (p <= 1)).all() or not all(record.get("bounded") or ()):  # NaN too
        return 0.0
    p = (p * m + 1) / (m + 2)
    return float((weights[used] * p * (1 - p) / m).sum())


def _acc(tasks: int) -> np.ndarray:
    weights = np.zeros((tasks + 1, tasks))
    weights[-1] = 1 / tasks**2
    return weights


def _learning(tasks: int) -> np.ndarray:
    weights = np.zeros((tasks + 1, tasks))
    weights[1:][np.diag_indices(tasks)] = 1 / tasks**2
    return weights


def _bwt(tasks: int) -> np.ndarray:
    weights = np.zeros((tasks + 1, tasks))
    if tasks > 1:
        early = np.arange(tasks - 1)
        weights[early + 1, early] = weights[-1, early] = 1 / (tasks - 1) ** 2
    return weights


WEIGHTS = {"metrics.acc": _acc, "metrics.bwt": _bwt, "metrics.learning_accuracy": _learning}
"""Metric -> tasks -> by how much the variance of each cell enters its own."""
