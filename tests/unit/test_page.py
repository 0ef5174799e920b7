"""The HTML report: what it shows, in every state of a campaign, and what untrusted strings cannot do to it."""

import copy
import itertools
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from raykd.report import charts, page, words

VOID = {"meta", "img", "br", "input", "link"}
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20
JPEG = b"\xff\xd8\xff" + b"0" * 20
HOSTILE = """<script>alert(1)</script>"'><img src=https://evil.example/x.png onerror=alert(2)>{{ 7 * 7 }}</style>"""


class Page(HTMLParser):
    """Parses a page, fails on unbalanced tags, and keeps the tags and the visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert [tag] == self.open[-1:], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def make_round(r: int) -> dict:
    student = 0.6 + 0.1 * r
    return {
        "round": r,
        "num_labeled": 10 * (r + 1),
        "num_unlabeled": 990 - 10 * r,
        "num_test": 400,
        "accuracy": {"mixture": student, "ce_head": student - 0.05, "kd_head": student - 0.02, "teacher": 0.65},
        "macro_accuracy": student,
        "ece": 0.1,
        "recall_C": [student, 0.5, None],
        "classes": ["cat", "dog", "owl"],
        "labels_C": [7 * (r + 1), 3 * (r + 1), 0],
        "loss": 0.5,
        "teacher": {"accuracy": 0.65, "macro_accuracy": 0.6, "ece": 0.2, "recall_C": [0.9, 0.3, None]},
        "outcomes": {"label": 10, "unsure": 0, "cannot_label": r, "none_of_the_classes": 0},
        "coverage_radius": 1 / (r + 1),
        "mixture": {"ce_weight": 0.35, "temperature": 2.0, "reason": "searched on 150 validation images"},
        "seconds": {"select": 1.0, "label": 0.0, "train": 125.0, "predict": 3.0, "mix": 2.0, "evaluate": 1.0},
    }


def make_fit(r: int, **changes) -> dict:
    before, untempered = (
        {"accuracy": 0.6, "log_loss": 1.1, "ece": 0.25},
        {"accuracy": 0.7, "log_loss": 0.8, "ece": 0.2},
    )
    fit = {
        "rule": "proker",
        "num_labels": 10 * (r + 1),
        "chosen": {"temperature": 0.63, "strength": 2.18, "beta": 1.25},
        "before": before,
        "untempered": untempered,
        "after": untempered | {"log_loss": 0.75, "ece": 0.1},
        "confusions": [("cat", "dog", 7), ("owl", "cat", 2)],
        "passes": 2,
        "changed": 0.171,
        "change": {
            "gain": 0.05 * r,
            "low": 0.05 * r - 0.04,
            "high": 0.05 * r + 0.04,
            "won": 43,
            "lost": 29,
            "num_test": 400,
        },
    }
    return fit | changes


def refitted(report: dict) -> dict:
    """A campaign whose teacher stays with the texts in round 0, and learns from then on."""
    report["teacher"] |= {"rule": "auto"}
    nothing = {"before": None, "untempered": None, "after": None, "confusions": [], "changed": 0.0}
    for r, fit in zip(report["rounds"], [make_fit(0, rule="zero_shot", chosen={"temperature": 1.0}, **nothing),
                                         make_fit(1), make_fit(2)], strict=True):  # fmt: skip
        r |= {"teacher_fit": fit, "teacher_never": []}
        r["accuracy"] |= {"teacher": 0.65 + fit["change"]["gain"]}
    return report


def teacher_section(report: dict) -> str:
    text = Page(page.render(report)).text
    start = text.index(f"Teacher {report['teacher']['model']} ", text.index("Rounds in numbers"))
    return text[start : text.index("What was picked")]


def make_pick(r: int, rank: int, **changes) -> dict:
    pick = {
        "round": r,
        "rank": rank,
        "sample_id": f"id-{r}-{rank}",
        "uri": f"/pool/{r}-{rank}.png",
        "thumbnail": PNG,
        "distance": 0.5,
        "teacher": [("cat", 0.7), ("dog", 0.2)],
        "student": [("dog", 0.6), ("cat", 0.3)],
        "outcome": "label",
        "label": "cat",
    }
    return pick | changes


def make_mistake(n: int, **changes) -> dict:
    mistake = {
        "sample_id": f"test/{n}",
        "uri": f"/test/{n}.png",
        "thumbnail": PNG,
        "label": "cat",
        "teacher": [("cat", 0.8), ("owl", 0.1)],
        "student": [("dog", 0.97), ("cat", 0.02)],
    }
    return mistake | changes


def make_doubt(n: int, **changes) -> dict:
    doubt = {
        "sample_id": f"doubted-{n}",
        "uri": f"/pool/{n}.png",
        "thumbnail": JPEG,
        "given": "owl",
        "slip": 0.983,
        "teacher": [("cat", 0.99), ("owl", 0.001)],
        "student": [("owl", 0.7), ("cat", 0.3)],
    }
    return doubt | changes


def judged(report: dict) -> dict:
    """What is known since there is a calibration, of the mistakes on test and of the labels."""
    for r in report["rounds"]:
        r |= {"ece_uncalibrated": 0.25, "log_loss": 0.31, "log_loss_uncalibrated": 0.52}
        r["mixture"] |= {"calibration": 0.464, "calibrated": "on 150 validation labels: log-loss 0.52 → 0.30"}
        r["label_doubts"] = {"num_labels": r["num_labeled"], "num_suspects": 2, "by_chance": 0.3, "share": 0.05}
    counts = [("cat", "cat", 150), ("cat", "dog", 50), ("dog", "dog", 190), ("dog", "owl", 9), ("owl", "cat", 1)]
    return report | {
        "confusion": counts,
        "mistakes": [make_mistake(0), make_mistake(1, teacher=None)],
        "doubtful": [make_doubt(0), make_doubt(1)],
    }


@pytest.fixture
def report() -> dict:
    return {
        "title": "Cats and dogs",
        "storage_path": "/runs/cats",
        "made": "2026-11-23 09:00 UTC",
        "raykd_version": "0.1.0",
        "commit": None,
        "strategy": "pcoreset",
        "seed": 0,
        "budget": 10,
        "rounds_configured": 3,
        "status": "complete",
        "next_step": None,
        "classes": ["cat", "dog", "owl"],
        "samples": {"pool": 1000, "test": 400, "val": 150, "quarantined": 0},
        "quarantine": [],
        "teacher": {
            "model": "ViT",
            "rule": "zero_shot",
            "accuracy": 0.65,
            "macro_accuracy": 0.6,
            "ece": 0.2,
            "recall_C": [0.9, 0.3, None],
        },
        "class_check": {"num_images": 1000, "never": [], "close": [], "num_like_none": 3, "examples": ["a.png"]},
        "rounds": [make_round(r) for r in range(3)],
        "setup_seconds": {"pool": 4.2, "teacher": 251.0},
        "picks": [make_pick(r, rank) for r in range(3) for rank in range(2)],
        "confusion": [],
        "mistakes": [],
        "doubtful": [],
        "config": {"train": {"epochs": 200}},
        "versions": {"ray": "2.60.0"},
    }


def without_test_split(report: dict) -> dict:
    report["teacher"] |= {"accuracy": None, "macro_accuracy": None, "ece": None, "recall_C": None}
    for r in report["rounds"]:
        r |= {"accuracy": None, "macro_accuracy": None, "ece": None, "recall_C": None, "num_test": 0}
    return report


def hostile(value):
    """The same structure with every string replaced."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


