"""torchvision beside a build of torch that it was not compiled for, as Avalanche needs it."""

from importlib.util import find_spec
from pathlib import Path

import torch


def declare_missing_operators(spec) -> torch.library.Library | None:
    """torchvision's import wants two operators to exist. Where its compiled part cannot load (linked to CUDA, beside a CPU
    build of torch), their schemas are declared; nothing that needs them can run, but the rest can."""
    try:
        for path in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(path)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


# before any test module is imported: transformers, too, looks for torchvision. Kept, since the schemas live as long as it.
LIBRARY = declare_missing_operators(spec) if (spec := find_spec("torchvision")) else None
