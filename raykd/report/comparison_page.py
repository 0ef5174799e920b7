"""A comparison of simulated arms as one HTML page that opens offline, in the look of a campaign's report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import raykd
from raykd.report.charts import Line, line_chart
from raykd.report.comparison import Compared, Curves, Ranking, penalties, rankings
from raykd.report.comparison_files import read_comparison
from raykd.report.comparison_panels import Panel, named_arms, named_labels, panels_of
from raykd.report.comparison_words import (
    MADE_HEADINGS,
    SETTING_HEADINGS,
    arm_headings,
    arm_rows,
    as_markdown,
    base_words,
    family_words,
    leaders,
    made_row,
    num_seeds,
    rank_words,
    setting_rows,
    setting_summary,
    span_words,
)
from raykd.report.plots import comparison_png
from raykd.report.templates import template_named
from raykd.report.words import percent
from raykd.store.place import Place


def write_comparison(folders: Sequence[Place], out: Place) -> list[Compared]:
    """``comparison.html``, ``comparison.md`` and, with matplotlib, ``comparison.png``, written anew.

    Raises:
        UserError: As :func:`read_comparison`.
    """
    sets = read_comparison(folders)
    html = render_comparison(sets, [str(folder) for folder in folders], out == folders[0])
    (out / "comparison.html").write_bytes(html.encode())
    (out / "comparison.md").write_bytes(as_markdown(sets).encode())
    if (png := comparison_png(sets)) is not None:
        (out / "comparison.png").write_bytes(png)
    return sets


def render_comparison(sets: Sequence[Compared], folders: Sequence[str], linked: bool = False) -> str:
    """The page. A pure function; names may come from anywhere and are escaped.

    Args:
        folders: Where the results lie.
        linked: Whether the page lies in the first of them.
    """
    labels = named_labels([panel for found in sets for panel in panels_of(found)])
    html: str = template_named("comparison.html.j2").render(
        sets=[set_view(found, number, labels) for number, found in enumerate(sets)],
        setting_headings=SETTING_HEADINGS,
        ranks=[rank_view(rank) for rank in rankings(sets)],
        made_headings=MADE_HEADINGS,
        made_rows=[made_row(found) for found in sets],
        linked=linked,
        folders=folders,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        raykd_version=raykd.__version__,
    )
    return html.encode("utf-8", "replace").decode()


def set_view(found: Compared, number: int, labels: Sequence[str]) -> dict[str, Any]:
    """What the page shows of one set.

    Args:
        labels: What has a color on this page.
    """
    panels = panels_of(found)
    lines = [panel_lines(panel, labels) for panel in panels]
    ys = [
        y
        for of in lines
        for line in of
        for y in [*(y for _, y in line.xy), *(end for ends in line.band for end in ends)]
    ]
    return {
        "key": f"set{number}",
        "name": found.name,
        "seeds": num_seeds(found),
        "leaders": leaders(found),
        "base": base_words(found),
        "span": span_words(found),
        "missing": found.missing,
        "panels": [panel_view(panel, of, (min(ys), max(ys)), labels) for panel, of in zip(panels, lines, strict=True)],
        "arm_headings": arm_headings(found),
        "arms": arm_rows(found),
        "settings": [
            (name, setting_summary(differences), setting_rows(found, name))
            for name, differences in found.by_setting.items()
        ],
        "penalties": [each for panel in panels if (each := penalty_view(panel))],
    }


def panel_lines(panel: Panel, labels: Sequence[str]) -> list[Line]:
    """The curves of a panel, those on top last: gray ones, teacher, upper bounds, and those that have a name."""
    named = named_arms(panel, labels)
    gray = [arm for arm in panel.arms if all(arm is not each.arm for each in named)]
    lines = [curve_of(panel, arm, "rest", quiet=True) for arm in gray]
    if panel.teacher_is_near:
        lines.append(Line(name="teacher", style="teacher", xy=panel.teacher, band=[]))
    lines += [curve_of(panel, bound, "bound") for bound in panel.bounds]
    for arm, rank in named:
        band = arm in (panel.best, panel.base)
        lines.append(curve_of(panel, arm, "base" if rank is None else f"color{rank}", band=band))
    return lines


def panel_view(panel: Panel, lines: list[Line], y_range: tuple[float, float], labels: Sequence[str]) -> dict[str, Any]:
    """A panel's chart, for a desk and for a phone, and what is said of it."""
    teacher = [y for _, y in panel.teacher]
    moved = bool(teacher) and max(teacher) - min(teacher) > 0.0005
    return {
        "title": panel.title,
        "charts": [
            line_chart(f"Accuracy: {panel.title}", lines, percent, width=w, height=h, y_range=y_range)
            for w, h in ((560, 380), (344, 280))
        ],
        "teacher": " to ".join(percent(y) for y in (teacher[0], teacher[-1])[: 1 + moved]) if teacher else None,
        "others": len(panel.arms) - len(named_arms(panel, labels)),
        "bound": bool(panel.bounds),
    }


def curve_of(panel: Panel, arm: Curves, style: str, *, quiet: bool = False, band: bool = False) -> Line:
    """An arm's mean curve; its band holds at all rounds at once."""
    edges: list[tuple[float, float]] = []
    if band and not np.isnan(arm.bands.all_low_R).any():
        edges = list(zip(arm.bands.all_low_R.tolist(), arm.bands.all_high_R.tolist(), strict=True))
    points = list(zip(arm.labels_R.tolist(), arm.curves_SR.mean(axis=0).tolist(), strict=True))
    return Line(name=panel.label(arm), style=style, xy=points, band=edges, quiet=quiet)


def penalty_view(panel: Panel) -> dict[str, Any] | None:
    """The matrix of a panel as a heat map: a row beats a column; and how often each is beaten."""
    if (found := penalties(panel.arms)) is None:
        return None
    order = np.argsort(found.defeats_A, kind="stable")
    names = [panel.label(panel.arms[i]) for i in order]
    ordered_AA = found.matrix_AA[np.ix_(order, order)].tolist()
    rows = [
        {
            "name": name,
            "cells": [
                {"share": share, "note": f"{name} beats {other} in {percent(share, 0)} of the rounds"}
                for other, share in zip(names, shares, strict=True)
            ],
        }
        for name, shares in zip(names, ordered_AA, strict=True)
    ]
    beaten = [percent(float(found.defeats_A[i]), 0) for i in order]
    return {
        "title": panel.title,
        "what": "strategies" if panel.is_family else "arms",
        "names": names,
        "rows": rows,
        "defeats": beaten,
    }


def rank_view(rank: Ranking) -> dict[str, Any]:
    """Mean ranks, best first, as places on a scale; arms whose bars overlap are not told apart."""
    ranks, count = rank.ranks, len(rank.arms)
    order = np.argsort(ranks.mean_A, kind="stable")
    half = ranks.critical / 2 if ranks.p_value <= 0.05 else count
    at = lambda value: round(100 * (min(max(value, 1), count) - 1) / max(count - 1, 1), 1)  # noqa: E731
    rows = [
        {
            "name": rank.arms[i].name,
            "rank": f"{ranks.mean_A[i]:.2f}",
            "at": at(ranks.mean_A[i]),
            "low": at(ranks.mean_A[i] - half),
            "high": at(ranks.mean_A[i] + half),
        }
        for i in order
    ]
    return {"title": family_words(rank.arms), "words": rank_words(rank), "rows": rows}
