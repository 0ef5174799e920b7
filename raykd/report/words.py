"""Numbers as people read them, and the sentences that the log, the table at a job's end and the page share."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, TypeGuard

from raykd.algo.class_list import CLOSE, NEUTRAL
from raykd.algo.metrics import HeldOut
from raykd.algo.statistics import Change, is_noise, wilson
from raykd.store.outputs import ClassCheck, LabelDoubts, RoundFigures, TeacherFit

UNKNOWN, TO = "\N{EN DASH}", "\N{RIGHTWARDS ARROW}"
LIKE_NONE = 0.05  # of the pool, from which on it is said


def known(value: float | None) -> TypeGuard[float]:
    """Neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def finite(value: float | None) -> float | None:
    return value if known(value) else None


def percent(value: float | None, digits: int = 1) -> str:
    return f"{value:.{digits}%}" if known(value) else UNKNOWN


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if known(value) else UNKNOWN


def whole(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}") if known(value) else UNKNOWN


def plain(text: str) -> str:
    """For a log or a terminal, which may know no other letters: a hyphen for a minus."""
    return text.replace("\N{MINUS SIGN}", "-").replace(UNKNOWN, "-").replace(TO, "->")


def duration(seconds: float | None) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if not known(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole_s = round(seconds)
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60:02} s"
    return f"{whole_s // 3600} h {whole_s % 3600 // 60:02} min"


def words(name: str) -> str:
    """Cannot label, for "cannot_label"."""
    return name.replace("_", " ").capitalize()


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str], most: int, total: int | None = None) -> str:
    """The first names, and how many more there are: 'a', 'b' and 3 more."""
    more = (len(names) if total is None else total) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {more:,} more" if more else "")


def head_and_tail(text: str, tail: int) -> tuple[str, str]:
    """A name cut in two, so that what it ends with can stay in sight when there is no room for all of it.

    No cut falls between a letter and what combines with it.

    Args:
        tail: Columns of the second part; wide letters take two.
    """
    cut = len(text)
    while cut and tail > 0:
        cut -= 1
        tail -= 2 if unicodedata.east_asian_width(text[cut]) in "WF" else 1
    while 0 < cut < len(text) and (unicodedata.combining(text[cut]) or "\u200d" in text[cut - 1 : cut + 1]):
        cut -= 1
    return text[:cut], text[cut:]


# ---------------------------------------------------------------- how good a round is


def interval(r: RoundFigures, who: str = "mixture") -> str:
    """92.1 to 96.5%, of a key of ``accuracy``; a dash where there is nothing to measure on."""
    ends = interval_of(r, who)
    return f"{100 * ends[0]:.1f} to {percent(ends[1])}" if ends else UNKNOWN


def interval_of(r: RoundFigures, who: str = "mixture") -> tuple[float, float] | None:
    """The 95 % interval of a key of ``accuracy``; None of none."""
    share = (r["accuracy"] or {}).get(who)
    if not known(share):
        return None
    if who == "mixture" and on_audit(r) and r["interval"]:
        return r["interval"]
    return wilson(share, num_measured(r, who))


def on_audit(r: RoundFigures) -> bool:
    """Whether it is measured on audited images, as there are no test images; older campaigns never were."""
    return r.get("measured_on") == "audit"


def num_measured(r: RoundFigures, who: str = "mixture") -> int:
    """Images that a key of ``accuracy`` is of; a table in the teacher's place may have a row for some of them."""
    count = r.get("num_measured", r["num_test"])
    return r["teacher"].get("num_images", count) if who == "teacher" and not on_audit(r) else count


def images_measured(r: RoundFigures, count: int | None = None) -> str:
    """400 test images; 40 audited images."""
    return counted(num_measured(r) if count is None else count, measured_kind(r))


def measured_kind(r: RoundFigures) -> str:
    return "audited image" if on_audit(r) else "test image"


def gain_range(change: Change) -> str:
    """-0.4 to +2.2, in percentage points."""
    return f"{points(change['low'])} to {points(change['high'])}"


def gained(change: Change | None) -> str:
    """+0.9 (-0.4 to +2.2), in percentage points."""
    return f"{points(change['gain'])} ({gain_range(change)})" if change else UNKNOWN


def labels_spent(r: RoundFigures, more: str = "") -> str:
    """50 labels and 150 more for validation: apart, as all of them cost; ``more`` is said of the first."""
    others = [f"{count:,} more for {use}" for use, count in labels_apart(r).items()]
    return (", and " if more else " and ").join([counted(r["num_labeled"], "label") + more, *others])


def labels_apart(r: RoundFigures) -> dict[str, int]:
    """Labels that are no training labels, by what they are for; older campaigns have not counted them."""
    return {use: count for use, count in r.get("labels_spent", {}).items() if count and use != "training"}