STATES = ("full", "none", "one", "untested", "unmeasured", "refitted", "judged", "hostile", "nan")


def states(report: dict) -> dict[str, dict]:
    made = {name: copy.deepcopy(report) for name in STATES}
    made["none"] |= {"rounds": [], "picks": []}
    made["one"]["rounds"] = made["one"]["rounds"][:1]
    without_test_split(made["untested"])
    without_test_split(made["unmeasured"])["rounds"] = [
        r | {"coverage_radius": None} for r in made["unmeasured"]["rounds"]
    ]
    quarantine = [{"sample_id": "a", "uri": "/a", "reason": "cut"}]
    refitted(made["refitted"])
    made["judged"] = judged(made["judged"])
    for key in ("before", "untempered", "after"):
        refitted(made["nan"])["rounds"][1]["teacher_fit"][key] = dict.fromkeys(
            ("accuracy", "log_loss", "ece"), math.nan
        )
    made["nan"]["rounds"][2]["teacher_fit"] |= {"changed": None, "change": None}
    made["hostile"] = hostile(judged(refitted(made["hostile"])) | {"quarantine": quarantine})
    made["hostile"] |= {"config": {HOSTILE: {HOSTILE: HOSTILE}}, "versions": {HOSTILE: HOSTILE}}
    for r in made["nan"]["rounds"]:
        r |= {"coverage_radius": math.inf, "ece": math.nan, "recall_C": [math.nan] * 3, "macro_accuracy": math.nan}
        r |= {"ece_uncalibrated": math.nan, "log_loss": math.nan, "log_loss_uncalibrated": math.inf}
    return made


@pytest.mark.slow
def test_every_state_is_a_balanced_page_that_loads_nothing(report):
    for state, sample in states(report).items():
        source = page.render(sample)
        html = Page(source)
        for tag, attrs in html.tags:
            for name in {"src", "href", "srcset", "xlink:href", "action", "data"} & attrs.keys():
                assert attrs[name].startswith("data:image/"), (state, tag, attrs)
            assert tag not in {"link", "iframe", "object", "embed", "base", "form"}, state
        style = source[source.index("<style>") : source.index("</style>")]
        style += " ".join(attrs.get("style", "") for _, attrs in html.tags)
        assert not re.search(r"url\(|@import", style), state
        ids = [attrs["id"] for _, attrs in html.tags if "id" in attrs]
        assert len(ids) == len(set(ids)), state


