"""Learning curves of simulated arms as a PNG, by matplotlib, where that is installed (the ``plot`` extra)."""

from __future__ import annotations

import io
from collections.abc import Sequence

from raykd.report.comparison import Compared
from raykd.report.comparison_words import family_words

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
NAMED = 3  # strategies of a panel that have a color, beside random


def comparison_png(sets: Sequence[Compared]) -> bytes | None:
    """A row a set, a panel a family: mean accuracy over labels; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = max(len(found.families) for found in sets)
    figure, panels = plt.subplots(
        len(sets), columns, figsize=(4.2 * columns, 3.4 * len(sets)), squeeze=False, constrained_layout=True,
        sharey="row",
    )  # fmt: skip
    for row, found in zip(panels, sets, strict=True):
        for panel, (family, arms) in zip(row, found.families.items(), strict=False):
            order = sorted((arm for arm in arms if arm.strategy != "random"), key=lambda arm: -arm.area)
            colors = {arm.name: color for arm, color in zip(order[:NAMED], COLORS, strict=False)}
            colors |= {arm.name: "black" for arm in arms if arm.strategy == "random"}
            for arm in sorted(arms, key=lambda arm: arm.name in colors):
                label = (arm.strategy or arm.name) if arm.name in colors else None
                color = colors.get(arm.name, "#c4c8cc")
                panel.plot(arm.labels_R, arm.curves_SR.mean(axis=0), color=color, label=label, linewidth=1.6)
            for bound in (arm for arm in found.arms if arm.is_bound and arm.family == family):
                curve = bound.curves_SR.mean(axis=0)
                panel.plot(bound.labels_R, curve, color="black", linestyle=":", label="upper bound", linewidth=1.2)
            panel.set_title(f"{found.name}: {family_words(family)}", fontsize=9)
            panel.set_xlabel("labels")
            panel.legend(fontsize=7, frameon=False)
        row[0].set_ylabel("accuracy")
        for unused in row[len(found.families) :]:
            unused.axis("off")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    plt.close(figure)
    return sink.getvalue()