def worth_of_last(rounds: Sequence[RoundFigures]) -> str | None:
    """What the last round's labels brought: whether to go on. None where no two rounds can be compared."""
    if len(rounds) < 2 or (change := rounds[-1].get("change")) is None:
        return None
    new = rounds[-1]["num_labeled"] - rounds[-2]["num_labeled"]
    text = f"The last {counted(new, 'label')} brought {points(change['gain'])} points"
    text = f"{text} (95% interval {gain_range(change)})"
    count = change["num_test"]
    images = images_measured(rounds[-1], count) + ("" if count == num_measured(rounds[-1]) else " of both rounds")
    return f"{text}: within noise, as {images} cannot tell it from no change." if is_noise(change) else f"{text}."


def before_calibration(r: RoundFigures) -> str | None:
    """What the calibration error was before; None where calibration changed nothing, and of older campaigns."""
    before = percent(r.get("ece_uncalibrated"))
    return None if before in (UNKNOWN, percent(r["ece"])) else f"{before} before calibration"


def slips(doubts: LabelDoubts | None) -> str | None:
    """How many training labels look like slips; None where none does, and where nothing is said of it."""
    if not doubts or not doubts["num_suspects"]:
        return None
    of = counted(doubts["num_labels"], "training label")
    look = "looks like a slip" if doubts["num_suspects"] == 1 else "look like slips"
    return f"{doubts['num_suspects']:,} of {of} {look} ({doubts['by_chance']:.1f} would if all were right)"


# ---------------------------------------------------------------- what labels have made of the teacher


def fit_of(r: RoundFigures) -> TeacherFit | None:
    """What labels made of a round's teacher; None where it learns from none, and of older campaigns."""
    return r.get("teacher_fit")


def has_learned(fit: TeacherFit | None) -> bool:
    """Whether a pool image has another first choice than by texts alone; ``auto`` may have stayed with these."""
    return fit is not None and known(fit["changed"]) and fit["changed"] > 0


def taught_by(fit: TeacherFit) -> str:
    """What has moved it: StatA goes over the features more than twice."""
    return "labels and pool" if fit["passes"] > 2 else "labels"


def steps(
    on: Sequence[HeldOut | None], key: Literal["accuracy", "log_loss", "ece"], show: Callable[[float], str]
) -> str:
    """0.945 → 0.555: a figure as labels changed it, step by step; a step that changes nothing is left out."""
    shown = [show(each[key]) for each in on if each]
    return f" {TO} ".join(text for text, _ in itertools.groupby(shown)) or UNKNOWN


def mistakes(fit: TeacherFit) -> str | None:
    """What a teacher takes for what, most often; None where it is right on all labels."""
    pairs = [f"{label!r} seen as {choice!r}: {count:,}" for label, choice, count in fit["confusions"]]
    return f"Its most frequent mistakes on {counted(fit['num_labels'], 'label')}: {'; '.join(pairs)}" if pairs else None


def refit_in_words(fit: TeacherFit, accuracy: float | None) -> str:
    """The line that a refit ends with: by what rule, how good it is, what it has changed.

    Args:
        accuracy: On test.
    """
    chosen, held_out = fit["chosen"], (fit["before"], fit["after"])
    text = f"{fit['rule']} on {counted(fit['num_labels'], 'label')}"
    if known(accuracy):
        text += f": {percent(accuracy)} of the test images"
        if fit["change"] and has_learned(fit):
            text += f", {gained(fit['change'])} points by {taught_by(fit)}"
    if all(held_out):
        text += f"; of labels not seen {steps(held_out, 'accuracy', percent)} right"
        text += f", log-loss {steps(held_out, 'log_loss', number)}, calibration error {steps(held_out, 'ece', percent)}"
    else:
        text += "; one label of a class says nothing yet of how good it is"
    if has_learned(fit):
        text += f"; another first choice for {percent(fit['changed'])} of the pool"
    text += f"; temperature {chosen['temperature']:.2g}"
    return plain(text + (f", strength {chosen['strength']:.2g}" if "strength" in chosen else ""))


# ---------------------------------------------------------------- what is wrong with the class list


def class_doubts(check: ClassCheck, most: int = 3) -> list[str]:
    """A line for each thing that looks wrong with class list or prompts, none for what does not."""
    lines = []
    if check["num_images"] and (never := check["never"]):
        are = "class is" if len(never) == 1 else "classes are"
        names = listed([repr(name) for name in never], most)
        lines.append(f"{len(never):,} {are} the likeliest for none of {check['num_images']:,} pool images: {names}")
    if close := check["close"]:
        names = listed([f"{first!r} and {second!r} ({share:.2f})" for first, second, share in close], most)
        lines.append(
            f"{counted(len(close), 'pair')} of classes with prompts that nearly coincide, closer than {CLOSE} of the "
            f"usual distance: {names}"
        )
    if (count := check["num_like_none"]) > LIKE_NONE * check["num_images"]:
        share, names = percent(count / check["num_images"]), listed(check["examples"], most, count)
        lines.append(
            f"{share} of the pool looks like none of the classes, as the prompts fit it better with {NEUTRAL!r} for "
            f"the name, such as {names}"
        )
    return lines
