"""trackio: a local dashboard that a run's numbers are kept for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cl_toolkit.runs.tracker import Place, Tracker, needed


class Trackio(Tracker):
    """Numbers for trackio, kept on this machine: `trackio show --project <name>`. A run that goes on after a stop goes on
    there too."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """project: null takes the study's name. space_id: a Hugging Face Space that the numbers are sent to; null: none."""

        project: str | None = None
        space_id: str | None = None

    def open(self, place: Place) -> None:
        self._trackio = needed("trackio", "trackio", "trackio")
        self._trackio.init(
            project=self.config.project or place.study,
            name=place.run,
            space_id=self.config.space_id,
            config=dict(place.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self) -> None:
        self._trackio.finish()
