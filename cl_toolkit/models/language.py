"""Models from a folder or the hub that write text, and backbones for objectives that bring their own head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cl_toolkit.models.hub import HubKind
from cl_toolkit.models.soundness import beside_features, check_causal, check_complete, places

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class LanguageModel(HubKind):
    """A causal language model, by Hugging Face id or local folder."""

    inputs: ClassVar[tuple[str, ...]] = ("conversations", "documents")
    gives: ClassVar[frozenset[str]] = frozenset({"outputs", "logits", "generates", "continues", "hidden", "prefixes"})
    auto: ClassVar[str] = "AutoModelForCausalLM"
    head: Literal["lm"] = "lm"

    def check_weights(self, model: nn.Module, report: Mapping[str, Collection[Any]], rows: int) -> None:
        check_causal(self.name, model, rows)
        check_complete(self.name, model, report)


@dataclass(frozen=True, kw_only=True)
class Backbone(HubKind):
    """A text encoder or a language model without a head, for objectives that bring their own (`supcon`)."""

    gives: ClassVar[frozenset[str]] = frozenset({"hidden"})
    head: Literal["none"] = "none"

    def finish_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        end_by_separator(tokenizer)

    def positions(self, config: PretrainedConfig) -> int | None:
        return places(self.skeleton(), super().positions(config))

    def check_weights(self, model: nn.Module, report: Mapping[str, Collection[Any]], rows: int) -> None:
        unused = beside_features(model, report["missing_keys"])
        check_complete(self.name, model, report, features_only=True, drawn=unused)
        for name, weight in model.named_parameters():
            if name in unused:  # they would be drawn anew at each loading
                weight.data.zero_()


def end_by_separator(tokenizer: PreTrainedTokenizerBase) -> None:
    """An encoder's tokenizer need not have an end mark: nothing is generated, its separator stands for it."""
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token
