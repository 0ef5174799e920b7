"""Charts: from data to pixels. The templates draw what :func:`line_chart` returns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raykd.report.words import percent, whole

LETTER = 6.5  # pixels that a letter of a label takes, on average


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named curve, not empty. ``style`` is a CSS class of the template; a quiet one has neither name nor dots."""

    name: str
    style: str
    xy: list[tuple[float, float]]
    band: list[tuple[float, float]]  # low, high at each point of xy; or empty
    quiet: bool = False

    @property
    def ys(self) -> list[float]:
        """All that its axis has to show."""
        return [y for _, y in self.xy] + [end for ends in self.band for end in ends]


def line_chart(
    title: str,
    lines: list[Line],
    show: Callable[..., str],
    *,
    width: int,
    height: int,
    y_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Pixel geometry of a line chart over the number of labels, with the lines' names at their right ends.

    Args:
        lines: At least one; those on top last.
        show: A value in words.
        width, height: Pixels.
        y_range: What the axis shows at least, where that is more than the lines need; None: just these.
    """
    xs = [x for line in lines for x, _ in line.xy]
    ys = [y for line in lines for y in line.ys]
    ys += y_range or ([0] if len(lines) == 1 else [])
    roomy = width > 500
    left, top, bottom = 46, 12, height - 44
    values = [show(line.xy[-1][1]) for line in lines]
    labels = [
        "" if line.quiet else value if len(lines) == 1 else f"{line.name} {value}" if roomy else line.name
        for line, value in zip(lines, values, strict=True)
    ]
    room = max(50 if len(lines) == 1 else 112 if roomy else 64, min(LETTER * max(map(len, labels)) + 16, width / 3))
    labels = [cut_to(label, int((room - 16) / LETTER)) for label in labels]
    right = width - room
    y_ticks = ticks(min(ys), max(ys), 8 if height > 250 else 4, integers=show is whole)
    x_low, x_high = (min(xs) if min(xs) < max(xs) else min(xs) - 1), max(xs)

    def at_x(x: float) -> float:
        return round(left + (x - x_low) / (x_high - x_low) * (right - left), 1)

    def at_y(y: float) -> float:
        return round(bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top), 1)

    x_ticks = sorted(set(xs))
    if any(at_x(b) - at_x(a) < 8 * len(f"{b:,}") + 8 for a, b in itertools.pairwise(x_ticks)):  # too close to be read
        x_ticks = [t for t in ticks(min(xs), max(xs), 7 if roomy else 4, integers=True) if min(xs) <= t <= max(xs)]

    drawn: list[dict[str, Any]] = []
    for line, label in zip(lines, labels, strict=True):
        spots = [(at_x(x), at_y(y)) for x, y in line.xy]
        notes = [f"{line.name}: {show(y)} at {x:,} labels" for x, y in line.xy]
        flat = line.style == "teacher" and len({y for _, y in line.xy}) == 1  # one value: a line across the chart
        path = [(left, spots[0][1]), (right, spots[0][1])] if flat else spots
        edges = [(x, at_y(low), at_y(high)) for (x, _), (low, high) in zip(spots, line.band, strict=False)]
        if len(edges) == 1:  # one round: a narrow bar instead of a band
            edges = [(x + shift, low, high) for x, low, high in edges for shift in (-5, 5)]
        band = [(x, high) for x, _, high in edges] + [(x, low) for x, low, _ in reversed(edges)]
        drawn.append({"style": line.style, "path": polyline(path), "band": polyline(band), "label": label})
        drawn[-1] |= {"spots": [] if flat or line.quiet else list(zip(spots, notes, strict=True))}
        drawn[-1] |= {"end_y": path[-1][1], "label_y": path[-1][1]}
    named = [one for one in drawn if one["label"]]
    for one, y in zip(named, spread([one["end_y"] for one in named], gap=16, low=top, high=bottom), strict=True):
        one["label_y"] = y
    ends = "; ".join(f"{line.name} from {show(line.xy[0][1])} to {show(line.xy[-1][1])}" for line in lines)
    return {
        "title": title,
        "text": f"From {min(xs):,} to {max(xs):,} labels: {ends}.",
        "box": {"width": width, "height": height, "left": left, "right": right, "top": top, "bottom": bottom},
        "x_ticks": [(at_x(x), f"{x:,.0f}") for x in x_ticks],
        "y_ticks": [(at_y(y), show(y, tick_digits(y_ticks, show))) for y in y_ticks],
        "lines": drawn,
    }


def cut_to(text: str, most: int) -> str:
    """At most so many letters."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def ticks(low: float, high: float, most: int, *, integers: bool = False) -> list[float]:
    """Round numbers, evenly spaced, from at or below ``low`` to at or above ``high``; at least two, about ``most``."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most - 1 or factor == 20)
    step = max(step, 1) if integers else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def tick_digits(values: Sequence[float], show: Callable[..., str]) -> int:
    """Decimals that tell neighboring ticks apart."""
    step = (values[1] - values[0]) * (100 if show is percent else 1)
    return max(0, math.ceil(-math.log10(step) - 1e-9))


def spread(ys: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The ys moved as little as needed to be ``gap`` apart, in their order, inside low..high where they fit."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(ys[i], low, placed[-1] + gap if placed else low))
    limit = high
    for rank in reversed(range(len(placed))):
        placed[rank] = min(placed[rank], limit)
        limit = placed[rank] - gap
    return [y for _, y in sorted(zip(order, placed, strict=True))]


def polyline(xy: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in xy)
