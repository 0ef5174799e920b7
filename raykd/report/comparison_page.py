"""A comparison of simulated arms as one HTML page that opens offline, in the look of a campaign's report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import raykd
from raykd.report.charts import Line, line_chart
from raykd.report.comparison import Compared, Curves, Ranking, penalties, ranking, read_comparison
from raykd.report.comparison_words import (
    ARM_HEADINGS,
    SETTING_HEADINGS,
    arm_rows,
    as_markdown,
    family_words,
    leaders,
    num_seeds,
    rank_words,
    setting_rows,
    setting_summary,
)
from raykd.report.plots import comparison_png
from raykd.report.templates import template_named
from raykd.report.words import percent
from raykd.store.place import Place

NAMED = 4  # curves of a panel that have a name: the best, and random
STYLES = ("s2", "s6", "s3", "s4")


def write_comparison(folders: Sequence[Place], out: Place) -> list[Compared]:
    """``comparison.html``, ``comparison.md`` and, with matplotlib, ``comparison.png``, written anew.

    Raises:
        UserError: As :func:`read_comparison`.
    """
    sets = read_comparison(folders)
    (out / "comparison.html").write_bytes(render_comparison(sets, [str(folder) for folder in folders]).encode())
    (out / "comparison.md").write_bytes(as_markdown(sets).encode())
    if (png := comparison_png(sets)) is not None:
        (out / "comparison.png").write_bytes(png)
    return sets


def render_comparison(sets: Sequence[Compared], folders: Sequence[str]) -> str:
    """The page. A pure function; names may come from anywhere and are escaped.

    Args:
        folders: Where the results lie.
    """
    rank = ranking(sets)
    html: str = template_named("comparison.html.j2").render(
        sets=[set_view(found, number) for number, found in enumerate(sets)],
        arm_headings=ARM_HEADINGS,
        setting_headings=SETTING_HEADINGS,
        rank=rank and rank_view(rank),
        folders=folders,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        raykd_version=raykd.__version__,
    )
    return html.encode("utf-8", "replace").decode()


def set_view(found: Compared, number: int) -> dict[str, Any]:
    """What the page shows of one set."""
    bounds = [arm for arm in found.arms if arm.is_bound]
    return {
        "key": f"set{number}",
        "name": found.name,
        "seeds": num_seeds(found),
        "leaders": leaders(found),
        "missing": found.missing,
        "panels": [
            panel(arms, [bound for bound in bounds if bound.family == family])
            for family, arms in found.families.items()
        ],
        "arms": arm_rows(found),
        "settings": [
            (name, setting_summary(differences), setting_rows(found, name))
            for name, differences in found.by_setting.items()
        ],
        "penalties": [each for arms in found.families.values() if (each := penalty_view(arms))],
    }


def panel(arms: Sequence[Curves], bounds: Sequence[Curves]) -> dict[str, Any]:
    """The curves of a family: the best few and random by name, with the band of the best; the others gray."""
    order = sorted(arms, key=lambda arm: -arm.area)
    named = [*[arm for arm in order if arm.strategy != "random"][: NAMED - 1]]
    named += [arm for arm in arms if arm.strategy == "random"]
    lines = [line_of(arm, "s5", quiet=True) for arm in arms if arm not in named]
    colors = dict(zip((arm.name for arm in named), STYLES, strict=False))
    bound_lines = [line_of(bound, "bound") for bound in bounds]
    lines += bound_lines + [line_of(arm, colors.get(arm.name, "s7"), band=arm in named[:1]) for arm in reversed(named)]
    words = family_words(arms[0].family)
    return {
        "title": words,
        "charts": [
            line_chart(f"Accuracy: {words}", lines, percent, width=w, height=h) for w, h in ((560, 380), (344, 280))
        ],
        "teacher": float(np.mean([arm.teacher for arm in arms])),
        "others": len(arms) - len(named),
        "bound": bool(bounds),
    }


def line_of(arm: Curves, style: str, *, quiet: bool = False, band: bool = False) -> Line:
    """An arm's mean curve; its band holds at all rounds at once."""
    edges: list[tuple[float, float]] = []
    if band and not np.isnan(arm.bands.all_low_R).any():
        edges = list(zip(arm.bands.all_low_R.tolist(), arm.bands.all_high_R.tolist(), strict=True))
    points = list(zip(arm.labels_R.tolist(), arm.curves_SR.mean(axis=0).tolist(), strict=True))
    return Line(
        name=arm.strategy or arm.name if not arm.is_bound else "bound",
        style=style,
        xy=points,
        band=edges,
        quiet=quiet,
    )


def penalty_view(arms: Sequence[Curves]) -> dict[str, Any] | None:
    """The matrix of a family as a heat map: a row beats a column; and how often each is beaten."""
    if (found := penalties(arms)) is None:
        return None
    order = np.argsort(found.defeats_A, kind="stable")
    names = [arms[i].strategy or found.names[i] for i in order]
    rows = [
        {
            "name": names[rank],
            "cells": [
                {"share": float(found.matrix_AA[i, j]), "note": f"{names[rank]} beats {found.names[j]}"} for j in order
            ],
        }
        for rank, i in enumerate(order)
    ]
    beaten = [percent(float(found.defeats_A[i]), 0) for i in order]
    return {"title": family_words(arms[0].family), "names": names, "rows": rows, "defeats": beaten}


def rank_view(rank: Ranking) -> dict[str, Any]:
    """Mean ranks, best first, as places on a scale; arms whose bars overlap are not told apart."""
    ranks, count = rank.ranks, len(rank.names)
    order = np.argsort(ranks.mean_A, kind="stable")
    half = ranks.critical / 2 if ranks.p_value <= 0.05 else count
    at = lambda value: round(100 * (min(max(value, 1), count) - 1) / max(count - 1, 1), 1)  # noqa: E731
    rows = [
        {
            "name": rank.names[i],
            "rank": f"{ranks.mean_A[i]:.2f}",
            "at": at(ranks.mean_A[i]),
            "low": at(ranks.mean_A[i] - half),
            "high": at(ranks.mean_A[i] + half),
        }
        for i in order
    ]
    return {"words": rank_words(rank), "rows": rows, "sets": rank.sets}
