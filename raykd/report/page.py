"""The report of a campaign as one HTML page that opens anywhere, offline.

This module turns a report into what the page shows: figures, chart geometry, cards and rows. ``page.html.j2`` beside it
draws them. Every string goes through jinja2's autoescape, SVG included; nothing here builds markup.
"""

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from raykd.algo.metrics import Scores
from raykd.algo.statistics import Change, wilson
from raykd.report.charts import Line, line_chart
from raykd.report.outlook import outlook
from raykd.report.templates import template_named
from raykd.report.words import (
    TO,
    UNKNOWN,
    before_calibration,
    class_doubts,
    counted,
    finite,
    fit_of,
    gain_range,
    has_learned,
    images_measured,
    interval,
    interval_of,
    known,
    labels_apart,
    labels_spent,
    measured_kind,
    mistakes,
    num_measured,
    number,
    percent,
    points,
    slips,
    steps,
    whole,
    words,
    worth_of_last,
)
from raykd.store.outputs import ClassCheck, RoundFigures
from raykd.store.stage_folder import flatten

SHOWN_DOUBTS = 20  # names in a sentence about the class list
MOST_IN_MAP = 30  # classes of a confusion matrix that is drawn; of more the most confused pairs are listed
MOST_CONFUSED = 10  # of these pairs, and of the worst classes

Guess = tuple[str, float]  # class, probability 0 to 1


class TeacherFigures(Scores):
    """What the teacher is, and how good on the labeled test images."""

    model: str  # or the table that stands in its place
    rule: str  # of the config: what it makes of labels


class ImageCard(TypedDict):
    """An image, and what is thought of it."""

    sample_id: str
    uri: str
    thumbnail: bytes | None  # PNG or JPEG
    teacher: list[Guess] | None  # up to 3, best first; None: it has no opinion of it
    student: list[Guess] | None  # None: no student yet


class PickCard(ImageCard, TypedDict):
    """An image that was picked, and what people said."""

    round: int
    rank: int
    distance: float | None  # to the nearest center when it was picked
    outcome: str | None  # None: nobody has answered
    label: str | None  # the class, when outcome is "label"


class MistakeCard(ImageCard):
    """An image that measures, and that the last student has wrong."""

    label: str


class DoubtCard(ImageCard):
    """A training label that looks like a slip; the teacher has not seen the label."""

    given: str
    slip: float  # how probable it is that it is one


class NextStep(TypedDict):
    """What people are to do: where, and what to run then."""

    asked: int
    answered: int
    enough: int  # so many more would do; 0: all are answered, but none names a class, so there is nothing to train on
    tasks: str | None  # the file to fill in; None: nothing is asked
    answers: str  # the folder for other files
    command: str
    folder: str | None  # where to run it; None: it is a submitted job's


class ReportData(TypedDict):
    """All that the page shows."""

    title: str
    storage_path: str
    made: str
    raykd_version: str
    commit: str | None
    strategy: str
    seed: int
    budget: int
    rounds_configured: int
    status: str  # "complete", or what the campaign waits for
    next_step: NextStep | None  # None: nobody need do anything
    classes: list[str]
    samples: dict[str, int]  # pool, test, val, quarantined
    quarantine: list[dict[str, str]]  # the first ones: sample_id, uri, reason
    teacher: TeacherFigures
    class_check: ClassCheck
    rounds: list[RoundFigures]
    setup_seconds: dict[str, float]
    picks: list[PickCard]
    confusion: list[tuple[str, str, int]]  # label, prediction and how often, on test in the last round; right ones too
    mistakes: list[MistakeCard]  # of the last round, the surest first
    doubtful: list[DoubtCard]  # of the last round, the likeliest slips first
    config: dict[str, Any]
    versions: dict[str, str]


