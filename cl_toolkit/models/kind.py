"""Models by name: their settings, how one is loaded, what it is known by.

`tiny-lm` and the nets are built in and touch no network; any other name is a Hugging Face id or a local folder (`hub`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cl_toolkit.errors import UserError, did_you_mean
from cl_toolkit.models.hub import from_hub, hub_config, hub_tokenizer, load_hub
from cl_toolkit.ranges import SEED, above, at_least
from cl_toolkit.registry import canonical

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from cl_toolkit.config.schema import Prompt
    from cl_toolkit.models.codec import ArrayCodec, Codec


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """A start model that is partly able, so that rollouts earn rewards and there is something to forget.

    steps of `batch_size` examples drawn from a mixture of `skills` (null: all), training split only; the same for every
    seed of a comparison. Cached by content.
    """

    steps: Annotated[int, at_least(1)] = 400
    batch_size: Annotated[int, at_least(1)] = 64
    learning_rate: Annotated[float, above(0)] = 2e-3
    skills: tuple[str, ...] | None = None
    length: Annotated[int, at_least(1).up_to(64)] = 5
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        from cl_toolkit.benchmarks.skills import skill_names

        if self.skills == ():
            raise ValueError("skills: is empty; null takes all of them")
        for name in self.skills or ():
            if name not in skill_names():
                raise ValueError(f"skills: unknown skill {name!r}{did_you_mean(name, skill_names())}")


@dataclass(frozen=True, kw_only=True)
class TinyLM:
    """A byte-level model of Llama's architecture; 0.35 M parameters by default. `warmup: null` starts from random weights
    (drawn from `seed.init`)."""

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


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model by Hugging Face id or local folder: a causal language model (`head: lm`), or a text encoder without a head for
    objectives that bring their own (`head: none`). Weights are safetensors. dtype: below float32 for frozen weights alone,
    under an adapter that is not merged; `train.bf16` is the way to compute in bfloat16."""

    head: Literal["lm", "none"] = "lm"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class NetSettings:
    """A small net for arrays, with weights drawn from `seed.init`."""

    num_classes: Annotated[int, at_least(1).up_to(1_000_000)] = 10
    hidden_size: Annotated[int, at_least(1).up_to(65_536)] = 128


@dataclass(frozen=True, kw_only=True)
class MLP(NetSettings):
    """A perceptron with ReLU on flattened arrays of `input_size` numbers."""

    input_size: Annotated[int, at_least(1)] = 64
    num_hidden_layers: Annotated[int, at_least(1).up_to(1024)] = 2


@dataclass(frozen=True, kw_only=True)
class SmallCNN(NetSettings):
    """Two convolutions of 3 x 3 with `width` and twice as many channels, on images of any size; no batch statistics."""

    channels: Annotated[int, at_least(1).up_to(65_536)] = 1
    width: Annotated[int, at_least(1).up_to(65_536)] = 32


def model_config(name: str) -> type:
    """The settings that a model of that name takes."""
    return {"tiny_lm": TinyLM, "mlp": MLP, "small_cnn": SmallCNN}.get(canonical(name), HubModel)


def load(
    name: str, settings: Any, init_seed: int, frozen: bool = False
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """(model on CPU, tokenizer; None for a net). Raises UserError where a model cannot be loaded. In fp32, unless it is
    `frozen` (neither trained nor merged into) and its settings ask for less."""
    if isinstance(settings, NetSettings):
        from cl_toolkit.models.nets import build_net

        return build_net(settings, init_seed), None
    if isinstance(settings, TinyLM):
        from cl_toolkit.runs.warmup import warmed_up

        if settings.warmup is None:
            return build_tiny(settings, init_seed), byte_tokenizer()
        return warmed_up(settings), byte_tokenizer()
    return load_hub(name, settings, frozen)


def load_tokenizer(name: str, settings: Any) -> PreTrainedTokenizerBase:
    """The tokenizer alone."""
    if isinstance(settings, TinyLM):
        return byte_tokenizer()
    return hub_tokenizer(name, settings)


def load_codec(name: str, settings: Any, prompt: Prompt) -> Codec | ArrayCodec:
    """How a model's examples become tensors. Loads its tokenizer and settings, not its weights."""
    from cl_toolkit.models.codec import ArrayCodec, Codec

    if isinstance(settings, NetSettings):
        return ArrayCodec()
    tokenizer = load_tokenizer(name, settings)
    if isinstance(settings, TinyLM):
        return Codec(tokenizer, prompt, positions=settings.max_position_embeddings)
    from transformers import GenerationConfig

    config = hub_config(name, settings).get_text_config()
    try:
        ends = from_hub(GenerationConfig, name, settings).eos_token_id
    except UserError:  # a folder need not have such a file
        ends = config.eos_token_id
    stops = [] if ends is None else ends if isinstance(ends, list) else [ends]
    positions, rows = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
    return Codec(tokenizer, prompt, stops, positions, rows)


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


BOS, EOS, PAD = 256, 257, 258
VOCABULARY = 259


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


def identity(name: str, settings: Any) -> dict[str, str]:
    """What a start model is known by: the content of its folder, the commit of a hub's model, the weights of a warm start.
    Weights drawn from `seed.init` follow from the config. Loads no weights but those of a warm start."""
    if isinstance(settings, NetSettings) or (isinstance(settings, TinyLM) and settings.warmup is None):
        return {"weights": "drawn from seed.init"}
    if isinstance(settings, TinyLM):
        return {"weights": fingerprint(load(name, settings, 0)[0])}
    if Path(name).is_dir():
        return {path.name: _file_digest(path, path.stat().st_mtime_ns) for path in model_files(Path(name))}
    return {"commit": str(getattr(hub_config(name, settings), "_commit_hash", None))}


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder: weights, settings, tokenizer, templates."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in MODEL_FILES)


MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


@cache
def _file_digest(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def fingerprint(model: nn.Module) -> str:
    """The first 16 hex digits of a SHA-256 over all weights by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