def test_hostile_strings_are_shown_as_text_and_never_become_tags(report):
    plain, attacked = (Page(page.render(states(report)[state])) for state in ("judged", "hostile"))
    assert len(attacked.all("script")) == len(plain.all("script")) == 1
    assert len(attacked.all("img")) == len(plain.all("img")) == 10
    assert not [attrs for _, attrs in attacked.tags if any(name.startswith("on") for name in attrs)]
    shown = attacked.text.count(" ".join(HOSTILE.split()))
    assert shown > 50  # title, status, model, classes, picks, mixture, mistakes, labels, quarantine, config, versions
    assert "49" not in attacked.text.split("Learning curve")[0]  # {{ 7 * 7 }} was not evaluated


def test_names_that_are_not_utf8_can_still_be_written(report):
    report["picks"][0]["sample_id"] = "bad\udc80name"
    assert "bad?name" in page.render(report).encode("utf-8").decode()


def test_every_round_is_a_point_of_every_curve(report):
    html = page.render(report)
    for name, values in {
        "Student": ["60.0%", "70.0%", "80.0%"],
        "CE head": ["55.0%", "65.0%", "75.0%"],
        "KD head": ["58.0%", "68.0%", "78.0%"],
        "Coverage radius": ["1.000", "0.500", "0.333"],
    }.items():
        for labels, value in zip((10, 20, 30), values, strict=True):
            assert f"<title>{name}: {value} at {labels} labels</title>" in html


def test_points_lie_where_their_values_say(report):
    lines = [charts.Line(name="Student", style="student", xy=[(10, 0.2), (20, 0.4), (40, 0.8)], band=[])]
    chart = charts.line_chart("Accuracy", lines, page.percent, width=720, height=400)
    (x0, y0), (x1, y1), (x2, y2) = (spot for spot, _ in chart["lines"][0]["spots"])
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 3, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(1 / 3, abs=0.01)
    tick_y = {text: y for y, text in chart["y_ticks"]}
    assert y0 == tick_y["20%"]
    assert y2 == tick_y["80%"]
    assert y2 < y0
    assert (chart["box"]["left"], chart["box"]["right"]) == (x0, x2)


def test_teacher_is_a_line_across_the_chart_unless_it_changes(report):
    flat, *_ = [line for line in page.charts(report)["large"][0]["lines"] if line["style"] == "teacher"]
    (_, left_y), (_, right_y) = (point.split(",") for point in flat["path"].split())
    assert left_y == right_y
    assert not flat["spots"]
    report["rounds"][2]["accuracy"]["teacher"] = 0.75  # a few-shot teacher is refitted each round
    moving, *_ = [line for line in page.charts(report)["large"][0]["lines"] if line["style"] == "teacher"]
    assert len(moving["path"].split()) == 3
    assert len(moving["spots"]) == 3


def test_a_teacher_that_changes_has_its_band_and_one_that_does_not_has_none(report):
    flat, *_ = [line for line in page.charts(report)["large"][0]["lines"] if line["style"] == "teacher"]
    assert not flat["band"]
    chart = page.charts(refitted(report))["large"][0]
    teacher, *_ = [line for line in chart["lines"] if line["style"] == "teacher"]
    corners = [tuple(map(float, corner.split(","))) for corner in teacher["band"].split()]
    (_, top), (_, bottom) = corners[0], corners[-1]  # of the first round: 260 of 400 images, Wilson 0.602 to 0.695
    tick_y = {text: y for y, text in chart["y_ticks"]}
    per_point = (tick_y["60%"] - tick_y["80%"]) / 20
    assert len(corners) == 6
    assert top == pytest.approx(tick_y["60%"] - 9.5 * per_point, abs=0.1 * per_point)
    assert bottom == pytest.approx(tick_y["60%"] - 0.2 * per_point, abs=0.1 * per_point)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.613, 0.902), (10, 50), (0, 0), (0.04, 0.041), (137, 128_000)])
def test_ticks_are_even_and_enclose_the_data(low, high):
    marks = charts.ticks(low, high, 6)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low
    assert marks[-1] >= high
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_line_names_do_not_overlap():
    placed = charts.spread([50, 51, 52, 10], gap=16, low=0, high=70)
    ordered = sorted(placed)
    assert all(b - a >= 16 for a, b in itertools.pairwise(ordered))
    assert max(placed) <= 70
    assert placed[0] < placed[1] < placed[2]
    assert placed[3] == 10


def test_headline_compares_the_last_student_with_its_teacher(report):
    text = Page(page.render(report)).text
    assert "With 30 labels, 3.0% of the pool, the student is right on 80.0% of 400 test images." in text
    assert "That is 15.0 points more than its teacher, ViT." in text
    assert "95% interval 75.8 to 83.6%" in text  # Wilson, 320 of 400
    assert "3 gave no label" in text


def test_gallery_has_the_newest_round_first_and_open(report):
    html = Page(page.render(report))
    rounds = re.findall(r"Round (\d) 2 picks", html.text)
    assert rounds == ["2", "1", "0"]
    assert ["open" in attrs for attrs in html.all("details")[:3]] == [True, False, False]