def render(report: ReportData) -> str:
    """One self-contained HTML page that shows a campaign.

    A pure function: no Ray, no reading of the pool, nothing fetched when the page is opened. Strings may come from
    anywhere (class names, paths, ids) and are escaped. NaN and infinity are shown like None, as a dash.

    Args:
        report: See :class:`ReportData`. Rounds in order; ``rounds``, ``picks``, ``quarantine`` may be empty.

    Returns:
        The page, to be written as UTF-8. About 2 kB a pick plus 4/3 of its thumbnail, 0.5 kB a class.
    """
    template = template_named("page.html.j2")
    rounds = report["rounds"]
    page = template.render(
        report,
        last=rounds[-1] if rounds else None,
        tested=is_tested(report),
        summary=summary(report),
        worth=worth_of_last(rounds),
        kind=measured_kind(rounds[-1]) if rounds else "test image",
        outlook=outlook(rounds, report["config"].get("goal")),
        doubts=[] if report["status"] == "complete" else class_doubts(report["class_check"], SHOWN_DOUBTS),
        fits=teacher_fits(rounds),
        blind_spots=blind_spots(report),
        figures=headline(report),
        charts=charts(report),
        gallery=gallery(report["picks"]),
        wrong=wrong_images(report),
        doubted=doubted_labels(report),
        class_rows=class_rows(report),
        most_labels=max([1, *rounds[-1]["labels_C"]]) if rounds else 1,
        label_strip=sorted(rounds[-1]["labels_C"], reverse=True) if rounds and len(report["classes"]) > 24 else None,
        numbers=round_numbers(report),
        quarantined=[(q["sample_id"], q["uri"], q["reason"]) for q in report["quarantine"]],
        mixing=mixing(rounds),
        stages=names_in(r["seconds"] for r in rounds),
        longest_s=max((sum(r["seconds"].values()) for r in rounds), default=0),
        settings=list(flatten(report["config"]).items()),
    )
    return page.encode("utf-8", "replace").decode()  # a file name that is not UTF-8 arrives as lone surrogates


# What the page says


def summary(report: ReportData) -> str:
    """The campaign in two sentences, for those who read no further."""
    pool, rounds, teacher = report["samples"]["pool"], report["rounds"], report["teacher"]
    if not rounds:
        return f"The pool of {pool:,} images is ready. No round has finished yet."
    last = rounds[-1]
    share = labels_spent(last, f", {labeled_share(report)} of the pool")
    student = score(last, "mixture")
    if student is None:
        text = f"{share}, over {counted(len(rounds), 'round')}."
        return f"{text} Without labeled test images or audited ones, accuracy is unknown."
    text = f"With {share}, the student is right on {percent(student)} of {images_measured(last)}."
    gain = difference(student, teacher_accuracy(report, last))
    if gain is None:
        return text
    compared = f"{points(abs(gain)).lstrip('+')} points {'more' if gain > 0 else 'less'} than" if gain else "as much as"
    taught = ", which has learned from the same labels" if has_learned(fit_of(last)) else ""
    return f"{text} That is {compared} its teacher, {teacher['model']}{taught}."


def headline(report: ReportData) -> list[tuple[str, str, str]]:
    """Headline figures: (name, value, remark)."""
    pool, num_classes = report["samples"]["pool"], len(report["classes"])
    teacher, rounds = report["teacher"], report["rounds"]
    if not rounds:
        return [
            ("Pool", f"{pool:,}", "images to pick from"),
            ("Teacher accuracy", percent(teacher["accuracy"]), teacher["model"]),
            ("Budget", f"{report['budget']:,}", f"picks a round, {counted(report['rounds_configured'], 'round')}"),
            ("Classes", f"{num_classes:,}", "to tell apart"),
        ]
    last = rounds[-1]
    unanswered = sum(n for r in rounds for outcome, n in r["outcomes"].items() if outcome != "label")
    effort = f"{len(rounds)} of {report['rounds_configured']} rounds, {report['budget']:,} picks each"
    effort += "".join(f"; {count:,} more for {use}" for use, count in labels_apart(last).items())
    labels = [
        ("Labels", f"{last['num_labeled']:,}", effort + (f"; {unanswered:,} gave no label" if unanswered else "")),
        ("Pool labeled", labeled_share(report), f"of {pool:,} images"),
    ]
    student = score(last, "mixture")
    if student is None:
        covered = sum(n > 0 for n in last["labels_C"])
        first_radius = number(rounds[0]["coverage_radius"])
        radius = ("Coverage radius", number(last["coverage_radius"]), f"{first_radius} after the first round")
        return [radius, *labels, ("Classes with a label", f"{covered:,}", f"of {num_classes:,}")]
    gain = difference(student, teacher_accuracy(report, last))
    theirs = f"teacher {percent(teacher['ece'])}" if known(teacher["ece"]) else None
    errors = ("ECE", before_calibration(last), theirs)
    against = "" if gain is None else f"{points(gain)} points against the teacher; "
    return [
        ("Student accuracy", percent(student), f"{against}95% interval {interval(last)}"),
        *labels,
        (
            "Calibration error",
            percent(last["ece"]),
            "; ".join(each for each in errors if each),
        ),
    ]


