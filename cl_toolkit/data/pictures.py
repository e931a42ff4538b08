"""Pictures of a folder, by split, as bytes; an example is made of them when it is asked for.

A folder is what MNIST and its kin come as, idx files (`train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, `t10k-` or
`test-`, perhaps `valid-`, each also `.gz`), or it has a folder for each class: `<split>/<class>/*.png`.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cl_toolkit.data.facts import Facts
from cl_toolkit.data.splits import Known
from cl_toolkit.errors import UserError, listed, quoted
from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import Example

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]
else:
    np, torch = LazyModule("numpy"), LazyModule("torch")

IDX = {"train": ("train",), "valid": ("valid",), "test": ("t10k", "test")}
"""Split -> how its idx files begin."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class Shelf:
    """classes: their names, in the order of their numbers. splits: split -> pictures (N, C, H, W) in bytes, and the numbers of
    their classes (N,)."""

    classes: list[str]
    splits: dict[str, Pair]

    @cached_property
    def contents(self) -> dict[str, NDArray[np.uint64]]:
        """Split -> a hash of each picture with its class (N,)."""
        found = {}
        for split, pair in self.splits.items():
            pictures = (image.tobytes() + self.classes[label].encode() for image, label in zip(*pair, strict=True))
            hashes = [hashlib.blake2b(picture, digest_size=8).digest() for picture in pictures]
            found[split] = np.frombuffer(b"".join(hashes), np.uint64)
        return found


def read_folder(folder: Path) -> Shelf:
    """All pictures of a folder. Raises UserError with the file that is wrong."""
    if not (folder / "train").is_dir():
        splits = {split: pair for split in IDX if (pair := _idx_pair(folder, split)) is not None}
        if "train" not in splits:
            raise UserError(
                f"stream.path: {folder}: expected idx files such as train-images-idx3-ubyte.gz, or train/<class>/*.png"
            )
        return _numbered(folder, splits)
    classes = sorted(path.name for path in _shown(folder / "train") if path.is_dir())
    if not classes:
        raise UserError(f"stream.path: {folder / 'train'}: expected a folder for each class, found none")
    there = [split for split in IDX if (folder / split).is_dir()]
    splits = {split: _pictures(folder / split, classes) for split in there}
    shapes = {images.shape[1:] for images, _ in splits.values()}
    if len(shapes) > 1:
        raise UserError(f"stream.path: {folder}: its splits hold pictures of the shapes {listed(map(str, shapes))}")
    images, labels = splits["train"]
    if empty := [name for i, name in enumerate(classes) if i not in labels]:
        raise UserError(f"{folder / 'train' / empty[0]}: holds no pictures; every class needs some")
    order = in_turns(labels)
    return Shelf(classes, {**splits, "train": (images[order], labels[order])})


def in_turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order in which every stretch holds the classes in proportion: files come class by class."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.argsort(place, kind="stable")


def _numbered(folder: Path, splits: dict[str, Pair]) -> Shelf:
    """idx files: the classes are the numbers that training pictures have, which need not begin at 0."""
    numbers = np.unique(splits["train"][1])
    if not len(numbers):
        raise UserError(f"stream.path: {folder}: holds no training pictures")
    for split, (_, labels) in splits.items():
        for number in np.setdiff1d(labels, numbers)[:1]:
            raise UserError(f"stream.path: {folder}: {split} has pictures of class {number}, of which train has none")
    pairs = {split: (images, np.searchsorted(numbers, labels)) for split, (images, labels) in splits.items()}
    return Shelf([str(number) for number in numbers], pairs)


