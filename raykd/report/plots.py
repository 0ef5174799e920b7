"""Learning curves of simulated arms as a PNG, by matplotlib, where that is installed (the ``plot`` extra)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raykd.report.comparison import Compared
from raykd.report.comparison_panels import Panel, named_arms, named_labels, panels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0067a5", "#00805c", "#a4507f", "#8a6a00")  # as on the page
TEACHER, BLACK, GRAY = "#b84a00", "#1b1f24", "#c4c8cc"


def comparison_png(sets: Sequence[Compared]) -> bytes | None:
    """A row a set, a panel a family: mean accuracy over labels, as on the page; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [panels_of(found) for found in sets]
    labels = named_labels([panel for row in rows for panel in row])
    columns = max(map(len, rows))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(4.2 * columns, 3.4 * len(rows)), squeeze=False, constrained_layout=True,
        sharey="row",
    )  # fmt: skip
    for row, found, panels in zip(axes, sets, rows, strict=True):
        for ax, panel in zip(row, panels, strict=False):
            draw(ax, panel, labels)
            ax.set_title(unformatted(f"{found.name}: {panel.title}"), fontsize=9)
        row[0].set_ylabel("accuracy")
        row[0].yaxis.set_major_formatter("{x:.0%}" if panels[0].edges[1] - panels[0].edges[0] > 0.05 else "{x:.1%}")
        for unused in row[len(panels) :]:
            unused.axis("off")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    plt.close(figure)
    return sink.getvalue()


def draw(ax: Axes, panel: Panel, labels: Sequence[str]) -> None:
    """The curves of a panel: gray ones, teacher, upper bounds, and those that have a name."""
    named = named_arms(panel, labels)
    for arm in panel.arms:
        if all(arm is not each.arm for each in named):
            ax.plot(arm.labels_R, arm.curves_SR.mean(axis=0), color=GRAY, linewidth=1)
    if panel.teacher_is_near:
        xs, ys = zip(*panel.teacher, strict=True)
        ax.plot(xs, ys, color=TEACHER, linestyle="--", label="teacher", linewidth=1.2)
    for bound in panel.bounds:
        curve = bound.curves_SR.mean(axis=0)
        ax.plot(bound.labels_R, curve, color=BLACK, linestyle=":", label="upper bound", linewidth=1.2)
    for arm, rank in named:
        color = BLACK if rank is None else COLORS[rank]
        bands = arm.bands
        ax.plot(arm.labels_R, bands.mean_R, color=color, label=unformatted(panel.label(arm)), linewidth=1.6)
        if arm in (panel.best, panel.base) and np.isfinite(bands.all_low_R).all():
            ax.fill_between(arm.labels_R, bands.all_low_R, bands.all_high_R, color=color, alpha=0.12, linewidth=0)
    ax.set_xlabel("labels")
    handles, words = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], words[::-1], fontsize=7, frameon=False)
    ax.grid(axis="y", linewidth=0.5, alpha=0.4)


def unformatted(name: str) -> str:
    """A name as matplotlib shows it: no formula between dollars, and no name left out for its first letter."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
