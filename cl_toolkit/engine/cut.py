"""How a step's rows become micro-batches: neighbours in length together, or packed into rows that hold several examples.

The gradient of a step is a sum over its targets, so that none of this changes what is learned; it decides how much padding
goes through the model, and how many shapes a device has to prepare for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cl_toolkit.types import IGNORE, Batch


def cut(batch: Batch, size: int | None, packed: int | None, multiple: int = 1) -> list[Batch]:
    """The parts of a batch, of at most `size` rows each (None: one part). packed: tokens of a row that holds several examples;
    None: an example is a row. multiple: widths are rounded up to one of it, so that there are few of them."""
    if packed is not None and "labels" in batch.along_tokens:
        rows = into_rows(batch.lengths.tolist(), packed)
        step = size or len(rows)
        return [pack(batch, rows[i : i + step], packed, multiple) for i in range(0, len(rows), step)]
    count = len(batch.labels)
    step = size or count
    if step >= count:
        return [widened(batch, multiple)]
    order = list(range(count))
    if batch.along_tokens:
        lengths = batch.lengths.tolist()
        order.sort(key=lambda row: -lengths[row])
    return [widened(batch.rows(order[i : i + step]), multiple) for i in range(0, count, step)]


def into_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which examples share a row of `width` tokens: each, from the longest on, goes to the first row that has room for it. One
    that is longer has a row of its own."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = (row for row, left in enumerate(room) if left >= lengths[index])
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max(width, lengths[index]))
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def pack(batch: Batch, rows: Sequence[Sequence[int]], width: int, multiple: int) -> Batch:
    """The examples of `rows` one after the other in one row of tokens each, apart by their positions, which begin anew in each
    (`models/documents.py` says why). What is left of a row is one more piece, without a target."""
    lengths, wide = batch.lengths.tolist(), batch.labels.shape[1]
    examples = [index for row in rows for index in row]
    longest = max(sum(lengths[index] for index in row) for row in rows)
    width = -(-max(width, longest) // multiple) * multiple
    source, target = [], []
    owners, places = torch.zeros(len(rows), width, dtype=torch.long), torch.arange(width).repeat(len(rows), 1)
    packed = 0
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            source.append(torch.arange(lengths[index]) + index * wide)
            target.append(torch.arange(at, at + lengths[index]) + number * width)
            owners[number, at : at + lengths[index]] = packed
            packed, at = packed + 1, at + lengths[index]
        places[number, at:] -= at  # the rest of the row
    before, after = torch.cat(source), torch.cat(target)

    def moved(name: str, tensor: Tensor) -> Tensor:
        if name not in batch.along_tokens:
            return tensor[examples]
        rest = tensor.new_full((len(rows) * width, *tensor.shape[2:]), IGNORE if name == "labels" else 0)
        rest[after] = tensor.flatten(0, 1)[before]
        return rest.view(len(rows), width, *tensor.shape[2:])

    own = batch.inputs.get("position_ids")
    positions = torch.arange(wide).expand_as(batch.labels) if own is None else own
    places.view(-1)[after] = positions.flatten()[before]
    found = batch.map(moved, owners=owners, examples=tuple(batch.examples[i] for i in examples), memo={})
    found.inputs.pop("attention_mask", None)
    found.inputs["position_ids"] = places
    found.along_tokens = found.along_tokens - {"attention_mask"} | {"position_ids"}
    return found


def widened(batch: Batch, multiple: int) -> Batch:
    """The batch with a width that is a multiple, by padding on the right."""
    missing = -batch.labels.shape[-1] % multiple if "labels" in batch.along_tokens else 0
    if not missing:
        return batch

    def wider(name: str, tensor: Tensor) -> Tensor:
        if name not in batch.along_tokens:
            return tensor
        rest = tensor.new_full((len(tensor), missing, *tensor.shape[2:]), IGNORE if name == "labels" else 0)
        return torch.cat([tensor, rest], 1)

    return batch.map(wider)


def shared_out(total: Mapping[str, float], share: float | None) -> tuple[float, float] | None:
    """What a target counts, of a rehearsed example and of a new one, so that the rehearsed ones carry that share of the step's
    loss: spread over M of T targets, a share s makes each count s T / M. None: all the same, or one of them has none."""
    tokens, memory = total["tokens"], total["memory_tokens"]
    if share is None or not 0 < memory < tokens:
        return None
    return share * tokens / memory, (1 - share) * tokens / (tokens - memory)
