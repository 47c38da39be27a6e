"""Maps of the validation as they get better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from shared_transforms.atomic import atomic_write
from shared_transforms.figures import comparison_panel, figure_to_png_bytes

__all__ = ["FigureHandler"]


class FigureHandler:
    """Handler of a validation engine: truth, estimate and error of the first sample, in units.

    It writes ``<output_dir>/figures/epoch_0012_T1.png`` for each parameter, where ``MLflowTracking`` finds it. The
    engine's output holds ``pred`` [batch, >= Q, H, W (, D)] and ``label`` with ``parameters`` [batch, Q, H, W (, D)]
    and optionally ``mask`` [batch, 1, H, W (, D)].

    Args:
        output_dir: folder of the run.
        parameter_names: names of the Q parameters, such as ["A", "B", "T1"].
        units: their units, "1" for none.
        display_ranges: ends of the colour bar for some of the parameters; default the range of the truth.
        interval: draw every so many epochs.

    Raises:
        ValueError: when names and units are not equally many.
    """

    def __init__(
        self,
        output_dir: str | Path,
        parameter_names: Sequence[str],
        units: Sequence[str],
        display_ranges: Mapping[str, Sequence[float]] | None = None,
        interval: int = 1,
    ) -> None:
        if len(parameter_names) != len(units):
            raise ValueError(f"{len(parameter_names)} parameters {list(parameter_names)} but units {list(units)}")
        self.folder = Path(output_dir) / "figures"
        self.parameters = dict(zip(parameter_names, units, strict=True))
        self.display_ranges = {name: (low, high) for name, (low, high) in (display_ranges or {}).items()}
        self.interval = interval
        self._drawn = False

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _begin(self, engine: Engine) -> None:
        self._drawn = (engine.state.epoch - 1) % self.interval != 0

    def _draw(self, engine: Engine) -> None:
        if self._drawn or idist.get_rank() != 0:
            return
        self._drawn = True
        label, prediction = engine.state.output[CommonKeys.LABEL], engine.state.output[CommonKeys.PRED]
        mask = label["mask"][0, 0] if "mask" in label else None
        for index, (name, unit) in enumerate(self.parameters.items()):
            figure = comparison_panel(
                label["parameters"][0, index],
                {"estimate": prediction[0, index]},
                quantity=name,
                unit=unit,
                mask=mask,
                display_range=self.display_ranges.get(name),
            )
            path = self.folder / f"epoch_{engine.state.epoch:04d}_{name}.png"
            with atomic_write(path) as file:
                file.write(figure_to_png_bytes(figure))
