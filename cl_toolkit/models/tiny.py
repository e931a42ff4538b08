"""`tiny-lm`: a byte-level model of Llama's architecture that is built in and touches no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from cl_toolkit.models.kind import Kind
from cl_toolkit.models.targets import check_targets
from cl_toolkit.ranges import SEED, above, at_least

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from cl_toolkit.models.sections import AnyAdapter, Prompt
    from cl_toolkit.models.text import TextCodec


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """A start model that is partly able, so that rollouts earn rewards and there is something to forget.

    steps of `batch_size` examples drawn from a mixture of `skills` (null: all), training split only; the same for every
    seed of a comparison. shown: the share of them whose question holds the right answer, in the words in which `on_policy`
    shows one to its teacher, so that there is a teacher that can use it. Cached by content.
    """

    steps: Annotated[int, at_least(1)] = 400
    batch_size: Annotated[int, at_least(1)] = 64
    learning_rate: Annotated[float, above(0)] = 2e-3
    skills: tuple[str, ...] | None = None
    length: Annotated[int, at_least(1).up_to(64)] = 5
    shown: Annotated[float, at_least(0).up_to(1)] = 0.0
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        if self.skills == ():
            raise ValueError("skills: is empty; null takes all of them")


@dataclass(frozen=True, kw_only=True)
class TinyLM(Kind):
    """A byte-level model of Llama's architecture; 0.35 M parameters by default. `warmup: null` starts from random weights
    (drawn from `seed.init`)."""

    inputs: ClassVar[tuple[str, ...]] = ("conversations", "documents")
    gives: ClassVar[frozenset[str]] = frozenset({"outputs", "logits", "generates", "continues", "hidden", "prefixes"})
    auto: ClassVar[str] = "AutoModelForCausalLM"

    hidden_size: Annotated[int, at_least(2).up_to(65_536)] = 96
    intermediate_size: Annotated[int, at_least(1).up_to(1_000_000)] = 256
    num_hidden_layers: Annotated[int, at_least(1).up_to(1024)] = 3
    num_attention_heads: Annotated[int, at_least(1).up_to(1024)] = 4
    max_position_embeddings: Annotated[int, at_least(2).up_to(2**24)] = 2048
    warmup: Warmup | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size: expected a multiple of twice num_attention_heads ({2 * self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )

    @property
    def warm_start(self) -> Warmup | None:
        return self.warmup

    def load(self, seed: int, frozen: bool = False, classes: Sequence[str] = ()) -> nn.Module:
        return build_tiny(self, seed)

    def codec(self, prompt: Prompt, classes: Sequence[str] = ()) -> TextCodec:
        from cl_toolkit.models.text import TextCodec

        return TextCodec(byte_tokenizer(), prompt, positions=self.max_position_embeddings)

    def write_beside(self, folder: Path) -> None:
        byte_tokenizer().save_pretrained(folder)

    def check(self, adapter: AnyAdapter | None, frozen: bool) -> None:
        if adapter is not None:
            check_targets(self.skeleton(), adapter)


BOS, EOS, PAD = 256, 257, 258
VOCABULARY = 259


def build_tiny(settings: TinyLM, seed: int) -> nn.Module:
    """A fresh tiny model with weights from `seed`; the global generator is left as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_attention_heads,
        max_position_embeddings=settings.max_position_embeddings,
        tie_word_embeddings=True,
        use_cache=False,  # no training forward needs one; generation asks for it
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token per byte of UTF-8, so that any text can be read and written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = {"<s>": BOS, "</s>": EOS, "<pad>": PAD}
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()} | special
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
