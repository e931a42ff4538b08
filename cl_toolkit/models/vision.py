"""Vision-language models from a folder or the hub, such as LLaVA (Liu et al. 2023, arXiv 2304.08485).

An image is a stretch of tokens in the prompt. The one token id that a model has for all of these gives way to a negative number
that says which image it is: so a prompt is still a row of numbers, which can be kept, compared and gone on from like any other.
Where rows meet the model the numbers become its token again, and the images go beside them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch

from cl_toolkit.engine import launch
from cl_toolkit.engine.access import evaluating, uncounted
from cl_toolkit.errors import UserError
from cl_toolkit.models.hub import hub_config, hub_processor, hub_stops, hub_tokenizer
from cl_toolkit.models.language import LanguageModel
from cl_toolkit.models.likelihoods import whole_rows
from cl_toolkit.models.prefix import Prefix, WholeRows
from cl_toolkit.models.template import ChatTemplate, Refused
from cl_toolkit.models.text import TextCodec
from cl_toolkit.types import Batch, Example, Stream

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from cl_toolkit.models.sections import Prompt
    from cl_toolkit.models.template import Turns

Pixels = Mapping[str, "Tensor"]
"""What a processor makes of an image, by the names of the model's inputs."""


@dataclass(frozen=True, kw_only=True)
class VisionLanguage(LanguageModel):
    """A model that reads images and text and writes text, by Hugging Face id or local folder. The folder's processor says how
    many tokens an image is, and what the model gets of it."""

    inputs: ClassVar[tuple[str, ...]] = ("conversations", "image+text")
    gives: ClassVar[frozenset[str]] = LanguageModel.gives - {"prefixes"}
    auto: ClassVar[str] = "AutoModelForImageTextToText"
    packable: ClassVar[bool] = False
    head: Literal["vision"] = "vision"  # type: ignore[assignment]

    def codec(self, prompt: Prompt, classes: Sequence[str] = ()) -> VisionCodec:
        whole = hub_config(self)
        config = whole.get_text_config()
        token = getattr(whole, "image_token_id", None)
        if token is None:
            raise UserError(
                f"model.head: vision: {self.name} ({whole.model_type}) has no image_token_id in its config.json"
            )
        codec = VisionCodec(
            hub_tokenizer(self), prompt, hub_stops(self), self.positions(config), getattr(config, "vocab_size", None)
        )
        codec.look(hub_processor(self), token)
        return codec

    def write_beside(self, folder: Path) -> None:
        super().write_beside(folder)
        hub_processor(self).save_pretrained(folder)

    def check_stream(self, stream: Stream, with_head: bool) -> None:
        """With several processes some would train what sees and some not, for which a sharded optimizer waits for ever."""
        if launch.world() == 1:
            return
        every = [e for task in stream.all_tasks for e in (*task.train, *task.valid, *task.test)]
        without = next((e for e in every if not e.images), None)
        if without is not None and any(e.images for e in every):
            raise UserError(
                f"model.head: vision: {without.id} has no images and others have some, which several processes cannot learn "
                "together; give each an image, or use one process"
            )


@dataclass
class Pictured(Batch):
    """Rows with images: what the model gets of them goes with the tokens that stand for them. pictures: of each row."""

    pictures: tuple[tuple[Pixels, ...], ...] = field(default=())

    def rows(self, chosen: Sequence[int]) -> Batch:
        bare = replace(self, inputs={n: t for n, t in self.inputs.items() if n in self.along_tokens})
        part: Any = Batch.rows(bare, chosen)
        part.pictures = tuple(self.pictures[i] for i in chosen or [0])
        part.inputs |= together(part.pictures)
        return part


def together(pictures: Sequence[Sequence[Pixels]]) -> dict[str, Tensor]:
    """The images of some rows as the model takes them: one after the other along their first axis."""
    every = [pixels for row in pictures for pixels in row]
    return {name: torch.cat([pixels[name] for pixels in every]) for name in (every[0] if every else ())}


