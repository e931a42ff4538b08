"""Small nets for arrays: their settings, and their examples as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cl_toolkit.data.facts import facts_of, first_places
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.kind import Kind, hide_targets
from cl_toolkit.models.replies import class_replies
from cl_toolkit.models.requests import Reply, Request
from cl_toolkit.ranges import at_least
from cl_toolkit.sources import file_hash
from cl_toolkit.types import IGNORE, Batch, Example, Stream, Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from cl_toolkit.models import nets
    from cl_toolkit.models.sections import AnyAdapter, Prompt
else:
    np, torch = LazyModule("numpy"), LazyModule("torch")


@dataclass(frozen=True, kw_only=True)
class Net(Kind):
    """A small net for arrays, with weights drawn from `seed.init`. start: a file of safetensors that its weights come from,
    all but those over the classes, such as `checkpoint/.../model.safetensors` of another run; null: none."""

    inputs: ClassVar[tuple[str, ...]] = ("arrays",)
    gives: ClassVar[frozenset[str]] = frozenset({"outputs", "classes", "hidden"})
    adaptable: ClassVar[bool] = False
    num_classes: Annotated[int, at_least(1).up_to(1_000_000)] = 10
    hidden_size: Annotated[int, at_least(1).up_to(65_536)] = 128
    start: str | None = None

    def build(self) -> nets.Net:
        """The net, with weights from the global generator."""
        raise NotImplementedError

    def load(self, seed: int, frozen: bool = False, classes: Sequence[str] = ()) -> nn.Module:
        """The global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.build()
        if self.start is None:
            return net
        from cl_toolkit.models.nets import begun

        return begun(net, self.start)

    def skeleton(self, classes: Sequence[str] = ()) -> nn.Module:
        with torch.device("meta"):
            return replace(self, start=None).load(0)

    def identity(self) -> dict[str, str]:
        """Also the content of what it starts with. Raises UserError where that cannot be read."""
        if self.start is None:
            return super().identity()
        try:
            return {"start": file_hash(Path(self.start))[:16]}
        except OSError as error:
            raise UserError(f"model.start: {self.start}: cannot be read: {error.strerror}") from error

    def check(self, adapter: AnyAdapter | None, frozen: bool) -> None:
        if self.start is not None:
            self.load(0)

    def codec(self, prompt: Prompt | None = None, classes: Sequence[str] = ()) -> ArrayCodec:
        return ArrayCodec()

    def check_stream(self, stream: Stream, with_head: bool) -> None:
        for task in stream.all_tasks:
            facts = facts_of(task, "train")
            for place in first_places(facts.forms):
                self.check_shape(task.name, task.train[place].x)
            if not with_head and (facts.classes >= self.num_classes).any():
                raise UserError(
                    f"model.num_classes: expected more than {facts.classes.max()}, the index of a class of task {task.name}, "
                    f"got {self.num_classes}"
                )

    def check_shape(self, task: str, x: torch.Tensor) -> None:
        """Raise UserError for an array that the net cannot take."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MLP(Net):
    """A perceptron with ReLU on flattened arrays of `input_size` numbers."""

    input_size: Annotated[int, at_least(1)] = 64
    num_hidden_layers: Annotated[int, at_least(1).up_to(1024)] = 2

    def build(self) -> nets.Net:
        from cl_toolkit.models.nets import mlp

        return mlp(self)

    def check_shape(self, task: str, x: torch.Tensor) -> None:
        if x.numel() != self.input_size:
            raise UserError(
                f"model.input_size: expected {x.numel()}, as task {task} has arrays of shape {tuple(x.shape)}, "
                f"got {self.input_size}"
            )


@dataclass(frozen=True, kw_only=True)
class SmallCNN(Net):
    """Two convolutions of 3 x 3 with `width` and twice as many channels, on images of any size; no batch statistics."""

    channels: Annotated[int, at_least(1).up_to(65_536)] = 1
    width: Annotated[int, at_least(1).up_to(65_536)] = 32

    def build(self) -> nets.Net:
        from cl_toolkit.models.nets import small_cnn

        return small_cnn(self)

    def check_shape(self, task: str, x: torch.Tensor) -> None:
        shape = tuple(x.shape)
        if len(shape) != 3 or shape[0] != self.channels:
            raise UserError(
                f"model.channels: {self.channels}: expected images of shape ({self.channels}, H, W), task {task} has {shape}"
            )


@dataclass(frozen=True, kw_only=True)
class SmallViT(Net):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), transformers' ViT without dropout: its features are the
    last hidden state at [CLS]. On images of `image_size` x `image_size` in patches of `patch_size`."""

    gives: ClassVar[frozenset[str]] = Net.gives | {"prefixes"}
    channels: Annotated[int, at_least(1).up_to(65_536)] = 1
    image_size: Annotated[int, at_least(1).up_to(65_536)] = 8
    patch_size: Annotated[int, at_least(1).up_to(65_536)] = 2
    hidden_size: Annotated[int, at_least(1).up_to(65_536)] = 64
    num_hidden_layers: Annotated[int, at_least(1).up_to(1024)] = 4
    num_attention_heads: Annotated[int, at_least(1).up_to(1024)] = 4

    def __post_init__(self) -> None:
        for name, of in (("image_size", "patch_size"), ("hidden_size", "num_attention_heads")):
            if (number := getattr(self, name)) % (part := getattr(self, of)):
                raise ValueError(f"{name}: expected a multiple of {of} ({part}), got {number}")

    @property
    def places(self) -> int:
        """Its patches and [CLS]."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def build(self) -> nets.Net:
        from cl_toolkit.models.nets import small_vit

        return small_vit(self)

    def check_shape(self, task: str, x: torch.Tensor) -> None:
        if tuple(x.shape) != (wanted := (self.channels, self.image_size, self.image_size)):
            raise UserError(
                f"model.image_size: {self.image_size} with {self.channels} channels: expected images of shape {wanted}, "
                f"task {task} has {tuple(x.shape)}"
            )


AT_ONCE = 2**15
"""Numbers in the arrays that go through a net at a time when it is asked: so few that what a layer gives stays at hand."""


class ArrayCodec:
    """Examples that are arrays already: `x` (B, ...) and classes (B,)."""

    def __init__(self) -> None:
        self.truncated_ids: set[str] = set()

    def class_of(self, example: Example) -> int | None:
        return example.y

    def length(self, example: Example) -> int:
        """All arrays of a task are of one size."""
        return example.x.numel()

    def shown(self, example: Example) -> str:
        """An image is drawn in characters."""
        return f"{drawn(example.x)}⟦{example.target}⟧"

    def prompts(self, examples: Sequence[Example]) -> Batch:
        """Arrays without their classes."""
        return self._with_labels(examples, [IGNORE] * len(examples))

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Arrays and classes. Rows without a target have none."""
        return hide_targets(self._with_labels(examples, [IGNORE if e.y is None else e.y for e in examples]))

    def _with_labels(self, examples: Sequence[Example], labels: list[int]) -> Batch:
        # one index into a tensor of the whole task takes as long as stacking: its row numbers must be looked up
        x = torch.stack([example.x for example in examples])
        return Batch(inputs={"x": x}, labels=torch.from_numpy(np.array(labels, np.int64)), examples=tuple(examples))

    def reply(self, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
        """Answers to requests of one way. A net's rows are cheap: they go through it together, up to `AT_ONCE` numbers."""
        return class_replies(self, model, requests, max(rows, AT_ONCE // self.length(requests[0].example)))

    def by_class(self) -> ArrayCodec:
        return self

    def check(self, tasks: Sequence[Task], split: str, limits: Callable[[Task], Mapping[str, int]]) -> list[str]:
        return []


def drawn(x: Any) -> str:
    """An array as characters from light to dark, a line per row; one that is no image in one line of numbers."""
    if x.dim() < 2:
        return " ".join(f"{value:.2g}" for value in x.flatten().tolist()) + " "
    shades, image = " .:-=+*#%@", x.reshape(-1, *x.shape[-2:])[0]
    scaled = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-9) * (len(shades) - 1)
    return "".join("".join(2 * shades[round(v)] for v in row) + "\n" for row in scaled.tolist())
