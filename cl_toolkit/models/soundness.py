"""What a loaded model must be before anything is scored by it: whole, finite, causal, with a row for every token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError, listed
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

torch = LazyModule("torch")

ENCODER = "an encoder's folder is for model.head: classes, or for model.head: none with objective supcon"


def check_kind(name: str, config: PretrainedConfig) -> None:
    """A decoder or an encoder, not both."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model.name: {name}: is an encoder-decoder ({config.model_type}); that is for model.head: seq2seq; "
            "expected a causal language model, or an encoder with model.head: classes or none"
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
        first = sorted(outside, key=outside.__getitem__)
        raise UserError(
            f"model.name: {name}: the tokenizer writes {listed([f'{t} ({outside[t]})' for t in first])}, the model has {rows} "
            "rows of embeddings; take the tokenizer that it was trained with, or resize the model"
        )


def check_finite(name: str, model: nn.Module) -> None:
    """No weight is NaN or infinite."""
    for weight_name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"model.name: {name}: the weight {weight_name} holds numbers that are not finite")


def check_causal(name: str, model: PreTrainedModel, tokens: int) -> None:
    """What is said of a token must not depend on the tokens after it: another last token leaves the earlier logits alone.

    The two forwards are of one shape, so that they are equal bit for bit where nothing is seen; experts are chosen by token,
    which moves the last bits.
    """
    config = model.config.get_text_config()
    length = min(8, getattr(config, "max_position_embeddings", None) or 8)
    draw = torch.Generator().manual_seed(0)
    one = torch.randint(tokens, (1, length), generator=draw).to(
        model.device
    )  # quantised weights may be on a GPU by now
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
    name: str,
    model: nn.Module,
    report: Mapping[str, Collection[Any]],
    features_only: bool = False,
    drawn: Collection[str] = (),
) -> None:
    """Every tensor of the model came from the folder, and every tensor of the folder has its place.

    features_only: the heads of the folder are left behind on purpose. drawn: weights that need not be in the folder, or may
    have another shape there.
    """
    missing, surplus = sorted({*report["missing_keys"]} - {*drawn}), sorted(report["unexpected_keys"])
    if mismatched := sorted(entry for entry in report["mismatched_keys"] if entry[0] not in drawn):
        key, there, here = mismatched[0]
        raise UserError(
            f"model.name: {name}: {key} has the shape {tuple(there)} in the folder and {tuple(here)} by config.json"
            + (f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else "")
        )
    if features_only:
        base: Any = model.base_model
        own = {child for child, _ in base.named_children()}
        surplus = [k for k in surplus if k.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in own]
    for keys, what in (
        (missing, "lacks the weights {}, which config.json asks for"),
        (surplus, "holds the weights {}"),
    ):
        if keys:
            end = "" if keys is missing else ", for which the model of its config.json has no place"
            raise UserError(f"model.name: {name}: {what.format(listed(keys))}{end}")


def beside_features(model: nn.Module, names: Collection[str]) -> set[str]:
    """Those of the weights that the last hidden state does not depend on: a pooler, a head."""
    weights = {key: weight for key, weight in model.named_parameters() if key in names}
    if not weights:
        return set()
    ids = torch.zeros(1, 2, dtype=torch.long)
    with torch.enable_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        grads = torch.autograd.grad(
            out.hidden_states[-1].float().sum(), list(weights.values()), allow_unused=True, materialize_grads=False
        )
    return {key for key, grad in zip(weights, grads, strict=True) if grad is None}


def places(model: nn.Module, positions: int | None) -> int | None:
    """How many tokens an encoder has places for, of as many positions as its config names: RoBERTa's kind counts from the
    index of the padding on, so that the first rows of its table stand for no token."""
    for name, module in model.named_modules():
        offset = getattr(module, "padding_idx", None) if name.endswith("position_embeddings") else None
        if positions is not None and offset is not None:
            return positions - offset - 1
    return positions