def test_gallery_marks_who_was_wrong(report):
    owl, waiting = make_pick(3, 1, label="owl"), make_pick(3, 2, label=None, outcome=None)
    unsure = make_pick(3, 3, label=None, outcome="cannot_label", student=None, distance=math.inf)
    (group,) = page.gallery([unsure, waiting, make_pick(3, 0), owl])
    wrong = [[view["who"] for view in card["views"] if view["wrong"]] for card in group["cards"]]
    assert wrong == [["student"], ["teacher", "student"], [], []]
    assert [card["answer"] for card in group["cards"]] == ["cat", "owl", "Waiting for a label", "Cannot label"]
    assert group["remark"] == "4 picks, teacher wrong on 1, student wrong on 2"
    assert [card["remark"] for card in group["cards"]] == ["#0, distance 0.500", "#1, distance 0.500",
                                                           "#2, distance 0.500", "#3"]  # fmt: skip


def test_thumbnails_are_embedded_and_their_absence_is_said(report):
    report["picks"] = [make_pick(0, i, thumbnail=t) for i, t in enumerate([PNG, JPEG, None, b"<svg onload=x>"])]
    html = Page(page.render(report))
    kinds = [attrs["src"].split(";")[0] for attrs in html.all("img")]
    assert kinds == ["data:image/png", "data:image/jpeg"]
    assert html.text.count("no thumbnail") == 2
    assert html.all("img")[0]["alt"] == "cat: id-0-0"


# ---------------------------------------------------------------- where the student is wrong, and which labels may be


def section(report: dict, begin: str, end: str) -> str:
    text = Page(page.render(report)).text
    return text[text.rindex(begin) : text.index(end, text.rindex(begin))]


def wrong_section(report: dict) -> str:
    return section(report, "Where the student is wrong", "Labels worth a second look")


def test_calibration_stands_beside_the_mixture_and_in_the_headline(report):
    text = Page(page.render(judged(report))).text
    headline = text[text.index("Calibration error") : text.index("Strategy")]
    assert headline.strip() == "Calibration error 10.0% ECE; 25.0% before calibration; teacher 20.0%"
    rows = text[text.index("How they were chosen") : text.index("Teacher ViT")]
    assert rows.count("0.35 2 0.464 0.520 → 0.310 25.0% → 10.0%") == 3
    assert rows.count("calibration: on 150 validation labels: log-loss 0.52 → 0.30") == 3


def test_a_campaign_that_knew_no_calibration_and_no_mistakes_still_has_its_page(report):
    text = Page(page.render(report)).text
    assert "Where the student is wrong" not in text
    assert "Labels worth a second look" not in text
    rows = text[text.index("How they were chosen") : text.index("Teacher ViT")]
    assert f"0.35 2 {page.UNKNOWN} {page.UNKNOWN} 10.0% searched on 150 validation images" in rows
    assert "ECE; teacher 20.0%" in text


def test_the_worst_class_is_the_one_that_is_surely_bad_not_the_one_with_one_image(report):
    counts = {("cat", "cat"): 100, ("cat", "dog"): 100, ("dog", "dog"): 190, ("dog", "owl"): 9, ("owl", "cat"): 1}
    cat, owl, dog = page.worst_classes(counts)
    assert cat[:2] == ["cat", "100 of 200"]
    assert (cat[2].value, cat[2].small) == ("50.0%", "43.1 to 56.9%")
    assert owl[:2] == ["owl", "0 of 1"]
    assert owl[2].small == "0.0 to 79.3%"
    assert dog[0] == "dog"
    assert page.worst_classes({("cat", "cat"): 5, ("dog", "dog"): 1}) == []


def test_the_worst_classes_are_ordered_by_the_upper_end_of_their_interval(report):
    worst = page.worst_classes({("a", "a"): 1, ("a", "b"): 1, ("b", "a"): 60, ("b", "b"): 40, ("c", "a"): 1})
    assert [row[0] for row in worst] == ["b", "c", "a"]
    assert worst[0][3] == "\u2068a\u2069 (60)"


def test_the_confusion_matrix_is_drawn_with_every_class_in_its_order(report):
    heat = page.wrong_images(judged(report))["heat"]
    assert [row["name"] for row in heat] == ["cat", "dog", "owl"]
    assert [[cell["count"] for cell in row["cells"]] for row in heat] == [[150, 50, 0], [0, 190, 9], [1, 0, 0]]
    assert [row["total"] for row in heat] == [200, 199, 1]
    assert heat[0]["cells"][1]["share"] == 0.25
    assert heat[0]["cells"][1]["note"] == "cat, taken for dog: 50 of 200"
    assert [[cell["right"] for cell in row["cells"]] for row in heat] == np.eye(3, dtype=bool).tolist()
    text = wrong_section(judged(report))
    assert "On 60 of 400 test images, in round 2" in text
    assert "1 cat 150 50 200 2 dog 190 9 199 3 owl 1 1" in text
    assert "Most confused" not in text


def test_of_many_classes_the_most_confused_pairs_are_listed_instead(report):
    names = [f"class {c}" for c in range(40)]
    report = judged(report)
    report |= {"classes": names, "confusion": [(names[c], names[c - 1], 40 - c) for c in range(40)]}
    report["teacher"] |= {"recall_C": None}
    for r in report["rounds"]:
        r |= {"classes": names, "labels_C": [1] * 40, "recall_C": [0.0] * 40}
    found = page.wrong_images(report)
    assert found["heat"] is None
    assert found["pairs"][0] == ["class 0", "class 39", "40", "100%"]
    assert [row[0] for row in found["pairs"]] == names[:10]
    text = wrong_section(report)
    assert "The 10 most frequent of 40 pairs" in text
    assert "What is taken for what" not in text


