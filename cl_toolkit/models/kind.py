"""A kind of model: its settings, how one is loaded, how its examples become tensors and its outputs answers.

A kind is a file in this room and a line in `KINDS` (built-in models by name) or `HEADS` (a folder or a Hugging Face id, by
what stands on its backbone).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cl_toolkit.errors import UserError, did_you_mean, quoted
from cl_toolkit.registry import canonical
from cl_toolkit.types import IGNORE, WITHOUT_TARGET

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from cl_toolkit.models.requests import Reply, Request
    from cl_toolkit.models.sections import AnyAdapter, Prompt
    from cl_toolkit.types import Batch, Example, Stream, Task

KINDS = {
    "tiny_lm": "cl_toolkit.models.tiny:TinyLM",
    "mlp": "cl_toolkit.models.arrays:MLP",
    "small_cnn": "cl_toolkit.models.arrays:SmallCNN",
    "small_vit": "cl_toolkit.models.arrays:SmallViT",
}
"""Built-in models: name -> kind."""
HEADS = {
    "lm": "cl_toolkit.models.language:LanguageModel",
    "none": "cl_toolkit.models.language:Backbone",
    "classes": "cl_toolkit.models.classifier:Classifier",
    "vision": "cl_toolkit.models.vision:VisionLanguage",
    "seq2seq": "cl_toolkit.models.seq2seq:Seq2Seq",
}
"""Models from a folder or the hub: `model.head` -> kind."""


class Codec(Protocol):
    """Examples as tensors, and a model's outputs as answers. A batch names the tensors that run along tokens.

    truncated_ids: examples whose prompt was cut.
    """

    truncated_ids: set[str]

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """Rows without targets."""

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Rows with their targets. Rows without a target (`Example.source`) have none in `labels`; see `hide_targets`."""

    def class_of(self, example: Example) -> int | None:
        """The index of the output that stands for an example's target; None where answers are written."""

    def length(self, example: Example) -> int:
        """How much of a batch's width an example takes."""

    def shown(self, example: Example) -> str:
        """A training example as the model sees it; what is trained stands between ⟦ and ⟧."""

    def reply(self, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
        """Answers to any number of requests of one way; at most so many rows go through the model at a time."""

    def by_class(self) -> Codec:
        """The same, for a model whose outputs are classes (`model.classes`)."""

    def check(self, tasks: Sequence[Task], split: str, limits: Callable[[Task], Mapping[str, int]]) -> list[str]:
        """What has to be said before training, in sentences; raises UserError for examples that cannot be written or do not
        fit. limits: of a task, the name of each setting that limits an answer, and the tokens."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The settings of a model, and what can be done with them. A kind overrides what is not the same for all.

    inputs: what its examples may be: `conversations`, `documents`, `arrays`, `image+text`; a stream says one of these words.
    gives: of `logits` (next tokens), `generates`, `continues` (goes on from any text as it stands), `classes`, `hidden`,
    `prefixes` (keys and values can be put before each row: `models.prompted`).
    adaptable: whether PEFT's adapters fit. packable: whether several examples can share a row. auto: the name of transformers'
    class that loads such a model; "" where none does.
    """

    inputs: ClassVar[tuple[str, ...]] = ("conversations",)
    gives: ClassVar[frozenset[str]] = frozenset()
    adaptable: ClassVar[bool] = True
    packable: ClassVar[bool] = True
    auto: ClassVar[str] = ""
    name: str = ""

    @property
    def places(self) -> int:
        """How often its weights meet each token of a row; of an array, which counts as one token, as often as it has parts."""
        return 1

    @property
    def warm_start(self) -> Any:
        """The settings of a start model that is trained first, once for all runs; None: weights as `load` gives them."""
        return None

    def load(self, seed: int, frozen: bool = False, classes: Sequence[str] = ()) -> nn.Module:
        """The start model, on the CPU. seed: of fresh weights. frozen: its weights will neither be trained nor merged into.
        classes: the stream's, for a head over them. Raises UserError where it cannot be loaded."""
        raise NotImplementedError

    def skeleton(self, classes: Sequence[str] = ()) -> nn.Module:
        """The structure alone, without memory and weights."""
        import torch

        with torch.device("meta"):
            return self.load(0, True, classes)

    def codec(self, prompt: Prompt, classes: Sequence[str] = ()) -> Codec:
        """How examples become tensors. Loads no weights."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """What transformers loads the start model by, a folder or an id; "" where this toolkit alone makes it."""
        return ""

    def write_beside(self, folder: Path) -> None:
        """What else belongs to the start model, as it came: its tokenizer with the chat template, its generation config."""

    def identity(self) -> dict[str, str]:
        """What the start model is known by beside its settings."""
        return {"weights": "drawn from seed.init"}

    def check(self, adapter: AnyAdapter | None, frozen: bool) -> None:
        """Raise UserError for a model or an adapter of which it can be seen without weights that they cannot work."""

    def check_stream(self, stream: Stream, with_head: bool) -> None:
        """Raise UserError where the stream's examples do not fit. with_head: the objective brings the outputs."""


def hide_targets(batch: Batch) -> Batch:
    """A batch whose labels are the targets of every row, as it is to be: rows without a target have no labels, and where there
    are such rows `targets` still has what they answer."""
    if batch.sources.isdisjoint(WITHOUT_TARGET):
        return batch
    labels = batch.labels.clone()
    labels[[example.source in WITHOUT_TARGET for example in batch.examples]] = IGNORE
    return replace(batch, labels=labels, targets=batch.labels)


def kind_class(section: Mapping[str, Any], where: str) -> type[Kind]:
    """The kind behind the config's section `model`."""
    name, head = str(section.get("name")), section.get("head", "lm")
    if canonical(name) in KINDS:
        return _class(KINDS[canonical(name)])
    if head not in HEADS:
        raise UserError(
            f"{where}: model.head: expected {' | '.join(HEADS)}, got {quoted(head)}{did_you_mean(str(head), HEADS)}"
        )
    return _class(HEADS[head])


def _class(reference: str) -> type[Kind]:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def built_in() -> dict[str, type[Kind]]:
    """The built-in models, by the names that a config gives them."""
    return {name.replace("_", "-"): _class(reference) for name, reference in KINDS.items()}


def fingerprint(model: nn.Module) -> str:
    """The first 16 hex digits of a SHA-256 over all weights by name."""
    return fingerprint_of(model.state_dict())


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """That of weights by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
