"""Another model beside the one that is trained, to be asked and never trained: by folder or Hugging Face id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import evaluating, unwrapped
from cl_toolkit.errors import UserError
from cl_toolkit.models.kind import kind_class
from cl_toolkit.sources import Source, digest_of

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.models.text import TextCodec


@contextmanager
def named_by(where: str) -> Iterator[None]:
    """What is wrong with a model is said of the setting that names it, where that is not `model.name`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('model.name: ')}") from error


class Outside:
    """A language model that is loaded when it is first needed, whole on every process. where: the setting that names it."""

    def __init__(self, name: str, where: str):
        self.name, self.where = name, where
        self.kind = kind_class({"name": name}, where)(name=name)
        self.model: Any = None

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return 0 if self.model is None else sum(p.numel() for p in self.model.parameters())

    def source(self) -> Source:
        """The content of its folder, or the commit of a hub's model."""
        with named_by(self.where):
            parts = [f"{key} {value}".encode() for key, value in sorted(self.kind.identity().items())]
        return Source(self.name, digest_of(parts))

    def load(self, model: nn.Module, codec: TextCodec) -> None:
        """Load it to where the model is. Raises UserError where it cannot be loaded or has another vocabulary than `codec`."""
        device = next(model.parameters()).device
        # conversations are written as `codec` writes them, so that settings of its template need not fit another one
        plain = replace(codec.prompt, chat_template="off", chat_template_kwargs={}, thoughts=False)
        if self.model is None:
            with named_by(self.where):
                loaded = self.kind.load(0, frozen=True).requires_grad_(False).eval()
                theirs: Any = self.kind.codec(plain)
            if theirs.tokenizer.get_vocab() != codec.tokenizer.get_vocab():
                raise UserError(
                    f"{self.where}: {self.name}: has another vocabulary than the model; token by token nothing can be compared"
                )
            self.model = loaded
        self.model.to(device)
        self.model.scoring_dtype = getattr(unwrapped(model), "scoring_dtype", None)  # asked in the same precision

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        """It, for forwards without gradient."""
        assert self.model is not None  # loaded before the task
        with evaluating(self.model, plain=False) as model:
            yield model
