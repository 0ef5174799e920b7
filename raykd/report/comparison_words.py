"""A comparison of simulated arms in sentences and tables: what page, Markdown and log share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raykd.algo.comparison import FEWEST, labels_to_reach
from raykd.algo.statistics import student_t
from raykd.report.comparison import BASE, STRATEGY, UNDECIDED, Compared, Curves, Difference, Ranking, ranking


def num_seeds(found: Compared) -> int:
    return max(len(arm.accuracies) for arm in found.arms)


def leaders(found: Compared) -> str:
    """The verdict of a set in a few sentences: who leads, and what is shown against random."""
    best = sorted(found.strategies, key=lambda arm: -arm.area)[:3]
    listed = ", ".join(f"{arm.name} ({arm.area:.1%})" for arm in best)
    text = f"Highest area under the curve: {listed}."
    against = list(found.against_base.values())
    if not against:
        return f"{text} There is no arm with {STRATEGY}: {BASE} and all else alike, so nothing is held against it."
    if (most := max(each.num_seeds for each in against)) < FEWEST:
        return f"{text} {most} seeds can show no difference at 5 %, whatever it is: {FEWEST} can."
    counts = {said: sum(each.said == said for each in against) for said in ("better", "worse")}
    rest = len(against) - sum(counts.values())
    return (
        f"{text} Against random with all else alike {counts['better']} of {len(against)} arms are shown to be better, "
        f"{counts['worse']} worse; of {rest} no difference is shown, which does not say that there is none."
    )


def labels_saved(found: Compared, arm: Curves) -> str:
    """How many labels an arm needs to be as good as random at the end."""
    base = found.base_of(arm)
    if base is None or len(arm.labels_R) < 2:
        return ""
    reach = labels_to_reach(arm.labels_R, arm.curves_SR, float(base.curves_SR[:, -1].mean()))
    if reach["labels"] is None:
        return f"more than {arm.labels_R[-1]:,}"
    low, high = reach["low"], reach["high"]
    ends = "" if low is None else f" ({low:,.0f} to {'more' if high is None else f'{high:,.0f}'})"
    return f"{reach['labels']:,.0f}{ends}"


def family_words(family: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in family) or "as in the campaign"


def points_of(mean: float, half: float) -> str:
    """A difference of areas in percentage points with its interval."""
    return f"{100 * mean:+.1f}" + ("" if np.isnan(half) else f" ± {100 * half:.1f}")


def arm_rows(found: Compared) -> list[list[str]]:
    """The table of arms, the highest area first: see :data:`ARM_HEADINGS`."""
    rows = []
    for arm in sorted(found.arms, key=lambda each: -each.area):
        areas, against = list(arm.areas.values()), found.against_base.get(arm.name)
        half = student_t(len(areas) - 1) * np.std(areas, ddof=1) / len(areas) ** 0.5 if len(areas) > 1 else np.nan
        rows.append(
            [
                arm.name + (" (upper bound)" if arm.is_bound else ""),
                f"{arm.area:.1%}" + ("" if np.isnan(half) else f" ± {100 * half:.1f}"),
                f"{arm.curves_SR[:, -1].mean():.1%}",
                "" if against is None else points_of(against.mean, against.half),
                "" if against is None else f"{against.p_value:.3f}",
                "" if against is None else against.said,
                labels_saved(found, arm),
                f"{arm.seconds:.2f} s",
            ]
        )
    return rows


ARM_HEADINGS = (
    *("Arm", "AUBC", "Last round", "Against random, points", "p", "Shown"),
    *("Labels to be as good as random at the end", "A round"),
)


def setting_rows(found: Compared, name: str) -> list[list[str]]:
    """What one field does, pair by pair: see :data:`SETTING_HEADINGS`."""
    return [
        [each.ours, each.theirs, points_of(each.mean, each.half), f"{each.p_value:.3f}", each.said]
        for each in found.by_setting[name]
    ]


SETTING_HEADINGS = ("With", "Against", "Points of AUBC", "p", "Shown")


def setting_summary(differences: Sequence[Difference]) -> str:
    """How often it is shown to be better, in one sentence."""
    said = [each.said for each in differences]
    mean = 100 * np.mean([each.mean for each in differences])
    if all(each == UNDECIDED for each in said):
        return f"{mean:+.1f} points on average over {len(said)} pairs; too few seeds to tell"
    return (
        f"{mean:+.1f} points on average; better in {said.count('better')}, worse in {said.count('worse')} of "
        f"{len(said)} pairs"
    )


def as_markdown(sets: Sequence[Compared]) -> str:
    """All tables as Markdown."""
    lines: list[str] = []
    for found in sets:
        lines += [f"## {found.name}", "", f"{num_seeds(found)} seeds. {leaders(found)}", ""]
        lines += markdown_table(ARM_HEADINGS, arm_rows(found))
        for name, differences in found.by_setting.items():
            lines += ["", f"**{name}**: {setting_summary(differences)}.", ""]
            lines += markdown_table(SETTING_HEADINGS, setting_rows(found, name))
        lines.append("")
    if rank := ranking(sets):
        order = np.argsort(rank.ranks.mean_A, kind="stable")
        lines += [f"## Mean ranks over {len(rank.sets)} sets", "", rank_words(rank), ""]
        lines += markdown_table(("Arm", "Mean rank"), [[rank.names[i], f"{rank.ranks.mean_A[i]:.2f}"] for i in order])
    return "\n".join(lines) + "\n"


def rank_words(rank: Ranking) -> str:
    """What the ranks show."""
    ranks = rank.ranks
    if ranks.p_value > 0.05:
        return f"Friedman p {ranks.p_value:.3f}: over these sets no arm is told apart from another."
    return f"Friedman p {ranks.p_value:.3f}; mean ranks nearer than {ranks.critical:.2f} are not told apart (Nemenyi)."


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(headings), "|" + "---|" * len(headings), *map(line, rows)]
