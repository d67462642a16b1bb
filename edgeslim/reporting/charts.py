"""Charts without scripts or libraries: bars as HTML, points as inline SVG. Colours are classes of report.css.

An SVG of ours is as wide as its column and scales with it; its coordinates are pixels at a phone's width, so that its
text stays readable there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 6
_WIDTH, _HEIGHT = 340, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 42
_LETTER, _LINE = 6.6, 13  # pixels a letter is wide and high at 12 px, near enough to keep labels apart


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mark at (x, y) with its label; `series` gives its colour and shape."""

    x: float
    y: float
    label: str
    series: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of length `value` beside its label and the value as text; no bar where there is no value."""

    label: str
    value: float | None
    text: str
    series: int


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps [low, high] to [start, end], by the logarithm where the values span more than a decade."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "Scale":
        """Return a scale that holds all `values` with a margin."""
        low, high = min(values), max(values)
        if low > 0 and high / low > 10:
            return cls(low=low / 1.3, high=high * 1.3, start=start, end=end, logarithmic=True)
        margin = 0.12 * (high - low) or 0.12 * abs(high) or 1.0
        bottom = low - margin if low <= 0 else max(low - margin, 0.0)
        return cls(low=bottom, high=high + margin, start=start, end=end, logarithmic=False)

    def place(self, value: float) -> float:
        """Return where `value` lies."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values inside the scale: three to eight of them."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**d for d in decades for m in (1, 2, 5)]
            inside = [each for each in found if self.low <= each <= self.high]
            return inside if len(inside) <= 7 else [each for each in inside if math.log10(each) % 1 < 1e-9]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def bars(groups: Mapping[str, Sequence[Bar]]) -> str:
    """Return bars as HTML lists, a group after the other under its name; lengths are in proportion to the largest."""
    longest = max((row.value or 0.0 for rows in groups.values() for row in rows), default=0.0) or 1.0
    parts = []
    for name, rows in groups.items():
        parts.append(f'<p class="group">{escape(name)}</p>' if name and len(groups) > 1 else "")
        parts.append(f'<ul class="bars">{"".join(_bar(row, longest) for row in rows)}</ul>')
    return "".join(parts)


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Return `points` as an SVG with labelled axes; labels that would cover another are left to the mark's title."""
    xs = Scale.over([point.x for point in points], _LEFT, _WIDTH - _RIGHT)
    ys = Scale.over([point.y for point in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [*_x_axis(xs, x_label), *_y_axis(ys, y_label)]
    placed = [(point, xs.place(point.x), ys.place(point.y)) for point in points]
    parts += [f"<g><title>{escape(point.label)}</title>{mark(point.series, x, y)}</g>" for point, x, y in placed]
    parts += _labels(placed)
    name = escape(f"{y_label} over {x_label}", quote=True)
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def mark(series: int, x: float, y: float, size: float = 5.0) -> str:
    """Return the mark of a series at (x, y): its shape and colour."""
    shape = series % 3
    style = f'class="m{series % COLOURS}"'
    if shape == 0:
        return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    if shape == 1:
        return f'<rect {style} x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" height="{2 * size:.1f}"/>'
    corners = ((x, y - 1.2 * size), (x - 1.2 * size, y + size), (x + 1.2 * size, y + size))
    return f'<polygon {style} points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"/>'


def key(names: Sequence[str]) -> str:
    """Return the list that says which mark is which series; nothing for a single one."""
    if len(names) < 2:
        return ""
    entries = (
        f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{mark(n, 7, 7)}</svg>{escape(name)}</li>'
        for n, name in enumerate(names)
    )
    return f'<ul class="key">{"".join(entries)}</ul>'


def _bar(row: Bar, longest: float) -> str:
    none = "" if row.value is not None else ' class="none"'
    head = f'<span class="of"><span>{escape(row.label)}</span><b{none}>{escape(row.text)}</b></span>'
    if row.value is None:
        return f"<li>{head}</li>"
    fill = f'<div class="fill f{row.series % COLOURS}" style="width:{100 * row.value / longest:.2f}%"></div>'
    return f'<li>{head}<div class="track">{fill}</div></li>'


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def _x_axis(scale: Scale, label: str) -> list[str]:
    base = _HEIGHT - _BOTTOM
    parts = [f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>']
    for tick in scale.ticks():
        x = scale.place(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 15}" text-anchor="middle">{tick:,.6g}</text>')
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*parts, f'<text class="axis" x="{centre}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>']


def _y_axis(scale: Scale, label: str) -> list[str]:
    parts = [f'<line x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>']
    for tick in scale.ticks():
        y = scale.place(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
    centre = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="translate(12 {centre}) rotate(-90)"'
    return [*parts, f'<text class="axis" text-anchor="middle" {turned}>{escape(label)}</text>']


def _labels(placed: Sequence[tuple[Point, float, float]]) -> list[str]:
    """Return the labels of points at the first place beside each that is free and inside the plot."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, x, y in placed]
    texts = []
    for point, x, y in placed:
        width = _LETTER * len(point.label)
        for left, middle in ((x + 9, y), (x - 9 - width, y), (x - width / 2, y - 14), (x - width / 2, y + 14)):
            box = (left, middle - _LINE / 2, left + width, middle + _LINE / 2)
            inside = box[0] >= _LEFT and box[2] <= _WIDTH and box[1] >= 0 and box[3] <= _HEIGHT - _BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                texts.append(f'<text x="{left:.1f}" y="{middle + 4:.1f}">{escape(point.label)}</text>')
                break
    return texts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