def test_a_student_that_is_never_wrong_has_no_worst_class(report):
    report = judged(report) | {"confusion": [("cat", "cat", 5), ("dog", "dog", 7)], "mistakes": []}
    text = wrong_section(report)
    assert "On 0 of 12 test images" in text
    assert "Worst classes" not in text
    assert "Most confident mistakes" not in text


def test_the_most_confident_mistakes_have_their_picture_and_what_each_thinks(report):
    text = wrong_section(judged(report))
    cards = text[text.index("Most confident mistakes") :]
    assert "cat test/0 Student ✕ wrong dog 97% cat 2% Teacher cat 80% owl 10%" in cards
    assert cards.count("Teacher") == 1  # of the other it has no opinion
    html = Page(page.render(judged(report)))
    assert [attrs["alt"] for attrs in html.all("img")][-4:-2] == ["cat: test/0", "cat: test/1"]


def test_labels_that_look_like_slips_are_shown_and_said_at_the_top(report):
    report = judged(report)
    said = "2 of 30 training labels look like slips (0.3 would if all were right)"
    text = Page(page.render(report)).text
    assert f"{said} : see “Labels worth a second look”" in text.split("Learning curve")[0]
    cards = section(report, "Labels worth a second look", "Time Once")
    assert f"look {said}: more improbable" in cards
    assert "owl a slip, by 98% doubted-0 Teacher, label unseen cat 99% owl 0% Student, trained on it owl 70%" in cards
    assert "✕ wrong" not in cards  # nobody knows
    assert "The first" not in cards
    report["rounds"][-1]["label_doubts"] |= {"num_suspects": 14}
    assert "The first 2 are shown." in section(report, "Labels worth a second look", "Time Once")


@pytest.mark.parametrize(
    ("doubts", "said"),
    [
        (
            {"num_labels": 30, "num_suspects": 0, "by_chance": 0.0, "share": 0.0},
            "None of 30 training labels looks",
        ),
        ({"num_labels": 0, "num_suspects": 0, "by_chance": 0.0, "share": 0.0}, "No label could be judged."),
        (None, "Not available with teacher.rule: table :"),
    ],
)
def test_where_no_label_is_doubted_it_says_why(report, doubts, said):
    report = judged(report) | {"doubtful": []}
    report["rounds"][-1] |= {"label_doubts": doubts}
    assert said in section(report, "Labels worth a second look", "Time Once")
    assert "see “Labels worth" not in Page(page.render(report)).text


def test_class_rows_hold_labels_recalls_and_their_difference(report):
    cat, dog, owl = page.class_rows(report)
    assert (cat["labels"], cat["before"], cat["gain"]) == (21, 14, pytest.approx(-0.1))
    assert (dog["labels"], dog["before"], dog["gain"]) == (9, 6, pytest.approx(0.2))
    assert (owl["labels"], owl["student"], owl["teacher"], owl["gain"]) == (0, None, None, None)


def test_classes_that_came_or_were_renamed_between_rounds_keep_their_own_figures(report):
    first, _, last = report["rounds"]
    first |= {"classes": ["kitten", "dog"], "labels_C": [4, 2], "recall_C": None}
    last |= {"classes": ["dog", "cat"], "labels_C": [5, 6], "recall_C": [0.5, 0.75]}
    report["rounds"] = [first, last]
    report["teacher"]["recall_C"] = None
    cat, dog, owl = page.class_rows(report)
    assert (cat["labels"], cat["before"], cat["student"]) == (6, 0, 0.75)
    assert (dog["labels"], dog["before"], dog["student"], dog["gain"]) == (5, 2, 0.5, None)
    assert (owl["labels"], owl["before"], owl["student"]) == (0, 0, None)
    Page(page.render(report))


def test_a_student_of_one_head_has_no_column_and_no_curve_of_the_other(report):
    for r in report["rounds"]:
        r["accuracy"] |= {"ce_head": None}
    html = page.render(report)
    assert "CE head" not in html
    assert "KD head" in Page(html).text


def test_a_thousand_classes_fit(report):
    report["classes"] = [f"class {i}" for i in range(1000)]
    report["teacher"]["recall_C"] = [0.5] * 1000
    for r in report["rounds"]:
        r |= {"classes": report["classes"], "recall_C": [0.6] * 1000, "labels_C": [1] * 10 + [0] * 990}
    html = Page(page.render(report))
    assert len([attrs for attrs in html.all("td") if attrs.get("data-v", "").startswith("class ")]) == 1000
    assert "10 of 1000 classes have a label" in html.text


def test_no_round_yet_shows_the_pool_and_no_chart(report):
    html = Page(page.render(states(report)["none"]))
    assert "No round has finished yet" in html.text
    assert not html.all("svg")


