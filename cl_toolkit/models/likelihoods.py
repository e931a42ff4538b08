"""How likely tokens are: of whole rows, and of the answers that go on from what was read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import by_rows, logprobs
from cl_toolkit.models.prefix import Prefix
from cl_toolkit.types import IGNORE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cl_toolkit.models.text import TextCodec
else:
    torch = LazyModule("torch")


def target_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log p (N,) of the N tokens of `targets` (B, T) that are not IGNORE, row by row; logits (B, T, V) stand where what they
    say does."""
    rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
    return by_rows(lambda i, t: logprobs(logits[i, t], targets[i, t]), logits.shape[-1], rows, columns)


def whole_rows(
    codec: TextCodec, model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], few: bool
) -> list[list[float]]:
    """Per (context, tokens) the log p of each of these tokens, by rows that are read from their beginning. few: whether the
    model can say the logits of the last places alone."""
    batch = codec.padded([([*context, *tokens], [IGNORE] * len(context) + [*tokens]) for context, tokens in pairs])
    start = min(len(context) for context, _ in pairs)  # before it there is nothing to be scored
    keep, device = batch.labels.shape[1] - start + 1, next(model.parameters()).device
    options = {"logits_to_keep": keep} if few else {}
    logits = model(**batch.to(device).inputs, **options).logits[:, -keep:]
    found = iter(target_logprobs(logits[:, :-1], batch.labels[:, start:].to(device)).tolist())
    return [list(islice(found, len(tokens))) for _, tokens in pairs]


def after(read: Prefix, answers: Sequence[Sequence[Sequence[int]]], rows: int, pad: int) -> list[Tensor]:
    """log p of each answer that is given to each row of what was read, summed over the answer's tokens; on the CPU.

    At most `rows` of them go through the model at a time, those of near length together. The first token is said by what was
    read, the last one needs not be read.
    """
    device = read.logits.device
    given = [(row, answer) for row, of_row in enumerate(answers) for answer in of_row]
    prompt = torch.tensor([row for row, _ in given], device=device)
    first = torch.tensor([answer[0] for _, answer in given], device=device)
    sums = read.logits.float().log_softmax(-1)[prompt, first]
    longer = sorted((i for i, (_, answer) in enumerate(given) if len(answer) > 1), key=lambda i: len(given[i][1]))
    for start in range(0, len(longer), rows):
        some = longer[start : start + rows]
        tokens, lengths = [given[i][1] for i in some], [len(given[i][1]) - 1 for i in some]
        width = max(lengths)
        ids = torch.tensor([[*t[:-1], *[pad] * (width - n)] for t, n in zip(tokens, lengths, strict=True)])
        targets = torch.tensor([[*t[1:], *[IGNORE] * (width - n)] for t, n in zip(tokens, lengths, strict=True)])
        at = torch.tensor(some, device=device)
        logits = read.take(prompt[at]).on(ids.to(device), torch.tensor(lengths, device=device))
        targets = targets.to(device)
        found = torch.zeros(targets.shape, device=device)
        found[targets != IGNORE] = target_logprobs(logits, targets)
        sums[at] += found.sum(1)
    return list(sums.cpu().split([len(of_row) for of_row in answers]))
