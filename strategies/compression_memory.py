"""Compression memory: a frozen model reads each row behind what its prompt retrieves from a bank of compressed examples.

Li et al. 2025 (CMT), AAAI, arXiv 2412.07393, of which the abstract alone was read; no code was found. Theirs: what is in new
documents is compressed into a memory bank and the best k entries aggregated for a question, while the model's own weights never
change. Not known to us are their objective for encoding, their `self-matching` and the form of an entry: every formula is ours.
Entry j of task t has the key K_j = h(prompt of j) and the block
    E_j = U_t tanh(S_j D_t),   S_j (P, D): the text's last hidden states, averaged over P equal parts, each scaled to length 1,
with h the last hidden state at a prompt's end, D_t (D, r) and U_t (layers, r, keys and values). A prompt x is read behind the
    mean of E_j over the k entries with the largest cos(h(x), K_j),   of all tasks so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

from cl_toolkit.engine.access import evaluating
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.teacher import groups_of
from cl_toolkit.ranges import at_least
from cl_toolkit.seeds import generator_from
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Of queries (B, D) and keys (M, D): (B, M), in fp32, where bf16 could not tell entries apart. Rounded to five places, so
    that which of two alike is the nearer one does not depend on how a batch was cut."""
    with torch.autocast(queries.device.type, enabled=False):
        return (normalized(queries.float()) @ normalized(keys.float()).T).round(decimals=5)


