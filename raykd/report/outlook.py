"""How sure a student's accuracy is, what the next labels are likely to bring and cost, and whether to buy them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from raykd.algo.forecast import score_forecasts
from raykd.report.words import UNKNOWN, counted, known, percent, points
from raykd.store.outputs import AuditFigures, RoundFigures

HARDLY = 0.005  # of accuracy: what a round must be able to bring to be worth it


class Outlook(NamedTuple):
    """What a reader of the report wants to know before all else."""

    advice: str | None
    grounds: list[str]  # sentences without a full stop


def outlook(rounds: Sequence[RoundFigures], goal: float | None) -> Outlook | None:
    """Of the last round; None where nothing is measured, and of older campaigns."""
    if not rounds or (least := bound_in_words(rounds[-1])) is None:
        return None
    last = rounds[-1]
    audit = last.get("audit")
    by = [f"By the audit: {audit_in_words(audit)}"] if audit else []
    more = [ahead(last), forecasts_so_far(rounds), prices(last)]
    said = [f"Accuracy is {least}", *by, *(f"{each[0].upper()}{each[1:]}" for each in more if each)]
    return Outlook(advice(last, goal), said)


def words_of(r: RoundFigures, goal: float | None) -> str:
    """The same as a line of the log: what to expect and to pay, and what follows for the goal."""
    return "; ".join(filter(None, (ahead(r), prices(r), goal_reached(r, goal))))


def bound_in_words(r: RoundFigures) -> str | None:
    """At least 91.2% with 95% confidence, in all rounds at once; None where nothing is measured, or was not by then."""
    least = r.get("at_least")
    return f"at least {percent(least)} with 95% confidence, whenever one looks" if known(least) else None


def ahead(r: RoundFigures) -> str | None:
    """What the next labels are likely to bring; None where nothing is said of it."""
    found = r.get("forecast")
    if found is None:
        return None
    more = counted(found["labels"] - r["num_labeled"], "more label")
    if found["reason"]:
        return f"no forecast for {more}: {found['reason']}"
    gains = f"{points(found['gain'])} points ({points(found['gain_low'])} to {points(found['gain_high'])})"
    reached = f"{percent(found['accuracy'])} ({number_range(found['low'], found['high'])})"
    return f"{more} are likely to bring {gains}, to {reached}"


def number_range(low: float | None, high: float | None) -> str:
    """88.1 to 93.0%."""
    return f"{100 * low:.1f} to {percent(high)}" if known(low) else UNKNOWN


def prices(r: RoundFigures) -> str | None:
    """What labels have cost and what a point is likely to cost; None where no price is given."""
    price = r.get("price")
    if not price:
        return None
    text = f"{price['spent']:,.2f} paid so far; the next round costs {price['cost']:,.2f}"
    if price["per_point"] is None:
        return text
    most = "no end" if price["high"] is None else f"{price['high']:,.2f}"
    low = 0.0 if price["low"] is None else price["low"]
    return f"{text}, or {price['per_point']:,.2f} a point ({low:,.2f} to {most})"


def goal_reached(r: RoundFigures, goal: float | None) -> str | None:
    """How far the goal is; None where there is none, or nothing is measured."""
    least, accuracy = r.get("at_least"), (r["accuracy"] or {}).get("mixture")
    if goal is None or not known(least) or not known(accuracy):
        return None
    if least >= goal:
        return f"the goal of {percent(goal)} is reached"
    return f"the goal of {percent(goal)} is {'measured, but not sure yet' if accuracy >= goal else 'not reached'}"


def advice(r: RoundFigures, goal: float | None) -> str | None:
    """Whether to buy more labels: by the goal, if there is one, and by what they are likely to bring.

    Not once the goal is sure; hardly, where no round is likely to bring half a point; else what is known of it.
    """
    reached, found = goal_reached(r, goal), r.get("forecast")
    least = r.get("at_least")
    if goal is not None and known(least) and least >= goal:
        return f"Stop: {reached}, with 95% confidence"
    start = f"{reached[0].upper()}{reached[1:]}. " if reached else ""
    if found is None or found["reason"] or not known(found["gain"]) or not known(found["gain_high"]):
        return f"{start}Whether more labels pay cannot be told yet"
    gain = f"{points(found['gain'])} points ({points(found['gain_low'])} to {points(found['gain_high'])})"
    if found["gain_high"] < HARDLY:
        return f"{start}More labels of this kind hardly pay: the next round is likely to bring {gain}"
    sure = "pay" if known(found["gain_low"]) and found["gain_low"] > 0 else "may pay"
    return f"{start}More labels {sure}: the next round is likely to bring {gain}"


def forecasts_so_far(rounds: Sequence[RoundFigures]) -> str | None:
    """How good past forecasts were; None of none."""
    pairs = [
        (found, accuracy["mixture"])
        for before, now in itertools.pairwise(rounds)
        if (found := before.get("forecast")) and (accuracy := now["accuracy"]) and known(accuracy["mixture"])
        and found["labels"] == now["num_labeled"] and before.get("measured_on") == now.get("measured_on")
    ]  # fmt: skip
    score = score_forecasts([found for found, _ in pairs], [accuracy for _, accuracy in pairs])
    if not score["num"]:
        return None
    of = counted(score["num"], "forecast")
    text = f"{score['num_inside']:,} of {of} so far had the next round within the interval"
    return f"{text}; off by {100 * (score['mean_size'] or 0):.1f} points on average, {too_much(score['mean_error'])}"


def too_much(error: float | None) -> str:
    """Which way forecasts erred."""
    if not known(error) or abs(error) < 0.0005:
        return "neither too high nor too low"
    return f"{100 * abs(error):.1f} too {'high' if error > 0 else 'low'}"


def audit_in_words(audit: AuditFigures) -> str:
    """How the audit came to its figure."""
    text = f"{audit['num_right']:,} right of {counted(audit['num_audited'], 'audited image')}"
    if audit["how"] == "control variate":
        text += f", worth {audit['worth']:,.0f} by how sure the student is of {audit['num_aside']:,} set aside"
    for key, said in (
        ("num_unanswered", "without an answer yet"),
        ("num_without_class", "that people can give no class"),
        ("num_choosing", "that chose the mixture and measure nothing"),
    ):
        if count := audit[key]:  # type: ignore[literal-required]
            text += f"; {count:,} more {said}"
    return text