def labeled_share(report: ReportData) -> str:
    """Labels over the pool's size; small shares of large pools keep their digits."""
    share = report["rounds"][-1]["num_labeled"] / max(report["samples"]["pool"], 1)
    return percent(share, 1 if share >= 0.001 else 3)


def is_tested(report: ReportData) -> bool:
    return any(known(score(r, "mixture")) for r in report["rounds"])


def score(r: RoundFigures, who: str) -> float | None:
    """A round's accuracy of mixture, ce_head, kd_head or teacher."""
    return finite((r["accuracy"] or {}).get(who))


def teacher_accuracy(report: ReportData, r: RoundFigures) -> float | None:
    """The teacher's accuracy in a round (a few-shot teacher changes), else its first."""
    found = score(r, "teacher")
    return finite(report["teacher"]["accuracy"]) if found is None else found


def difference(ours: float | None, theirs: float | None) -> float | None:
    return ours - theirs if known(ours) and known(theirs) else None


class Noted(NamedTuple):
    """A cell with a remark below it."""

    value: str
    small: str


def changed(change: Change | None) -> str | Noted:
    return Noted(points(change["gain"]), gain_range(change)) if change else UNKNOWN


def round_numbers(report: ReportData) -> tuple[list[str], list[list[str | Noted]]]:
    """Headings and rows of the table of all rounds; columns that would be empty are left out."""
    rounds = report["rounds"]
    outcomes = [o for o in names_in(r["outcomes"] for r in rounds) if any(r["outcomes"].get(o) for r in rounds)]
    tested = is_tested(report)
    named = {"teacher": "Teacher", "ce_head": "CE head", "kd_head": "KD head"}
    others = {who: name for who, name in named.items() if any(known(score(r, who)) for r in rounds)}
    apart = names_in(labels_apart(r) for r in rounds)
    headings = ["Round", "Labels", *map(words, apart)] + [{"label": "New labels"}.get(o, words(o)) for o in outcomes]
    headings += (["Student", "Change, points"] if tested else []) + list(others.values())
    rows: list[list[str | Noted]] = []
    for r in rounds:
        row: list[str | Noted] = [str(r["round"]), whole(r["num_labeled"])]
        row += [whole(labels_apart(r).get(use, 0)) for use in apart]
        row += [whole(r["outcomes"].get(o, 0)) for o in outcomes]
        if tested:
            row += [Noted(percent(score(r, "mixture")), interval(r)), changed(r.get("change"))]
        for who in others:
            share = percent(score(r, who))
            row.append(Noted(share, interval(r, who)) if who == "teacher" else share)
        row += [percent(r["macro_accuracy"]), percent(r["ece"])] if tested else []
        rows.append([*row, number(r["coverage_radius"])])
    return [*headings, *(["Macro", "ECE"] if tested else []), "Radius"], rows