def test_without_a_test_split_it_says_so_and_shows_coverage(report):
    html = Page(page.render(without_test_split(report)))
    assert "Without labeled test images or audited ones, accuracy is unknown" in html.text
    assert [c["title"] for c in page.charts(report)["small"]] == [
        "Classes with a label",
        "Evenness of labels over classes",
    ]
    assert page.charts(report)["large"][0]["title"] == "Coverage radius"
    assert "Student recall" not in html.text
    assert "CE head" not in html.text


def test_quarantine_is_listed_only_when_there_is_one(report):
    assert "Quarantined images" not in page.render(report)
    report["samples"]["quarantined"] = 70
    report["quarantine"] = [{"sample_id": "q1", "uri": "/pool/q1.png", "reason": "truncated file"}]
    text = Page(page.render(report)).text
    assert "70 could not be read and were left out; the first 1 are listed." in text
    assert "truncated file" in text


def test_rendering_leaves_the_report_as_it_was_and_repeats_exactly(report):
    before = copy.deepcopy(report)
    assert page.render(report) == page.render(report)
    assert report == before


def test_numbers_read_well():
    assert [words.duration(s) for s in (0.04, 59.6, 185, 7800, None)] == [
        "0.0 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 10 min",
        page.UNKNOWN,
    ]
    assert page.points(-0.098) == "\N{MINUS SIGN}9.8"
    assert page.points(0.1) == "+10.0"
    assert page.percent(math.nan) == page.number(math.inf) == page.UNKNOWN
    assert page.evenness([5, 5]) == pytest.approx(1)
    assert page.evenness([5, 0]) == 0
    assert page.evenness([0, 0]) is None


# ---------------------------------------------------------------- what to do, and whether to go on

STEP = {
    "asked": 30, "answered": 20, "enough": 10,
    "tasks": "/runs/cats/round_003/tasks.csv", "answers": "/runs/cats/answers",
    "command": ".venv/bin/python jobs/active_round.py 'my cats.yaml'", "folder": "/home/anna",
}  # fmt: skip


def waiting(report: dict, **changes) -> dict:
    return report | {"status": "waiting for 10 labels", "next_step": STEP | changes}


def test_a_waiting_campaign_says_above_everything_else_where_what_and_with_which_words(report):
    assert "What to do now" not in page.render(report)
    text = Page(page.render(waiting(report))).text
    assert text.index("Waiting for 10 labels") < text.index("What to do now") < text.index("Student accuracy")
    todo = text[text.index("What to do now") : text.index("Student accuracy")]
    for said in (
        "Open /runs/cats/round_003/tasks.csv : a row an image, the most useful first. 20 of 30 have an answer.",
        "column label a class: cat dog owl ; or unsure , cannot label , none of the classes .",
        "with sample_id and label into /runs/cats/answers .",
        "Run the same command again, in /home/anna : .venv/bin/python jobs/active_round.py 'my cats.yaml'",
    ):
        assert said in todo
    assert "would do" not in todo


def test_it_says_how_many_more_would_do(report):
    assert "20 of 30 have an answer; 7 more would do." in Page(page.render(waiting(report, enough=7))).text


def test_when_no_answer_names_a_class_it_asks_for_other_images(report):
    text = Page(page.render(waiting(report, answered=30, enough=0, tasks=None))).text
    assert "No answer names a class yet" in text
    assert "Write a file with the columns sample_id and label" in text
    assert "None" not in text[text.index("What to do now") : text.index("Student accuracy")]


def test_a_submitted_job_is_submitted_again(report):
    text = Page(page.render(waiting(report, folder=None))).text
    assert "Submit the same job again; it ran .venv/bin/python jobs/active_round.py" in text


def test_of_many_classes_the_table_below_says_how_they_are_spelled(report):
    report["classes"] = [f"bird_{i}" for i in range(120)]
    report["teacher"]["recall_C"] = None
    html = Page(page.render(waiting(report)))
    assert "one of the 120 classes, as it is spelled in the table of classes below, such as bird_0 ;" in html.text
    assert html.text.count("bird_77") == 1
    assert not [attrs for attrs in html.all("td") if "clip" in attrs.get("class", "")]


def test_hostile_paths_and_commands_are_text_too(report):
    attacked = Page(page.render(waiting(report, tasks=HOSTILE, answers=HOSTILE, command=HOSTILE, folder=HOSTILE)))
    assert len(attacked.all("script")) == 1
    assert attacked.text.count(" ".join(HOSTILE.split())) == 4


def test_what_is_wrong_with_the_class_list_stands_before_what_to_label(report):
    doubtful = {
        "num_images": 1000, "never": ["owl", "dog"], "close": [("cat", "tomcat", 0.12)], "num_like_none": 120,
        "examples": ["x/1.png", "x/2.png"],
    }  # fmt: skip
    assert "Before you label" not in page.render(waiting(report))
    text = Page(page.render(waiting(report) | {"class_check": doubtful})).text
    assert text.index("Before you label") < text.index("What to do now")
    assert "2 classes are the likeliest for none of 1,000 pool images: 'owl', 'dog'." in text
    assert "closer than 0.3 of the usual distance: 'cat' and 'tomcat' (0.12)." in text
    assert "12.0% of the pool looks like none of the classes" in text
    assert "such as x/1.png, x/2.png and 118 more." in text
    assert "no image is read again" in text
    assert "owl" not in Page(page.render(report | {"class_check": doubtful})).text.split("Learning curve")[0]


