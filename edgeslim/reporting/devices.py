"""The same bundles on several devices, side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeslim.reporting.figures import DECODE, FIRST, PEAK, PREFILL, Figure
from edgeslim.reporting.measurements import Measurement

COMPARED = (FIRST, PREFILL, DECODE, PEAK)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Bundles down, devices across; `cells` holds the last measurement of each pair that has one."""

    bundles: tuple[str, ...]
    devices: tuple[str, ...]
    cells: dict[tuple[str, str], Measurement]

    def tables(self) -> Iterator[tuple[Figure, list[list[str]]]]:
        """Yield for each compared figure its rows: the bundle's name, then the figure on each device."""
        for figure in COMPARED:
            yield figure, [[b, *(self._cell(b, d, figure) for d in self.devices)] for b in self.bundles]

    def _cell(self, bundle: str, device: str, figure: Figure) -> str:
        measurement = self.cells.get((bundle, device))
        value = None if measurement is None else measurement.number(figure.key)
        return "" if value is None else figure.form(value)


def compare_devices(measurements: Sequence[Measurement]) -> Comparison | None:
    """Return the comparison of `measurements`, or None where all are of one device."""
    devices = tuple(dict.fromkeys(each.device for each in measurements))
    if len(devices) < 2:
        return None
    bundles = tuple(dict.fromkeys(each.name for each in measurements))
    cells = {(each.name, each.device): each for each in measurements}
    return Comparison(bundles=bundles, devices=devices, cells=cells)