def mixing(rounds: Sequence[RoundFigures]) -> list[list[str | Noted]]:
    """How each round's heads were mixed, and what the calibration has changed on test."""
    rows: list[list[str | Noted]] = []
    for r in rounds:
        mixture = r["mixture"]
        losses = number(r.get("log_loss_uncalibrated")), number(r.get("log_loss"))
        errors = percent(r.get("ece_uncalibrated")), percent(r["ece"])
        changes = [f" {TO} ".join(dict.fromkeys(each for each in pair if each != UNKNOWN)) for pair in (losses, errors)]
        row: list[str | Noted] = [str(r["round"]), f"{mixture['ce_weight']:g}", f"{mixture['temperature']:g}"]
        row += [number(mixture.get("calibration")), *(change or UNKNOWN for change in changes)]
        calibrated = mixture.get("calibrated")
        rows.append([*row, Noted(mixture["reason"], f"calibration: {calibrated}" if calibrated else "")])
    return rows


def teacher_fits(rounds: Sequence[RoundFigures]) -> tuple[list[str], list[list[str | Noted]]]:
    """Headings and rows of what labels made of the teacher, a row a round that had a refit."""
    refitted = [(r, fit) for r in rounds if (fit := fit_of(r))]
    tested = any(fit["change"] for _, fit in refitted)
    loses = any(r.get("teacher_never") for r, _ in refitted)
    headings = ["Round", "Rule", "Temperature", "Strength", "Right", "Log-loss", "Calibration error"]
    headings += ["First choice changed", *(["Gain on test, points"] if tested else [])]
    rows: list[list[str | Noted]] = []
    for r, fit in refitted:
        on, chosen = (fit["before"], fit["untempered"], fit["after"]), fit["chosen"]
        row: list[str | Noted] = [str(r["round"]), Noted(fit["rule"], counted(fit["num_labels"], "label"))]
        row += [number(chosen.get(name), 2) for name in ("temperature", "strength")]
        row += [steps(on, "accuracy", percent), steps(on, "log_loss", number), steps(on, "ece", percent)]
        row.append(percent(fit["changed"]))
        row += [changed(fit["change"])] if tested else []
        rows.append([*row, *([whole(len(r.get("teacher_never", ())))] if loses else [])])
    return [*headings, *(["Classes never chosen"] if loses else [])], rows


def blind_spots(report: ReportData) -> list[str]:
    """What the latest teacher does not see; of the class list only what the page's head does not say already."""
    check, lines = report["class_check"], []
    if report["status"] == "complete":
        lines += class_doubts(check, SHOWN_DOUBTS)
    if check["num_images"] and not check["never"]:
        lines.append(f"No class is missed out: each is the likeliest for some of {check['num_images']:,} pool images")
    if report["rounds"] and (fit := fit_of(report["rounds"][-1])) and (said := mistakes(fit)):
        lines.append(said)
    return lines


def class_rows(report: ReportData) -> list[dict[str, Any]]:
    """One row a class: labels so far, those before the last round, both recalls and their difference."""
    last, before = report["rounds"][-1:], report["rounds"][-2:-1]
    teacher_C = report["teacher"]["recall_C"] or [None] * len(report["classes"])
    labels, labels_before = (by_class(found, "labels_C") for found in (last, before))
    recall = by_class(last, "recall_C")
    return [
        {
            "name": name,
            "labels": labels.get(name, 0),
            "before": labels_before.get(name, 0),
            "student": finite(recall.get(name)),
            "teacher": finite(teacher),
            "gain": difference(recall.get(name), teacher),
        }
        for name, teacher in zip(report["classes"], teacher_C, strict=True)
    ]


def by_class(rounds: Sequence[RoundFigures], key: Literal["labels_C", "recall_C"]) -> dict[str, Any]:
    """A round's values by the names that the classes had in it: later there may be more, or others. {}: no round."""
    return {name: value for r in rounds for name, value in zip(r["classes"], r[key] or (), strict=False)}


def gallery(picks: Sequence[PickCard]) -> list[dict[str, Any]]:
    """Picks by round, the newest round first, each with what to show and who was wrong."""
    groups = []
    for r in sorted({pick["round"] for pick in picks}, reverse=True):
        cards: list[dict[str, Any]] = []
        wrong: dict[str, int] = {}
        for pick in sorted((p for p in picks if p["round"] == r), key=lambda p: p["rank"]):
            answer = pick["label"] or words(pick["outcome"] or "waiting for a label")
            distance = f", distance {number(pick['distance'])}" if known(pick["distance"]) else ""
            opinions = {"teacher": pick["teacher"], "student": pick["student"]}
            card = shown_card(pick, answer, f"#{pick['rank']}{distance}", pick["label"], opinions)
            if pick["label"] is not None:
                for view in card["views"]:
                    wrong[view["style"]] = wrong.get(view["style"], 0) + view["wrong"]
            cards.append(card)
        remarks = [counted(len(cards), "pick"), *(f"{who} wrong on {count}" for who, count in wrong.items())]
        groups.append({"round": r, "cards": cards, "remark": ", ".join(remarks)})
    return groups