def test_it_says_whether_the_last_labels_were_worth_it(report):
    last = report["rounds"][-1]
    last["change"] = {"gain": 0.009, "low": -0.004, "high": 0.022, "won": 12, "lost": 8, "num_test": 400}
    text = Page(page.render(report)).text
    said = "The last 10 labels brought +0.9 points (95% interval \N{MINUS SIGN}0.4 to +2.2)"
    assert f"{said}: within noise, as 400 test images cannot tell it from no change." in text
    assert "+0.9 \N{MINUS SIGN}0.4 to +2.2" in text[text.index("Rounds in numbers") :]
    last["change"] |= {"low": 0.002}
    assert "(95% interval +0.2 to +2.2)." in Page(page.render(report)).text
    last["change"] = None
    assert "The last" not in Page(page.render(report)).text


def test_validation_labels_are_named_apart(report):
    report["rounds"][-1]["labels_spent"] = {"training": 30, "validation": 150}
    assert (
        "With 30 labels, 3.0% of the pool, and 150 more for validation, the student" in Page(page.render(report)).text
    )


# ---------------------------------------------------------------- the teacher


def test_the_table_of_rounds_has_the_teachers_interval_below_its_accuracy_as_the_students(report):
    headings, rows = page.round_numbers(refitted(report))
    student, teacher = headings.index("Student"), headings.index("Teacher")
    assert [row[student] for row in rows][2] == ("80.0%", "75.8 to 83.6%")
    assert [row[teacher] for row in rows] == [  # Wilson, 260, 280 and 300 of 400
        ("65.0%", "60.2 to 69.5%"), ("70.0%", "65.3 to 74.3%"), ("75.0%", "70.5 to 79.0%"),
    ]  # fmt: skip
    assert headings[student + 1] == "Change, points"


def test_of_each_refit_it_says_what_was_taken_and_what_that_changed_on_what_it_has_not_seen(report):
    headings, (texts, *_, last) = page.teacher_fits(refitted(report)["rounds"])
    assert dict(zip(headings, last, strict=True)) == {
        "Round": "2", "Rule": ("proker", "30 labels"), "Temperature": "0.63", "Strength": "2.18",
        "Right": "60.0% → 70.0%",  # a temperature changes no first choice
        "Log-loss": "1.100 → 0.800 → 0.750", "Calibration error": "25.0% → 20.0% → 10.0%",
        "First choice changed": "17.1%", "Gain on test, points": ("+10.0", "+6.0 to +14.0"),
    }  # fmt: skip
    assert texts[1:7] == [("zero_shot", "10 labels"), "1.00", *[page.UNKNOWN] * 4]
    said = teacher_section(report)
    assert "harder than the pool" in said
    assert "+10.0 +6.0 to +14.0" in said
    assert "harder than the pool" not in teacher_section(report | {"strategy": "random"})


def test_classes_that_a_refit_loses_are_counted_by_round(report):
    refitted(report)["rounds"][1]["teacher_never"] = ["owl", "dog"]
    headings, rows = page.teacher_fits(report["rounds"])
    assert headings[-1] == "Classes never chosen"
    assert [row[-1] for row in rows] == ["0", "2", "0"]


def test_without_a_test_split_a_refit_has_no_gain(report):
    for r in without_test_split(refitted(report))["rounds"]:
        r["teacher_fit"]["change"] = None
    said = teacher_section(report)
    assert "60.0% → 70.0%" in said
    assert "Gain on test" not in said


def test_a_teacher_that_learns_from_no_label_has_the_short_form(report):
    for r in report["rounds"]:
        r |= {"teacher_fit": None, "teacher_never": []}
    said = teacher_section(report)
    assert "ViT knows the classes by their texts alone" in said
    assert "What labels made of it" not in said
    assert "mistakes" not in said
    assert "owl" not in said
    report["teacher"] |= {"model": "table clip.parquet", "rule": "table"}
    assert "table clip.parquet stands in the teacher's place" in teacher_section(report)


def test_a_campaign_of_before_teachers_learned_is_shown_as_ever(report):
    assert not [key for r in report["rounds"] for key in r if key.startswith("teacher_")]
    assert "knows the classes by their texts alone" in teacher_section(report)
    report["rounds"][2] |= {"teacher_fit": make_fit(2)}  # teacher_never is missing still
    assert page.teacher_fits(report["rounds"])[1][0][0] == "2"


def test_blind_spots_are_said_once(report):
    doubtful = {
        "num_images": 1000,
        "never": ["owl"],
        "close": [("cat", "tomcat", 0.12)],
        "num_like_none": 0,
        "examples": [],
    }
    refitted(report)["class_check"] = doubtful
    never, close = "likeliest for none of 1,000 pool images", "prompts that nearly coincide"
    for state in (report, waiting(report)):
        text = Page(page.render(state)).text
        assert text.count(never) == text.count(close) == 1
        assert text.count("'cat' seen as 'dog': 7; 'owl' seen as 'cat': 2") == 1
        assert "No class is missed out" not in text
    assert never in teacher_section(report)
    assert never not in teacher_section(waiting(report))
    assert "by its prompts and the labels so far" in Page(page.render(waiting(report))).text
    report["class_check"] = doubtful | {"never": []}
    assert "No class is missed out: each is the likeliest for some of 1,000 pool images" in teacher_section(report)