def normalized(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def nearest(near: Tensor, top_k: int) -> Tensor:
    """The columns (B, k) of the largest cosines (B, M) of each row; of those that are alike the older entries."""
    return near.sort(dim=1, descending=True, stable=True).indices[:, :top_k]


def aggregated(queries: Tensor, keys: Tensor, texts: Tensor, down: Tensor, up: Tensor, *, top_k: int) -> Tensor:
    """The mean block of the entries that queries (B, D) retrieve, as a prefix (layers, B, 2 P W): keys, then values.

    keys (1, M, D) and texts (1, M, P, D) of M entries; down (1, G, D, r) and up (layers, G, r, 2 W) of G tasks, which have
    equally many of them each.
    """
    chosen = nearest(cosines(queries, keys[0]), top_k)
    shares = torch.zeros(len(queries), keys.shape[1], device=queries.device)
    shares = shares.scatter(1, chosen, 1 / chosen.shape[1]).unflatten(1, (down.shape[1], -1))
    codes = torch.tanh(torch.einsum("gepd,gdr->gepr", texts[0].unflatten(0, shares.shape[1:]), down[0]))
    # the mean of codes is small, and what it becomes is the mean of blocks, which would be large
    made = torch.einsum("bgpr,lgrw->lbpw", torch.einsum("bge,gepr->bgpr", shares, codes), up)
    return made.unflatten(-1, (2, -1)).transpose(2, 3).flatten(2)


def recalls(keys: Tensor, groups: int, top_k: int) -> list[float]:
    """For each group of keys (M, D), equally many one after the other: of the entries that its keys retrieve, themselves left
    out, the share that is of the group. With one entry in all it retrieves itself."""
    near, size = cosines(keys, keys).fill_diagonal_(-2), len(keys) // groups
    top_k = max(1, min(top_k, len(keys) - 1))
    return [float((nearest(rows, top_k) // size == i).float().mean()) for i, rows in enumerate(near.split(size))]


class CompressionMemory(Strategy):
    """Experimental: compress what a frozen model reads into a memory bank, and put what a prompt retrieves before it.

    Retrieval sees the prompt alone, so that training and answering have the same prefix; it has no gradient, and the compressor
    of the task (D_t, U_t) alone is trained. Entries of past tasks, their compressors and the model stay as they are, bit for
    bit: what is forgotten is what is no longer retrieved (`told`). In training an example with an entry of its own can read its
    answer there; where later questions are new ones, a bank that is small beside the task keeps that rare. U_t begins at 0, so
    that each prefix does, and D_t alike in all runs, whatever the seed.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """entries: new ones in each task, of training examples drawn at random, of a smaller task some again; the paper has
        documents; 0: off. top_k: how many are averaged for a prompt. tokens: P, places that an entry has. rank: r."""

        entries: Annotated[int, at_least(0)] = 64
        top_k: Annotated[int, at_least(1)] = 4
        tokens: Annotated[int, at_least(1)] = 4
        rank: Annotated[int, at_least(1)] = 16

    tags = Tags(
        paper="Li et al. 2025 (CMT), arXiv 2412.07393",
        off={"entries": 0},
        cost=Cost(forwards=1.0),
        extra_memory="a bank of (tokens + 1) D numbers per entry and a compressor per task, in the model",
        life_cycles=(None,),
        of_model=frozenset({"prefixes", "logits"}),
        owns=frozenset({"prefix"}),
        inputs=("conversations",),
        exceptions={1: "the model is frozen, and a compressor is trained"},
    )

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.noted: dict[str, Any] = {}

    @property
    def as_set(self) -> Tags:
        return self.tags if self.config.entries else replace(self.tags, of_model=frozenset())

    def told(self) -> dict[str, Any]:
        """bytes_per_entry: of its key and text. recall: of what the bank's own prompts retrieve, an entry's not finding itself,
        the share that is of their task (1 / tasks where none is told from another); recall_by_task: of each task's prompts."""
        return self.noted

    def build(self, model: nn.Module, index: int) -> nn.Module:
        new, tokens, rank = self.config.entries, self.config.tokens, self.config.rank
        if not new:
            return model
        from cl_toolkit.models.prompted import Prompter, prompted, size_of

        layers, width, heads = size_of(model)
        if not hasattr(model, "prompter"):
            model = prompted(model, Prompter(partial(aggregated, top_k=self.config.top_k), tokens))
        if groups_of(model) > index:  # it is there
            return model
        prompter: Any = model.prompter
        draw, device = generator_from("compression_memory", index), next(model.parameters()).device
        group = {
            "keys": torch.zeros(1, new, width),
            "texts": torch.zeros(1, new, tokens, width),
            "down": torch.randn(1, 1, width, rank, generator=draw),
            "up": torch.zeros(layers, 1, rank, 2 * heads),
        }
        prompter.add({kind: weight.to(device) for kind, weight in group.items()})
        for kind in ("keys", "texts"):
            prompter.all_of(kind)[-1].requires_grad_(False)
        return model

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.config.entries:
            drawn = task.drawn(self.name, self.config.entries)
            with evaluating(model):
                mine = [self._entry(model, *task.codec.ids(task.examples[i])) for i in task.share(drawn)]
            found, prompter = task.gather(mine), cast("Any", model.prompter)
            for i in range(self.config.entries):
                for kind, value in zip(("keys", "texts"), found[i % len(found)], strict=True):
                    prompter.all_of(kind)[-1].data[0, i] = value
        return model

    def _entry(self, model: nn.Module, prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor]:
        """(key (D), text (P, D)) of an example, on the host; the key is of before the answer."""
        from cl_toolkit.models.prompted import hidden

        ids = torch.tensor([[*prompt, *answer]], device=next(model.parameters()).device)
        read = hidden(model, ids)[0].float()
        parts = torch.nn.functional.adaptive_avg_pool1d(read.T, self.config.tokens).T  # of a short text they overlap
        return read[len(prompt) - 1].cpu(), normalized(parts).cpu()

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if groups_of(model):  # else it is switched off, or this is an anchor, which is never trained
            prompter: Any = model.prompter
            (keys,) = torch.cat(prompter.all_of("keys"), 1).detach()
            shares = recalls(keys, groups_of(model), self.config.top_k)
            size = 4 * (keys.shape[1] + prompter.texts_0[0, 0].numel())
            self.noted = {"bytes_per_entry": size, "recall": sum(shares) / len(shares), "recall_by_task": shares}
        return model
