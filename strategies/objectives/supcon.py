"""Supervised contrastive learning with class prototypes.

Khosla et al. 2020, arXiv 2004.11362, with the prototypes of Asadi et al. 2023 (PRD), arXiv 2303.14771; code
naderAsadi/Probing-Continual-Learning. With features h of an encoder, z = g(h)/|g(h)|, and one prototype p_c per class:
    L_SC = (tau/tau_base) * mean_i  -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p/tau) / sum_{a != i} exp(z_i.z_a/tau) ),
    L_P  = mean_i ( 1 - cos(p_{y_i}, sg[h_i]) ),      sg: no gradient,
    L    = L_SC + beta * L_P.
P(i) are the other rows with i's label. L_P moves prototypes only, so that they stand where their classes are, and the class
of an input is that of the prototype nearest in angle.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.engine.access import unwrapped
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.objective import Objective
from cl_toolkit.ranges import above, at_least
from cl_toolkit.types import IGNORE, WITHOUT_TARGET, Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example

torch = LazyModule("torch")


def supervised_contrastive(
    z: Tensor, labels: Tensor, temperature: float, base_temperature: float | None = None
) -> Tensor:
    """L_SC. z (N, E) of length 1, labels (N,). An anchor that is alone with its label does not count."""
    n = len(z)
    similar = z @ z.T / temperature
    oneself = torch.eye(n, dtype=torch.bool, device=z.device)
    logp = similar - torch.logsumexp(similar.masked_fill(oneself, -torch.inf), 1, keepdim=True)
    positive = (labels[:, None] == labels[None, :]) & ~oneself
    count = positive.sum(1)
    per_anchor = -torch.where(positive, logp, 0.0).sum(1) / count.clamp(min=1)
    scale = 1.0 if base_temperature is None else temperature / base_temperature
    return scale * per_anchor.sum() / (count > 0).sum().clamp(min=1)


class SupCon(Objective):
    """Supervised contrastive learning of features, and a prototype per class to answer with.

    The features are those of a net for arrays, or the last hidden state of a language model or text encoder over the
    prompt, averaged over its tokens; an example's class is its target, so answers must be classes with several examples
    each. With `augment` each example appears in two views, and counts twice in the record's costs. The loss contrasts the
    rows of a step with each other, so a step cannot be cut into parts or processes. Rehearsed examples enter both terms.
    """

    paper = "Khosla et al. 2020, arXiv 2004.11362; prototypes: Asadi et al. 2023, arXiv 2303.14771"
    divisible = False
    needs = frozenset({"hidden"})
    gives = frozenset({"features", "prototypes", "classes"})  # its logits are no distribution that it learns
    inputs = ("conversations", "arrays")
    alone = ""  # what is wrong with the last task's answers

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """temperature: tau. base_temperature: tau_base; null: no such factor. prototype_weight: beta. projection_size,
        hidden_size: of g, which has three layers. augment: how a view of an image differs from it: none (one view) | shift (by
        up to one pixel in each direction) | noise (normal, a tenth of the images' spread)."""

        temperature: Annotated[float, above(0)] = 0.1
        base_temperature: Annotated[float, above(0)] | None = 0.07
        prototype_weight: Annotated[float, at_least(0)] = 2.0
        projection_size: Annotated[int, at_least(1)] = 128
        hidden_size: Annotated[int, at_least(1)] = 512
        augment: Literal["none", "shift", "noise"] = "none"

    def equip(self, model: nn.Module, seed: int) -> nn.Module:
        from cl_toolkit.models.encoder import Encoder

        if self.config.augment != "none" and hasattr(model, "config"):
            raise UserError(f"objective.augment: {self.config.augment} is for images; set it to none")
        return Encoder(model, self.config.projection_size, self.config.hidden_size, seed)

    def before_task(self, model: nn.Module, task: TaskView) -> TaskView:
        labels = sorted({e.target for e in task.examples})
        alone = sum(many == 1 for many in Counter(e.target for e in task.examples).values())
        few = self.config.augment == "none" and 2 * alone > len(task.examples)
        told = f"{alone} of {len(task.examples)} examples are the only ones with their answer: no other is like them"
        self.alone = f"{task.name}: {told}" if few else ""
        plain = unwrapped(model)
        like = next(plain.projection.parameters())
        plain.prototypes.grow(labels, task.generator(f"{self.name}-prototypes"), like)
        return task

    def noticed(self) -> Sequence[str]:
        return [self.alone] if self.alone else []

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        classes = {label: i for i, label in enumerate(unwrapped(model).classes)}
        batch = task.codec.prompts(examples)
        for e in examples:  # an anchor's class may have no prototype; it can still be contrasted
            classes.setdefault(e.target, len(classes))
        labels = [IGNORE if e.source in WITHOUT_TARGET else classes[e.target] for e in examples]
        batch = replace(batch, labels=torch.tensor(labels), along_tokens=batch.along_tokens - {"labels"})
        return batch if self.config.augment == "none" else self.two_views(batch, task.generator(f"{self.name}-views"))

    def two_views(self, batch: Batch, generator: Generator) -> Batch:
        """Each row twice, differently augmented."""
        x = torch.cat([augmented(batch.inputs["x"], self.config.augment, generator) for _ in range(2)])
        return replace(batch, inputs={"x": x}, labels=batch.labels.repeat(2), examples=batch.examples * 2)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        out = model(**part.inputs)
        known = part.labels != IGNORE
        config = self.config
        loss = supervised_contrastive(
            out.projected[known].float(), part.labels[known], config.temperature, config.base_temperature
        )
        if config.prototype_weight:
            pulled = known & (part.labels < out.pull.shape[1])
            cosine = out.pull[pulled].gather(1, part.labels[pulled, None])
            loss = loss + config.prototype_weight * (1 - cosine).sum() / max(int(pulled.sum()), 1)
        return Outputs(loss=loss, logits=out.logits, features=out.features)


def augmented(images: Tensor, how: str, generator: Generator) -> Tensor:
    """A view of images (B, C, H, W): shifted, with zeros at the edges, or with noise."""
    if how == "noise":
        return images + 0.1 * images.std() * torch.randn(images.shape, generator=generator).to(images)
    if images.dim() != 4:
        raise UserError(
            f"objective.augment: shift is for images (C, H, W), got arrays of shape {tuple(images.shape[1:])}"
        )
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    height, width = images.shape[-2:]
    moves = torch.randint(3, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, i : i + height, j : j + width] for image, (i, j) in zip(padded, moves, strict=True)])