class VisionCodec(TextCodec):
    """Prompts with images, and answers as a language model's. By a chat template an image is a part of a turn's content;
    without one it is the processor's image token."""

    def look(self, processor: Any, token: int) -> None:
        """Take the processor of the model, whose images are tokens of that id. marks: names of inputs (B, T) that say which
        tokens are an image's."""
        self.processor, self.token = processor, token
        self.images: list[Tensor] = []
        self._numbers: dict[tuple[bytes, int], int] = {}
        found = self._given(torch.zeros(3, 32, 32, dtype=torch.uint8))
        shape = found["input_ids"].shape
        self.marks = frozenset(n for n, t in found.items() if t.shape == shape) - {"input_ids", "attention_mask"}
        self._looked: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def _learn_frame(self) -> None:
        if isinstance(self.write, ChatTemplate):
            self.write = Parts(self.write)  # type: ignore[assignment]
        super()._learn_frame()

    # images and their numbers ---------------------------------------------------------------------------------------------

    def named(self, example: Example) -> list[int]:
        return [self._number(image, i) for i, image in enumerate(example.images)]

    def _number(self, image: Tensor, place: int) -> int:
        """The negative number that stands for an image, the one of that place in its prompt."""
        key = (hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest(), place)
        if key not in self._numbers:
            self.images.append(image)
            self._numbers[key] = -len(self.images)
        return self._numbers[key]

    def pixels(self, number: int) -> Pixels:
        """What the model gets of an image."""
        return self._processed(self.images[-number - 1])[1]

    def _given(self, image: Tensor) -> dict[str, Tensor]:
        text = [self.processor.image_token]
        return dict(self.processor(text=text, images=[image], add_special_tokens=False, return_tensors="pt"))

    def _processed(self, image: Tensor) -> tuple[list[int], Pixels]:
        """(the tokens that stand for an image, what the model gets of it)."""
        found = self._given(image)
        rest = {"input_ids", "attention_mask", *self.marks}
        return found["input_ids"][0].tolist(), {n: t for n, t in found.items() if n not in rest}

    # prompts --------------------------------------------------------------------------------------------------------------

    def _turns(self, example: Example, messages: Sequence) -> list[dict]:
        turns = super()._turns(replace(example, images=()), messages)
        if any(PICTURE in turn["content"] for turn in turns):
            raise Refused("the text holds the private-use character that stands for an image here")
        first = next((turn for turn in turns if turn["role"] == "user"), None)
        if example.images and first is None:
            raise Refused("it has images and no user turn")
        if example.images and first is not None:
            mark = PICTURE if self.templated else self.processor.image_token
            first["content"] = mark * len(example.images) + first["content"]
        return turns

    def _prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        return [self._with_images(e, ids) for e, ids in zip(examples, super()._prompts(examples), strict=True)]

    def _with_images(self, example: Example, ids: list[int]) -> list[int]:
        """A prompt in which each image token gives way to all tokens of its image, by its number."""
        if ids.count(self.token) != len(example.images):
            raise UserError(
                f"{example.id}: has {len(example.images)} images, and its prompt {ids.count(self.token)} places for them"
            )
        numbers, found = iter(zip(example.images, self.named(example), strict=True)), []
        for token in ids:
            if token != self.token:
                found.append(token)
                continue
            image, number = next(numbers)
            found += [number if part == self.token else part for part in self._processed(image)[0]]
        return found

    # rows meet the model ----------------------------------------------------------------------------------------------------

    def pictured(self, ids: Tensor) -> tuple[dict[str, Tensor], tuple[tuple[Pixels, ...], ...]]:
        """Rows (B, T) as the model takes them, and the images of each."""
        numbers = [list(dict.fromkeys(token for token in row if token < 0)) for row in ids.tolist()]
        marks = dict.fromkeys(self.marks, (ids < 0).long())
        return {"input_ids": ids.masked_fill(ids < 0, self.token), **marks}, tuple(
            tuple(map(self.pixels, row)) for row in numbers
        )

    def batch(self, examples: Sequence[Example], answers: Sequence[Sequence[int]] | None = None) -> Batch:
        plain = super().batch(examples, answers)
        rows, pictures = self.pictured(plain.inputs["input_ids"])
        given = {f.name: getattr(plain, f.name) for f in fields(plain)}
        given["inputs"] = {**plain.inputs, **rows, **together(pictures)}
        given["along_tokens"] = plain.along_tokens | self.marks
        return Pictured(**given, pictures=pictures)

    def goes_on(self, model: nn.Module) -> bool:
        """As of any language model; and a prompt with an image must say the same as in a whole row."""
        if model not in self._looked:
            self._looked[model] = super().goes_on(model) and self._says_the_same(model)
        return self._looked[model]

    def _says_the_same(self, model: nn.Module) -> bool:
        draw = torch.Generator().manual_seed(0)
        image = torch.randint(256, (3, 32, 32), generator=draw, dtype=torch.uint8)
        rows = [[self.eos], [*self._with_images(Example(id="", images=(image,)), [self.token]), self.eos]]
        own, self._numbers, self.images = (self._numbers, self.images), dict(self._numbers), list(self.images)
        with uncounted(), evaluating(model):
            try:
                seen: Any = Seeing(model, self)
                mine, whole = (way(seen, rows, self.pad).logits.float() for way in (Prefix, WholeRows))
            except Exception:  # what is wrong with the model itself shows where it reads whole rows
                return False
            finally:
                self._numbers, self.images = own
        return torch.allclose(mine, whole, atol=1e-4 * float(whole.abs().max()))

    def read(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> Any:
        seen: Any = Seeing(model, self)
        return (Prefix if self.goes_on(model) else WholeRows)(seen, prompts, self.pad)

    def likely(self, model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        seen: Any = Seeing(model, self)
        return whole_rows(self, seen, pairs, self.goes_on(model))

    def shown(self, example: Example) -> str:
        prompt, answer = self.ids(example)
        text = self.tokenizer.decode([token for token in prompt if token >= 0], skip_special_tokens=False)
        images = "".join(f"[image {'x'.join(map(str, image.shape[1:]))}]" for image in example.images)
        return f"{images}{text}⟦{self.tokenizer.decode(answer, skip_special_tokens=False)}⟧"


class Seeing:
    """A model that is given rows with the numbers of images in them."""

    def __init__(self, model: nn.Module, codec: VisionCodec):
        self.model, self.codec, self.parameters = model, codec, model.parameters

    def __call__(self, input_ids: Tensor, **options: Any) -> Any:
        rows, pictures = self.codec.pictured(input_ids)
        seen = {name: tensor.to(input_ids.device) for name, tensor in together(pictures).items()}
        return self.model(**rows, **seen, **options)


PICTURE = "\U000ff000"
"""Stands for an image in a turn's text until the turn is written: a private-use character."""


class Parts:
    """A chat template whose turns are lists of images and texts, as those of vision-language models are."""

    def __init__(self, write: ChatTemplate):
        self.plain, self.written_date, self.unread = write, write.written_date, write.unread

    def __call__(self, turns: Turns, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, str]:
        """(text before the answer, text after it)."""
        write = copy.copy(self.plain)
        write.tokenizer = Listing(self.plain.tokenizer)
        return write(turns, tools)


class Listing:
    """A tokenizer that hands a template each turn's content as a list of its parts."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def apply_chat_template(self, turns: Turns, **options: Any) -> str:
        """The conversation as text."""
        parted = [{**turn, "content": self.parts(str(turn["content"]))} for turn in turns]
        return self.tokenizer.apply_chat_template(parted, **options)

    @staticmethod
    def parts(content: str) -> list[dict[str, str]]:
        """The images of a turn, then its text."""
        text = content.replace(PICTURE, "")
        return [{"type": "image"}] * content.count(PICTURE) + [{"type": "text", "text": text}]