def _shown(folder: Path) -> list[Path]:
    """What lies in a folder, without what systems and editors hide there."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _idx_pair(folder: Path, split: str) -> Pair | None:
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        paths = [folder / f"{name}-{kind}{end}" for name in IDX[split] for end in ("", ".gz")]
        found.append(next((path for path in paths if path.is_file()), None))
    if found[0] is None:
        return None
    if found[1] is None:
        raise UserError(f"{found[0]}: its labels are missing; expected {IDX[split][0]}-labels-idx1-ubyte beside it")
    images, labels = read_idx(found[0]), read_idx(found[1]).astype(np.int64)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f"{found[0]}: its shape is {images.shape}, that of its labels {labels.shape}; expected (N, H, W), (N,)"
        )
    return images[:, None], labels


def _pictures(folder: Path, classes: Sequence[str]) -> Pair:
    if more := [p.name for p in _shown(folder) if p.is_dir() and p.name not in classes]:
        raise UserError(f"{folder / more[0]}: the training split has no such class; its classes are {listed(classes)}")
    images: list[NDArray[np.uint8]] = []
    labels, first = [], Path()
    for number, name in enumerate(classes):
        for path in _shown(folder / name) if (folder / name).is_dir() else ():
            image = read_picture(path)
            first = first if images else path
            if images and image.shape != images[0].shape:
                raise UserError(f"{path}: has the shape {image.shape}, {first} {images[0].shape}; expected one for all")
            images.append(image)
            labels.append(number)
    if not images:
        raise UserError(f"{folder}: holds no pictures of the classes {listed(classes)}")
    return np.stack(images), np.array(labels)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture (C, H, W), grey or in colours. Raises UserError for one that 8 bits, or no background, would falsify."""
    from PIL import Image

    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{path}: expected a picture {listed(PICTURES)}")
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UserError(f"{path}: has more than 8 bits for a channel (mode {opened.mode}); convert it to 8")
            seen = opened.convert("RGBA").getchannel("A").getextrema() if opened.has_transparency_data else (255, 255)
            if seen[0] != 255:
                raise UserError(f"{path}: is transparent in places; put it on a background")
            image = np.asarray(opened.convert("L" if opened.mode in ("1", "L") else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read: {quoted(str(error))}") from error
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, the type 8, the number of axes, their sizes as big-endian 32-bit numbers, the data."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    axes = data[3] if len(data) > 3 else 0
    sizes = np.frombuffer(data[4 : 4 + 4 * axes], ">u4").tolist()
    if data[:3] != b"\0\0\x08" or len(sizes) != axes or len(data) != 4 + 4 * axes + int(np.prod(sizes)):
        raise UserError(f"{path}: is no whole idx file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(sizes)


class Pictures(Known):
    """The pictures of some classes of a split. order: of the pixels; None: as they are."""

    def __init__(self, name: str, shelf: Shelf, split: str, chosen: Sequence[str], order: Sequence[int] | None):
        self.images, self.labels = shelf.splits[split]
        self.places = np.flatnonzero(np.isin(self.labels, [shelf.classes.index(label) for label in chosen]))
        self.shelf, self.split, self.classes = shelf, split, shelf.classes
        self.name, self.choices, self.order = name, tuple(chosen), order

    def make(self, place: int) -> Example:
        i = int(self.places[place])
        x, y = torch.tensor(self.images[i], dtype=torch.float32) / 255, int(self.labels[i])
        if self.order is not None:
            x = x.flatten()[self._order].reshape(x.shape)
        return Example(id=f"{self.name}/{i}", x=x, y=y, target=self.classes[y], choices=self.choices)

    @cached_property
    def _order(self) -> torch.Tensor:
        return torch.tensor(self.order)

    @cached_property
    def facts(self) -> Facts:  # type: ignore[override]  # found when it is asked for
        """Hashes are those of the bytes, mixed with that of what is made of them: name, order of the pixels, choices, axes."""
        labels, count = self.labels[self.places], len(self.places)
        contents = self.shelf.contents[self.split][self.places]
        numbers = [self.classes.index(choice) for choice in self.choices]
        what = self.name, self.order, self.choices, numbers, self.images.shape[1:]
        made = hashlib.blake2b(repr(what).encode(), digest_size=16).digest()
        none = np.zeros(count, np.int64)
        return Facts(
            ids=[f"{self.name}/{i}" for i in self.places.tolist()],
            digests=np.bitwise_xor(
                np.stack([contents, self.places.astype(np.uint64)], 1), np.frombuffer(made, np.uint64)
            ),
            contents=contents,
            choices=none,
            forms=none,
            asked=none,
            answered=np.array([len(self.classes[y]) for y in labels], np.int64),
            classes=labels,
            allowed=[self.choices],
            shapes=[self.images.shape[1:]],
        )
