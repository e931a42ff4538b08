"""Models from a folder or the hub with a head over the classes of a stream: an encoder such as BERT (Devlin et al. 2019), or a
decoder, which answers at the last token.

The layer over the classes is always fresh, drawn from `seed.init`: a folder's own is for other classes and is left behind.
What stands between it and the features, such as BERT's pooler, is the folder's, or drawn where the folder has none. A pooler is
a part of the backbone: under an adapter it learns as much as the adapter lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from cl_toolkit.data.facts import SPLITS, facts_of
from cl_toolkit.errors import UserError, did_you_mean, quoted
from cl_toolkit.models.hub import HubKind, hub_config, hub_tokenizer, load_hub
from cl_toolkit.models.kind import hide_targets
from cl_toolkit.models.language import end_by_separator
from cl_toolkit.models.replies import text_class_replies
from cl_toolkit.models.requests import Reply, Request
from cl_toolkit.models.soundness import beside_features, check_complete, places
from cl_toolkit.models.text import TextCodec
from cl_toolkit.models.tokens import frame, padding
from cl_toolkit.seeds import seed_from
from cl_toolkit.types import IGNORE, WITHOUT_TARGET, Batch, Example, Stream, Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from cl_toolkit.models.sections import Prompt


@dataclass(frozen=True, kw_only=True)
class Classifier(HubKind):
    """A text encoder or a language model with a head over the stream's classes: all allowed answers, in the order in which they
    are met. An adapter goes to the backbone; the head beside it is trained whole, and so it is of fp32."""

    gives: ClassVar[frozenset[str]] = frozenset({"outputs", "classes", "prefixes"})
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    dtype: Literal["float32"] = "float32"
    head: Literal["classes"] = "classes"

    def load(self, seed: int, frozen: bool = False, classes: Sequence[str] = ()) -> nn.Module:
        """`model.classes` are the labels of its outputs."""
        model: Any
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(seed, "head"))  # what the folder lacks, transformers draws
            model, tokenizer = load_hub(self, frozen, classes)
            self.draw(model)
        settings = model.config.get_text_config()
        settings.pad_token_id = padding(tokenizer, getattr(settings, "vocab_size", None))  # a decoder answers before it
        model.classes = list(classes)
        return with_backbone(model)

    def skeleton(self, classes: Sequence[str] = ()) -> nn.Module:
        return with_backbone(super().skeleton(classes))

    def draw(self, model: Any) -> None:
        """Fresh weights over the classes: normal, with the spread that the model's config gives; biases are 0."""
        spread = getattr(model.config, "initializer_range", 0.02)
        for name in self.outputs(model):
            weight = model.get_parameter(name).data
            weight.normal_(0.0, spread) if weight.dim() > 1 else weight.zero_()

    def outputs(self, model: nn.Module) -> list[str]:
        """The names of the weights that stand for classes: those that another number of classes gives another shape."""
        settings: Any = model.config
        other = dict(super().skeleton([*map(str, range(settings.num_labels + 1))]).named_parameters())
        return [name for name, weight in model.named_parameters() if weight.shape != other[name].shape]

    def codec(self, prompt: Prompt, classes: Sequence[str] = ()) -> ClassCodec:
        settings = hub_config(self).get_text_config()
        rows = getattr(settings, "vocab_size", None)
        return ClassCodec(hub_tokenizer(self), prompt, self.positions(settings), rows, classes)

    def positions(self, config: PretrainedConfig) -> int | None:
        return places(super().skeleton(), super().positions(config))

    def config_changes(self, classes: Sequence[str]) -> dict[str, Any]:
        if not classes:
            return {}
        return {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}

    def finish_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        end_by_separator(tokenizer)

    def check_weights(self, model: nn.Module, report: Mapping[str, Collection[Any]], rows: int) -> None:
        drawn = {*self.outputs(model), *beside_features(model, report["missing_keys"])}
        check_complete(self.name, model, report, features_only=True, drawn=drawn)

    def check_stream(self, stream: Stream, with_head: bool) -> None:
        for task in stream.all_tasks:
            for facts in (facts_of(task, split) for split in SPLITS):
                if (facts.choices < 0).any():
                    raise UserError(
                        "model.head: classes: needs the allowed answers of every example (choices), and "
                        f"{facts.ids[facts.choices.argmin()]} of task {task.name} has none; use head: lm"
                    )


def with_backbone(model: Any) -> nn.Module:
    """The model, which says where its backbone is: its heads stand beside that."""
    model.adapted_part = next(name for name, child in model.named_children() if child is model.base_model)
    return model


class ClassCodec(TextCodec):
    """Prompts with the marks that the tokenizer puts around a text ([CLS], [SEP]), and classes (B,) as labels. Nothing is
    written, so that all positions are the prompt's."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        positions: int | None,
        rows: int | None,
        classes: Sequence[str],
    ):
        super().__init__(tokenizer, prompt, (), positions, rows)
        self.index = {label: i for i, label in enumerate(classes)}
        self.before, self.after = frame(tokenizer)

    def _framed(self, ids: list[int]) -> list[int]:
        if self.templated or not (self.before or self.after):
            return super()._framed(ids)
        return [*self.before, *ids, *self.after]

    def answers(self, examples: Sequence[Example], texts: Sequence[str]) -> list[list[int]]:
        return [[] for _ in texts]

    def class_of(self, example: Example) -> int:
        if example.target not in self.index:
            near = did_you_mean(example.target, self.index)
            raise UserError(f"{example.id}: {quoted(example.target)} is none of the stream's classes{near}")
        return self.index[example.target]

    def prompts(self, examples: Sequence[Example]) -> Batch:
        batch = super().batch(examples)
        labels = torch.full((len(batch.examples),), IGNORE)
        return replace(batch, labels=labels, targets=None, along_tokens=batch.along_tokens - {"labels"})

    def batch(self, examples: Sequence[Example], answers: Sequence[Sequence[int]] | None = None) -> Batch:
        # of a row without a target the class need not be one of the stream's
        known = (self.index.get(e.target) if e.source in WITHOUT_TARGET else self.class_of(e) for e in examples)
        labels = torch.tensor([IGNORE if index is None else index for index in known])
        return hide_targets(replace(self.prompts(examples), labels=labels))

    def shown(self, example: Example) -> str:
        ids = self.ids(example)[0]
        return f"{self.tokenizer.decode(ids, skip_special_tokens=False)}⟦{example.target}⟧"

    def reply(self, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
        return text_class_replies(self, model, requests, rows)

    def by_class(self) -> ClassCodec:
        return self

    def check(self, tasks: Sequence[Task], split: str, limits: Callable[[Task], Mapping[str, int]]) -> list[str]:
        return super().check(tasks, split, lambda task: {})
