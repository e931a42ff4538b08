"""What a loaded model must be before anything is scored by it: whole, finite, causal, with a row for every token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError, listed
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

torch = LazyModule("torch")

ENCODER = "an encoder's folder is for model.head: none, with objective supcon"


def check_kind(name: str, config: PretrainedConfig) -> None:
    """A decoder or an encoder, not both."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model.name: {name}: is an encoder-decoder ({config.model_type}); expected a causal language model, or an "
            "encoder with model.head: none"
        )


def check_end(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A language model's answers end somewhere."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.name: {name}: its tokenizer has no end-of-sequence token, which a language model needs; {ENCODER}"
        )


def check_rows(name: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Every token that can be written has a row in the embedding. Padding is not looked at: it is masked, and its id is
    another one where it has no row."""
    special, template = set(tokenizer.all_special_tokens), str(tokenizer.chat_template or "")
    written = {tokenizer.bos_token, tokenizer.eos_token}
    outside = {
        token: i
        for token, i in tokenizer.get_vocab().items()
        if i >= rows
        and token != tokenizer.pad_token
        and (token not in special or token in written or token in template)
    }
    if outside:
        first = sorted(outside, key=outside.get)
        raise UserError(
            f"model.name: {name}: the tokenizer writes {listed([f'{t} ({outside[t]})' for t in first])}, the model has {rows} "
            "rows of embeddings; take the tokenizer that it was trained with, or resize the model"
        )


def check_finite(name: str, model: nn.Module) -> None:
    """No weight is NaN or infinite."""
    for weight_name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"model.name: {name}: the weight {weight_name} holds numbers that are not finite")


def check_causal(name: str, model: nn.Module, tokens: int) -> None:
    """What is said of a token must not depend on the tokens after it: another last token leaves the earlier logits alone.

    The two forwards are of one shape, so that they are equal bit for bit where nothing is seen; experts are chosen by token,
    which moves the last bits.
    """
    config = model.config.get_text_config()
    length = min(8, getattr(config, "max_position_embeddings", None) or 8)
    draw = torch.Generator().manual_seed(0)
    one = torch.randint(tokens, (1, length), generator=draw)
    other = one.clone()
    other[0, -1] = (one[0, -1] + tokens // 2) % tokens
    mask, was = torch.ones_like(one), model.training
    model.eval()
    with torch.no_grad():
        moved = [model(input_ids=ids, attention_mask=mask).logits.float() for ids in (one, other)]
    model.train(was)
    moved = (moved[0] - moved[1]).abs().amax(-1)[0]  # (T,)
    if float(moved[:-1].max()) > max(1e-4, torch.finfo(model.dtype).eps) * float(moved[-1]):
        raise UserError(
            f"model.name: {name}: is not a causal language model: what it says of a token depends on the tokens after it; "
            f"{ENCODER}"
        )


def check_complete(
    name: str, model: nn.Module, report: Mapping[str, Collection[Any]], features_only: bool = False
) -> None:
    """Every tensor of the model came from the folder, and every tensor of the folder has its place.

    features_only: the heads of the folder are left behind on purpose; and what the features do not depend on (a pooler)
    may be missing: it is set to 0, for it would be drawn anew at each loading.
    """
    missing, surplus = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if report["mismatched_keys"]:
        key, there, here = min(report["mismatched_keys"])
        raise UserError(
            f"model.name: {name}: {key} has the shape {tuple(there)} in the folder and {tuple(here)} by config.json"
            + (f" (and {len(report['mismatched_keys']) - 1} more)" if len(report["mismatched_keys"]) > 1 else "")
        )
    if features_only:
        missing = [key for key in missing if key not in zeroed(model, missing)]
        own = {child for child, _ in model.named_children()}
        surplus = [k for k in surplus if k.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in own]
    for keys, what in (
        (missing, "lacks the weights {}, which config.json asks for"),
        (surplus, "holds the weights {}"),
    ):
        if keys:
            end = "" if keys is missing else ", for which the model of its config.json has no place"
            raise UserError(f"model.name: {name}: {what.format(listed(keys))}{end}")


def zeroed(model: nn.Module, missing: Collection[str]) -> set[str]:
    """Those of the missing weights that the features do not depend on, set to 0."""
    weights = {key: weight for key, weight in model.named_parameters() if key in missing}
    if not weights:
        return set()
    ids = torch.zeros(1, 2, dtype=torch.long)
    with torch.enable_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        grads = torch.autograd.grad(
            out.hidden_states[-1].float().sum(), list(weights.values()), allow_unused=True, materialize_grads=False
        )
    unused = {key for key, grad in zip(weights, grads, strict=True) if grad is None}
    with torch.no_grad():
        for key in unused:
            weights[key].zero_()
    return unused
