"""TensorBoard: scalars in `<run>/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping

from cl_toolkit.runs.tracker import Place, Tracker, needed


class TensorBoard(Tracker):
    """Scalars for TensorBoard, in the run's own folder: `tensorboard --logdir results`."""

    def open(self, place: Place) -> None:
        needed("tensorboard", "tensorboard", "tensorboard")
        writer = needed("torch.utils.tensorboard", "tensorboard", "tensorboard")
        self._writer = writer.SummaryWriter(str(place.folder / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