def shown_card(
    image: ImageCard,
    answer: str,
    remark: str,
    label: str | None,
    opinions: Mapping[str, list[Guess] | None],
    names: Mapping[str, str] = {},
) -> dict[str, Any]:
    """An image as a card shows it.

    Args:
        label: What is right; None: nobody knows.
        opinions: By whose they are, which is a CSS class, too.
        names: What to call these, where that is not it.
    """
    views = [
        {
            "style": who,
            "who": names.get(who, who),
            "guesses": guesses,
            "wrong": label is not None and guesses[0][0] != label,
        }
        for who, guesses in opinions.items()
        if guesses
    ]
    shown = {"sample_id": image["sample_id"], "uri": image["uri"], "image": data_uri(image["thumbnail"])}
    return {**shown, "answer": answer, "remark": remark, "views": views}


# Where the student is wrong, and which labels may be


def wrong_images(report: ReportData) -> dict[str, Any] | None:
    """What the last student takes for what on test; None where nothing is known of it."""
    counts = {(label, prediction): count for label, prediction, count in report["confusion"]}
    if not counts or not report["rounds"]:
        return None
    names = list(dict.fromkeys([*report["rounds"][-1]["classes"], *(name for pair in counts for name in pair)]))
    total, right = sum(counts.values()), sum(count for (a, b), count in counts.items() if a == b)
    mistakes = sorted(((pair, n) for pair, n in counts.items() if pair[0] != pair[1]), key=lambda each: -each[1])
    pairs, rows = mistakes[:MOST_CONFUSED], test_images(counts)
    cards = [
        shown_card(each, each["label"], "", each["label"], {"student": each["student"], "teacher": each["teacher"]})
        for each in report["mistakes"]
    ]
    return {
        "wrong": total - right,
        "total": total,
        "heat": heat_map(counts, names) if len(names) <= MOST_IN_MAP else None,
        "pairs": [[label, choice, whole(n), percent(n / rows[label], 0)] for (label, choice), n in pairs],
        "num_pairs": len(mistakes),
        "worst": worst_classes(counts),
        "cards": cards,
    }


