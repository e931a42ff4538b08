"""Documents as tokens: packed into rows to learn from, cut into windows to be scored.

A piece is a stretch of a document whose first token is context and no target. A document that is cut goes on with the last
token of the piece before it, so that each of its tokens but the first is a target once, and none is lost. A block is an
Example made of pieces one after the other: `extra["tokens"]` (T,) and `extra["starts"]` (P,), the places where its pieces
begin. Nothing is seen across pieces (as in Krell et al. 2021, arXiv 2107.02027).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import evaluating, unwrapped
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import IGNORE, Batch, Example

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
else:
    torch = LazyModule("torch")


def is_document(example: Example) -> bool:
    """Whether an example is a text to be read from its beginning to its end, or a block of such texts."""
    return example.text is not None or "starts" in example.extra


def windows(ids: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """A document's tokens in pieces of at most `width`."""
    for start in range(0, max(len(ids) - 1, 1), width - 1):
        yield ids[start : start + width]


def packed(examples: Sequence[Example], encode: Callable[[Example], list[int]], size: int) -> list[Example]:
    """Blocks of `size` tokens that hold all documents, in their order. A document that does not fit into what is left of a
    block goes on in the next one. The last block may be shorter; so is one in which only a single token would have room."""
    blocks: list[Example] = []
    row: list[int] = []
    starts: list[int] = []
    name = ""

    def close() -> None:
        tokens, places = torch.tensor(row, dtype=torch.int32), torch.tensor(starts, dtype=torch.int32)
        blocks.append(Example(id=name, extra={"tokens": tokens, "starts": places}))
        row.clear()
        starts.clear()

    for example in examples:
        ids, at = encode(example), 0
        while at < len(ids) - 1:
            if size - len(row) < 2:
                close()
            name = name if row else f"{example.id}:{at}"
            starts.append(len(row))
            piece = ids[at : at + size - len(row)]
            row += piece
            at += len(piece) - 1
    if row:
        close()
    return blocks


def row_of(block: Example) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, labels) of a block: the first token of each piece is no target."""
    tokens = block.extra["tokens"].numpy()
    labels = tokens.copy()
    labels[block.extra["starts"].numpy()] = IGNORE
    return tokens, labels


def apart(batch: Batch) -> Batch:
    """The same rows with positions (B, T) that begin anew in each piece, in the place of the attention mask.

    By them, and only without a mask, transformers tells pieces apart (`masking_utils.find_packed_sequence_indices`). Padding is
    one more piece; `extra["lengths"]` (B,) says where it begins.
    """
    mask = batch.inputs["attention_mask"]
    begins, places = torch.zeros_like(mask), torch.arange(mask.shape[1])
    for row, (example, length) in enumerate(zip(batch.examples, mask.sum(1).tolist(), strict=True)):
        if "starts" in example.extra:
            begins[row, example.extra["starts"].long()] = 1
        begins[row, length:][:1] = 1
    positions = places - (begins * places).cummax(1).values
    return replace(
        batch,
        inputs={"input_ids": batch.inputs["input_ids"], "position_ids": positions},
        extra={**batch.extra, "lengths": mask.sum(1)},
        along_tokens=batch.along_tokens - {"attention_mask"} | {"position_ids"},
    )


def check_apart(model: nn.Module, place: str) -> None:
    """Raise UserError, which begins with `place`, for a model that sees from one piece of a row into another: what it says of a
    piece's tokens must be the same beside another piece as alone, up to a tenth of the difference that seeing it makes."""
    plain = unwrapped(model)
    device, rows = next(model.parameters()).device, plain.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (1, 8), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]], device=device)
    with evaluating(unwrapped(model)):
        try:
            beside = model(input_ids=ids, position_ids=positions).logits[:, 4:]
        except TypeError as error:
            raise UserError(f"{place} packs pieces into rows, and the model takes no position_ids: {error}") from error
        alone, seen = model(input_ids=ids[:, 4:]).logits, model(input_ids=ids).logits[:, 4:]
    noise = 8 * torch.finfo(alone.dtype).eps * float(alone.abs().max())
    moved, differs = (float((other.float() - alone.float()).abs().max()) for other in (beside, seen))
    if moved > max(noise, 0.1 * differs):
        raise UserError(
            f"{place} packs pieces into rows, and the model sees from one piece into the next; use a model whose "
            "attention goes by position_ids"
        )
