"""What a model says of a batch's targets: their logits and log-probabilities, and nothing of all other positions.

A vocabulary times all tokens of a batch is most of a step's memory and much of its time, and the objective looks at the
targets alone. So the head of a language model, whatever module it is, is called on these alone, inside the model's own
forward (ZeRO-3 gathers its weights there). What is made of logits in fp32 is made of a few rows at a time, and again in the
backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import evaluating, uncounted, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import IGNORE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cl_toolkit.types import Batch
else:
    torch = LazyModule("torch")

CHUNK, ON_GPU = 2**26, 4
"""Numbers of (rows, V) that may be there in fp32 at a time, 256 MiB; on a GPU, which must be kept busy, so many times that."""

KL_TENSORS = 12
"""Tensors as large as its logits that a KL of two distributions and its gradient make."""


@dataclass
class Predicted:
    """Of the N targets of `Batch.asked`: logp (N,) in fp32; logits (N, V) as the model computes them, None unless wanted."""

    logp: Tensor
    logits: Tensor | None


def logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log p of each label (N,) by its logits (N, V): (N,) in fp32."""
    logits = logits.float() if temperature == 1.0 else logits.float() / temperature
    return -torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def drawn(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One entry of each row of logits (N, V), (N,): where its cumulated distribution passes the row's uniform number (N,). What
    is drawn does not depend on the device but for its rounding."""
    cumulated = torch.softmax(logits.float(), -1).cumsum(-1)
    u = uniforms.to(logits.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, u, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]


def by_rows(value: Callable[..., Tensor], width: int, *tensors: Tensor) -> Tensor:
    """`value(*tensors)` (N,), of which each row depends on the same row of the tensors (N, ...) alone: of so many rows at a
    time that what is `width` wide stays within `CHUNK`, forgotten after the forward and made again in the backward."""
    rows = max(1, CHUNK * (ON_GPU if tensors[0].is_cuda else 1) // max(width, 1))
    if len(tensors[0]) <= rows:
        return value(*tensors)
    from torch.utils.checkpoint import checkpoint

    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(value, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def predicted(model: nn.Module, part: Batch, temperature: float = 1.0, logits: bool | None = None) -> Predicted:
    """What the model says of the part's targets. logits: whether they are wanted; None: as the part says. temperature: divides
    the logits before the log-probabilities."""
    asked, wanted = part.asked, part.wants_logits if logits is None else logits
    if not wanted and part.labels.dim() > 1 and getattr(plain := unwrapped(model), "says_logits", False):
        head, width = plain.get_output_embeddings(), _width(plain)

        def likely(rows: Tensor) -> Tensor:
            def of(rows: Tensor, labels: Tensor) -> Tensor:
                return logprobs(said(rows), labels, temperature)

            return by_rows(of, width, rows, asked.labels)[None]

        with _replaced(head, lambda hidden: likely(_at(hidden, part))) as said:
            return Predicted(model(**part.inputs).logits[0], None)
    found = target_logits(model, part)
    logp = by_rows(lambda rows, labels: logprobs(rows, labels, temperature), found.shape[1], found, asked.labels)
    return Predicted(logp, found if wanted else None)


def negative_logp(model: nn.Module, part: Batch) -> tuple[Tensor, Tensor | None]:
    """The sum of -log p over the targets that are learned, and the logits of all, (N, V), where they are wanted."""
    # one class to each row, which all count the same: nothing has to be looked for
    if part.labels.dim() == 1 and not part.wants_logits and part.weights is None:
        logits = model(**part.inputs).logits.float()
        return torch.nn.functional.cross_entropy(logits, part.labels, ignore_index=IGNORE, reduction="sum"), None
    said = predicted(model, part)
    return -part.asked.total(said.logp), said.logits


def target_logits(model: nn.Module, part: Batch) -> Tensor:
    """The logits (N, V) that predict the part's targets, as the model computes them; V classes or tokens."""
    asked = part.asked
    if part.labels.dim() == 1:
        logits = model(**part.inputs).logits
        return logits if len(asked.places) == len(logits) else logits.index_select(0, asked.places)
    plain = unwrapped(model)
    head = getattr(plain, "get_output_embeddings", lambda: None)()
    if head is None:
        return _at(model(**part.inputs).logits, part)
    with _replaced(head, lambda hidden: said(_at(hidden, part))[None]) as said:
        logits = model(**part.inputs).logits
    return _at(logits, part) if logits.shape[:2] == part.labels.shape else logits[0]  # the model may pass by its head


def _at(outputs: Tensor, part: Batch) -> Tensor:
    """outputs (B, T, ...) at the places of the part's targets, (N, ...). Raises ValueError where they are not of its tokens."""
    if outputs.shape[:2] != part.labels.shape:
        raise ValueError(f"outputs {tuple(outputs.shape[:2])} do not go with labels {tuple(part.labels.shape)}")
    return outputs.flatten(0, 1).index_select(0, part.asked.places)


def _width(plain: Any) -> int:
    """V, also where weights are shards."""
    return int(plain.config.get_text_config().vocab_size)


@contextmanager
def _replaced(head: Any, forward: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """The head with another forward, its hooks as they are; gives its own forward."""
    own, had = head.forward, "forward" in vars(head)
    head.forward = forward
    try:
        yield own
    finally:
        if had:
            head.forward = own
        else:
            del head.forward


def says_logits(model: Any) -> bool:
    """Whether a model's logits are what its head gives, unchanged: then the head may say log-probabilities instead. One that
    caps or scales its logits afterwards says them first. Tried with numbers of which a cap of any size would be seen."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        return False
    numbers = torch.linspace(-1e4, 1e4, _width(model), device=next(model.parameters()).device)
    ids = torch.zeros(1, 2, dtype=torch.long, device=numbers.device)
    written = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}

    def unchanged(given: Tensor) -> bool:
        with uncounted(), evaluating(model), _replaced(head, lambda hidden: given):
            try:
                return torch.equal(model(input_ids=ids, **written).logits.float(), given)
            except RuntimeError:  # something of the vocabulary's width is added
                return False

    return unchanged(numbers.expand(1, 2, -1)) and unchanged(numbers[None, :3])