def test_images(counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Test images of each label."""
    rows: dict[str, int] = {}
    for (label, _), count in counts.items():
        rows[label] = rows.get(label, 0) + count
    return rows


def heat_map(counts: Mapping[tuple[str, str], int], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each label: its name, how many test images it has, and a cell for each prediction."""
    rows = test_images(counts)
    return [
        {
            "name": label,
            "total": rows.get(label, 0),
            "cells": [
                {
                    "count": (count := counts.get((label, choice), 0)),
                    "share": count / rows[label] if count else 0.0,
                    "right": label == choice,
                    "note": f"{label}, taken for {choice}: {count:,} of {rows.get(label, 0):,}",
                }
                for choice in names
            ],
        }
        for label in names
    ]


def worst_classes(counts: Mapping[tuple[str, str], int]) -> list[list[str | Noted]]:
    """The classes that are recognized least: name, right of its test images, recall, what it is taken for.

    By the upper end of the interval: of a class that has one image, and that one wrong, nobody knows.
    """
    ranked = []
    for label, total in test_images(counts).items():
        right = counts.get((label, label), 0)
        if right < total:
            low, high = wilson(right / total, total)
            ranked.append((high, -total, label, right, low))
    found: list[list[str | Noted]] = []
    for high, minus_total, label, right, low in sorted(ranked)[:MOST_CONFUSED]:
        total = -minus_total
        others = sorted((-n, choice) for (of, choice), n in counts.items() if of == label != choice)[:2]
        taken = ", ".join(f"{isolated(choice)} ({-n:,})" for n, choice in others)
        recall = Noted(percent(right / total), f"{100 * low:.1f} to {percent(high)}")
        found.append([label, f"{right:,} of {total:,}", recall, taken])
    return found


def isolated(name: str) -> str:
    """A name that may run from right to left, so that what stands beside it does not."""
    return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"


def doubted_labels(report: ReportData) -> dict[str, Any] | None:
    """Which labels look like slips; None where nothing is known of it."""
    if not report["rounds"] or "label_doubts" not in report["rounds"][-1]:
        return None
    doubts = report["rounds"][-1]["label_doubts"]
    names = {"teacher": "teacher, label unseen", "student": "student, trained on it"}
    cards = [
        shown_card(
            each, each["given"], f"a slip, by {percent(each['slip'], 0)}", None,
            {"teacher": each["teacher"], "student": each["student"]}, names,
        )
        for each in report["doubtful"]
    ]  # fmt: skip
    return {"figures": doubts, "said": slips(doubts), "cards": cards}


def data_uri(image: bytes | None) -> str | None:
    """The image inside a URI; None when it is neither PNG nor JPEG."""
    if image and image.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif image and image.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    else:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


# Charts


def charts(report: ReportData) -> dict[str, Any] | None:
    """The large chart, once for a desk and once for a phone, and two small ones beside it."""
    rounds = report["rounds"]
    if not rounds:
        return None

    def curve(
        name: str, style: str, y_of: Callable[[RoundFigures], float | None], *, interval: bool = False
    ) -> list[Line]:
        """The line through the rounds where y is known; no line where it never is."""
        seen = [(r, y) for r in rounds if known(y := y_of(r))]
        band = [band_of(r, style, y) for r, y in seen] if interval else []
        return [Line(name=name, style=style, xy=[(r["num_labeled"], y) for r, y in seen], band=band)] if seen else []

    refitted = len({teacher_accuracy(report, r) for r in rounds}) > 1
    accuracy = [
        *curve("CE head", "ce", lambda r: score(r, "ce_head")),
        *curve("KD head", "kd", lambda r: score(r, "kd_head")),
        *curve("Teacher", "teacher", lambda r: teacher_accuracy(report, r), interval=refitted),
        *curve("Student", "student", lambda r: score(r, "mixture"), interval=True),
    ]
    candidates = [
        (f"Accuracy on {images_measured(rounds[-1])}", accuracy if is_tested(report) else [], percent),
        ("Coverage radius", curve("Coverage radius", "student", lambda r: r["coverage_radius"]), number),
        ("Calibration error (ECE)", curve("ECE", "student", lambda r: r["ece"]), percent),
        ("Classes with a label", curve("Classes", "student", lambda r: sum(n > 0 for n in r["labels_C"])), whole),
        ("Evenness of labels over classes", curve("Evenness", "student", lambda r: evenness(r["labels_C"])), number),
    ]
    large, *small = [candidate for candidate in candidates if candidate[1]]
    return {
        "large": [line_chart(*large, width=width, height=height) for width, height in ((720, 446), (344, 280))],
        "small": [line_chart(*each, width=344, height=186) for each in small[:2]],
    }


def band_of(r: RoundFigures, style: str, accuracy: float) -> tuple[float, float]:
    """The 95 % interval of the student's or the teacher's accuracy in a round."""
    found = interval_of(r) if style == "student" else None
    return found or wilson(accuracy, num_measured(r, style))


# Numbers


def evenness(labels_C: Sequence[int]) -> float | None:
    """Entropy of the labels' classes over its maximum: 1 is the same number of each class, 0 is one class only."""
    total = sum(labels_C)
    if not total or len(labels_C) < 2:
        return None
    return -sum(n / total * math.log(n / total) for n in labels_C if n) / math.log(len(labels_C)) + 0.0


def names_in(dicts: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all the dictionaries, each once, in order of appearance."""
    return list(dict.fromkeys(key for each in dicts for key in each))
