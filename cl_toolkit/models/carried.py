"""A second batch that rides in a batch and is cut with it: other prompts before the same answers, or other answers."""

from __future__ import annotations

from cl_toolkit.types import Batch


def carry(batch: Batch, name: str, other: Batch) -> None:
    """Put another batch with a row for each example into a batch. Its rows are not packed and keep their width."""
    answers = other.labels if other.targets is None else other.targets
    batch.extra |= {f"{name}.{key}": tensor for key, tensor in {**other.inputs, "labels": answers}.items()}


def carried(part: Batch, name: str) -> Batch:
    """The rows that ride in a part. They have targets where the part's examples have answers, learned or not, in the order of
    the part's examples."""
    tensors = {key.removeprefix(f"{name}."): t for key, t in part.extra.items() if key.startswith(f"{name}.")}
    return Batch(inputs=tensors, labels=tensors.pop("labels"), examples=part.examples, total=part.total)
