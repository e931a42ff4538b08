"""CODA-Prompt: a frozen model reads each row behind a prompt that attention puts together from components.

Smith et al. 2023, CVPR, arXiv 2211.13218; code GT-RIPL/CODA-Prompt. With the query q(x), what the model without prompts
makes of x, and in each layer M components of a prompt P_m, a key K_m and an attention A_m,
    alpha_m = cos(q(x) * A_m, K_m),    p(x) = sum_m alpha_m P_m,
and p(x) is put before the layer's keys and values. Each task adds components, and those of past tasks are frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.teacher import groups_of
from cl_toolkit.ranges import at_least
from cl_toolkit.seeds import generator_from
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

torch = LazyModule("torch")


def mixed(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> Tensor:
    """p of queries (B, D) by keys and attentions (layers, M, D) and prompts (layers, M, d): (layers, B, d)."""
    seen = normalized(query[None, :, None] * attention[:, None])
    return torch.einsum("lbmd,lmd,lmp->lbp", seen, normalized(keys), prompts)


def normalized(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


class CODAPrompt(Strategy):
    """Train prompts for a frozen model, which are mixed by the input; those of past tasks stay and go on being mixed in.

    Components begin as in the authors' current code: orthonormal to each other and to all earlier ones, as long as the model is
    wide enough for that. Theirs are in the first five blocks of an image transformer, here they are in every layer. The query
    is the last hidden state: of a model that gives classes at its first token, [CLS], as theirs; of a causal language model at
    the end of the prompt, so that the answer is not seen. What stands on the encoder, the layer over the classes, goes on
    being trained, as theirs; they shut out the logits of past classes in training, which objective `sft` does with
    `among: choices` for any method. Their term for orthogonality, whose weight is 0 in that code, is left out. Components begin
    alike in all runs, whatever the seed.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """components: new ones in each task; the paper has 100 for 5, 10 or 20 tasks; 0: off. length: keys and values together,
        that a prompt puts before a row. grows: false: those of the first task are all, and are trained on from task to task:
        sequential prompts, to compare with."""

        components: Annotated[int, at_least(0)] = 5
        length: Annotated[int, at_least(2)] = 8
        grows: bool = True

        def __post_init__(self) -> None:
            if self.length % 2:
                raise ValueError(f"length: expected an even number, half of it keys and half values, got {self.length}")

    tags = Tags(
        paper="Smith et al. 2023, arXiv 2211.13218",
        off={"components": 0},
        cost=Cost(forwards=1.0),
        extra_memory="prompts, keys and attentions, in the model",
        life_cycles=(None,),
        of_model=frozenset({"prefixes"}),
        owns=frozenset({"prefix"}),
        inputs=("conversations", "arrays"),
        exceptions={1: "the model is frozen, and prompts are trained"},
    )

    @property
    def as_set(self) -> Tags:
        return self.tags if self.config.components else replace(self.tags, of_model=frozenset())

    def build(self, model: nn.Module, index: int) -> nn.Module:
        if not self.config.components:
            return model
        from cl_toolkit.models.prompted import Prompter, prompted, size_of

        layers, width, heads = size_of(model)
        new, length = self.config.components, self.config.length
        sizes = {"keys": width, "attention": width, "prompts": length * heads}
        if new > (most := min(sizes.values())):
            raise UserError(
                f"strategies.{self.name}: components: expected at most {most}, of which the model is wide enough, got {new}"
            )
        if not hasattr(model, "prompter"):
            model = prompted(model, Prompter(mixed, length // 2))
        if groups_of(model) > index * self.config.grows:  # they are there
            return model
        prompter: Any = model.prompter
        draw, device, made = generator_from("coda_prompt", index), next(model.parameters()).device, {}
        for name, size in sizes.items():
            old = torch.cat([torch.empty(layers, 0, size), *(w.detach().cpu() for w in prompter.all_of(name))], 1)
            old = old if old.shape[1] + new <= size else old[:, :0]
            made[name] = beside(old, torch.randn(layers, new, size, generator=draw)).to(device)
        prompter.add(made)
        return model


def beside(old: Tensor, new: Tensor) -> Tensor:
    """Gram-Schmidt: new (layers, m, d) made orthonormal to old (layers, k, d), whose rows may have moved, and to each other."""
    basis = torch.linalg.qr(old.double().transpose(1, 2))[0]
    free = new.double() - (new.double() @ basis) @ basis.transpose(1, 2)
    q, r = torch.linalg.qr(free.transpose(1, 2))
    return (q * r.diagonal(dim1=1, dim2=2).sign()[:, None]).transpose(1, 2).to(new.dtype).contiguous()
