"""A comparison of simulated arms in sentences and tables: what page, Markdown and log share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raykd.algo.comparison import FEWEST, Verdict, labels_to_reach
from raykd.algo.statistics import half_interval
from raykd.report.comparison import BASE, STRATEGY, UNDECIDED, Compared, Curves, Difference, Ranking, rankings
from raykd.report.words import UNKNOWN, counted, duration, percent

UNSHOWN: Verdict = "no difference shown"
MADE_HEADINGS = ("Set", "Arms", "Seeds", "Rounds", "Labels", "Simulated by raykd")


def made_row(found: Compared) -> list[str]:
    """What a set's figures are of: see :data:`MADE_HEADINGS`."""
    rounds = {len(arm.labels_R) for arm in found.strategies}
    ends = [(arm.labels_R[0], arm.labels_R[-1]) for arm in found.strategies]
    labels = f"{min(low for low, _ in ends):,} to {max(high for _, high in ends):,}"
    counts = " to ".join(str(count) for count in sorted({min(rounds), max(rounds)}))
    return [found.name, str(len(found.strategies)), str(num_seeds(found)), counts, labels, found.made_by or UNKNOWN]


def num_seeds(found: Compared) -> int:
    return max(len(arm.accuracies) for arm in found.arms)


def leaders(found: Compared) -> str:
    """The verdict of a set in a few sentences: who leads by how much, and what is shown against random."""
    best = sorted(found.strategies, key=lambda arm: -arm.area)[:3]
    text = "Highest area under the curve" if found.is_curve else "Highest accuracy"
    text += f", and points over {base_words(found)}" if found.against_base else ""
    text += f": {'; '.join(led_by(found, arm) for arm in best)}."
    against = list(found.against_base.values())
    if not against:
        none = f"with {STRATEGY}: {BASE} and all else alike" if len(found.strategies) > 1 else "beside it"
        return f"{text} There is no arm {none}, so nothing is held against it."
    if (most := max(each.num_seeds for each in against)) < FEWEST:
        return f"{text} {most} seeds can show no difference at 5 %, whatever it is: {FEWEST} can."
    better, worse, open_ = (sum(each.said == word for each in against) for word in ("better", "worse", UNSHOWN))
    text += f" {better} of {counted(len(against), 'arm')} are shown to be better, {worse} worse"
    text += f"; of {open_} no difference is shown, which does not say that there is none" if open_ else ""
    few = len(against) - better - worse - open_
    return f"{text}{f'; {few} have too few seeds to tell' if few else ''}."


def led_by(found: Compared, arm: Curves) -> str:
    """An arm's area, and by how much it is ahead."""
    against = found.against_base.get(arm.name)
    return f"{arm.name} {percent(arm.area)}" + (f" ({points_of(against.mean, against.half)})" if against else "")


def base_words(found: Compared) -> str:
    """What arms are held against."""
    return f"{BASE} with all else alike" if found.has_random else found.strategies[0].name


def span_words(found: Compared) -> str | None:
    """That arms were not measured at the same numbers of labels; None where they were."""
    if not found.is_cut:
        return None
    low, high = found.span
    between = f"between {low:,.0f} and {high:,.0f} labels, which all of them have" if low < high else f"at {low:,.0f}"
    return f"Not all arms have the same numbers of labels: they are compared {between}."


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


def points_of(mean: float, half: float) -> str:
    """A difference of areas in percentage points with its interval."""
    return f"{100 * mean:+.1f}" + ("" if np.isnan(half) else f" ± {100 * half:.1f}")


def p_words(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def family_words(arms: Sequence[Curves]) -> str:
    """What the arms of a family have in common."""
    if len({arm.family for arm in arms}) > 1 or not arms[0].family:
        return "all arms"
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in arms[0].family)


def arm_rows(found: Compared) -> list[list[str]]:
    """The table of arms, the highest area first: see :func:`arm_headings`."""
    rows = []
    for arm in sorted(found.arms, key=lambda each: (not each.areas, -each.area)):
        areas, against = list(arm.areas.values()), found.against_base.get(arm.name)
        half = half_interval(np.array(areas))
        lacking = "" if len(arm.accuracies) == num_seeds(found) else f", {counted(len(arm.accuracies), 'seed')}"
        rows.append(
            [
                arm.name + (" (upper bound)" if arm.is_bound else ""),
                percent(arm.area) + ("" if np.isnan(half) else f" ± {100 * half:.1f}") + lacking,
                percent(float(arm.curves_SR[:, -1].mean())),
                "" if against is None else points_of(against.mean, against.half),
                "" if against is None else p_words(against.p_value),
                "" if against is None else against.said,
                labels_saved(found, arm),
                duration_of_round(arm.seconds),
            ]
        )
    return rows


def duration_of_round(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else duration(seconds)


def arm_headings(found: Compared) -> list[str]:
    """Of the table of arms; of a single round there is no area, and accuracies stand in its place."""
    base = BASE if found.has_random else found.strategies[0].name
    area = "AUBC" if found.is_curve else "Accuracy (one round has no area)"
    return [
        *("Arm", area, "Last round", f"Against {base}, points", "p", "Shown"),
        *(f"Labels to be as good as {base} at the end", "A round"),
    ]


def setting_rows(found: Compared, name: str) -> list[list[str]]:
    """What one field does, pair by pair: see :data:`SETTING_HEADINGS`."""
    return [
        [each.ours, each.theirs, points_of(each.mean, each.half), p_words(each.p_value), each.said]
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
        lines += [f"## {found.name}", "", f"{counted(num_seeds(found), 'seed')}. {leaders(found)}", ""]
        notes = [span_words(found), f"Not there yet: {'; '.join(found.missing)}." if found.missing else None]
        lines += [line for note in notes if note for line in (note, "")]
        lines += markdown_table(arm_headings(found), arm_rows(found))
        for name, differences in found.by_setting.items():
            lines += ["", f"**{name}**: {setting_summary(differences)}.", ""]
            lines += markdown_table(SETTING_HEADINGS, setting_rows(found, name))
        lines.append("")
    for rank in rankings(sets):
        order = np.argsort(rank.ranks.mean_A, kind="stable")
        lines += [f"## Mean ranks over {len(sets)} sets: {family_words(rank.arms)}", "", rank_words(rank), ""]
        rows = [[rank.arms[i].name, f"{rank.ranks.mean_A[i]:.2f}"] for i in order]
        lines += [*markdown_table(("Arm", "Mean rank"), rows), ""]
    return "\n".join(lines) + "\n"


def rank_words(rank: Ranking) -> str:
    """What the ranks show."""
    ranks, friedman = rank.ranks, f"Friedman p {p_words(rank.ranks.p_value)}"
    if ranks.p_value > 0.05:
        return f"{friedman}: over these sets no arm is told apart from another."
    return f"{friedman}; mean ranks nearer than {ranks.critical:.2f} are not told apart (Nemenyi)."


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(headings), "|" + "---|" * len(headings), *map(line, rows)]