def test_the_summary_says_when_the_teacher_has_seen_the_same_labels(report):
    said = "its teacher, ViT, which has learned from the same labels."
    assert said in page.summary(refitted(report))
    report["rounds"][2]["teacher_fit"] |= {"rule": "zero_shot", "changed": 0.0}
    assert said not in page.summary(report)


# ---------------------------------------------------------------- room

NORTH, E_ACUTE = "\N{CJK UNIFIED IDEOGRAPH-5317}", "e\N{COMBINING ACUTE ACCENT}"  # a wide letter; one of two signs


@pytest.mark.parametrize(
    ("name", "head", "tail"),
    [
        ("a.jpg", "", "a.jpg"),
        ("camera_17/2026/IMG_000123.jpg", "camera_17/2026/", "IMG_000123.jpg"),
        (NORTH * 9, NORTH * 2, NORTH * 7),
        (f"xyz{E_ACUTE}" + "b" * 13, "xyz", E_ACUTE + "b" * 13),
    ],
)
def test_a_long_name_keeps_its_end_where_names_differ(report, name, head, tail):
    assert words.head_and_tail(name, 14) == (head, tail)
    report["picks"] = [make_pick(0, 0, sample_id=name)]
    assert f'title="{name}"><span>{head}</span><span>{tail}</span></span>' in page.render(report)


def test_nothing_on_the_page_is_wider_than_a_phone_unless_it_scrolls_alone(report):
    """What a browser would show, as far as rules can say it (the test with a browser says the rest)."""
    source = page.render(waiting(report))
    style = source[source.index("<style>") : source.index("</style>")]
    for rule in re.findall(r"[{;]\s*((?:min-)?width: *\d+px)", style):
        assert int(re.search(r"\d+", rule)[0]) <= 200, rule
    assert "overflow-wrap: anywhere" in re.search(r"body \{[^}]*\}", style)[0]
    assert re.search(r"\.ends > :last-child \{ flex: none", style)
    for table in re.findall(r"<(\w+) class=\"([^\"]*)\"[^>]*><table", source):
        assert "wide" in table[1].split()
    assert len(re.findall("<table", source)) == len(re.findall(r'class="(?:wide|wide tall)"[^>]*><table', source))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCROLLED = """<script>addEventListener("load", () => {
const wide = [...document.querySelectorAll(".wide")].filter(e => e.scrollWidth > e.clientWidth).length;
document.title = `${document.documentElement.scrollWidth} of ${innerWidth}, ${wide} scroll`; });</script>"""


def in_a_browser(source: str, tmp_path, width: int) -> tuple[int, int]:
    """How wide a page comes out in a window of this width, and how many of its tables scroll sideways."""
    file = tmp_path / "page.html"
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)  # it may allow no script
    file.write_text(source.replace("</head>", SCROLLED + "</head>"), "utf-8")
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        f"--window-size={width},900",
    ]
    shown = subprocess.run(
        [CHROMIUM, *arguments, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<title>(\d+) of (\d+), (\d+) scroll</title>", shown.stdout)
    assert found, shown.stderr[-2000:]
    assert int(found[2]) == width
    return int(found[1]), int(found[3])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [800, 1200])  # a headless window is at least 500 wide
def test_in_a_browser_neither_the_page_nor_on_a_desk_a_table_scrolls_sideways(report, tmp_path, width):
    full = waiting(report) | {"rounds": [], "classes": [f"a class of birds with a long name {i}" for i in range(120)]}
    full["teacher"] |= {"recall_C": [0.5] * 120, "rule": "auto"}
    long = "station_north/camera_17/2026-08-01/" + "IMG_20260801_" * 8
    full["picks"] = [make_pick(11, i, sample_id=f"{long}{i}.jpg", label=None, outcome=None) for i in range(12)]
    full["quarantine"] = [{"sample_id": long, "uri": f"s3://bucket/{long}", "reason": "truncated " * 9}]
    for r in range(12):
        change = {"gain": 0.009, "low": -0.004, "high": 0.022, "won": 12, "lost": 8, "num_test": 40_000}
        seconds = dict.fromkeys(("select", "label", "train", "predict", "mix", "evaluate"), 3599.0)
        outcomes = {"label": 1200, "unsure": 120, "cannot_label": 120, "none_of_the_classes": 120}
        of_classes = {"classes": full["classes"], "labels_C": [10] * 120, "recall_C": [0.5] * 120}
        full["rounds"].append(
            make_round(0)
            | {"round": r, "num_labeled": 1200 * (r + 1), "change": change, "seconds": seconds, "outcomes": outcomes}
            | of_classes
            | {"teacher_fit": make_fit(0, num_labels=1200 * (r + 1), rule="zero_shot"), "teacher_never": ["owl"]}
        )
    shown, num_scrolling = in_a_browser(page.render(full), tmp_path, width)
    assert shown <= width
    if width == 1200:
        assert num_scrolling == 0
