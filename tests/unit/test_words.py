"""Sentences that the log, the table and the page share."""

import math

import pytest

from raykd.report import outlook, words
from raykd.stages.evaluate import in_words

SOUND = {"num_images": 1000, "never": [], "close": [], "num_like_none": 50, "examples": ["a"]}
FIT = {
    "rule": "proker", "num_labels": 50, "chosen": {"temperature": 0.938, "strength": 2.331, "beta": 1.25},
    "before": {"accuracy": 0.7389, "log_loss": 0.945, "ece": 0.2094},
    "untempered": {"accuracy": 0.7717, "log_loss": 0.559, "ece": 0.0743},
    "after": {"accuracy": 0.7717, "log_loss": 0.555, "ece": 0.1147},
    "confusions": [("a", "b", 7)], "passes": 2, "changed": 0.1508,
    "change": {"gain": 0.0922, "low": 0.0542, "high": 0.1333, "won": 52, "lost": 15, "num_test": 400},
}  # fmt: skip


@pytest.fixture
def figures() -> dict:
    return {
        "round": 2, "num_labeled": 50, "labels_spent": {"training": 50, "validation": 150}, "num_test": 400,
        "accuracy": {"mixture": 0.8, "ce_head": 0.78, "kd_head": 0.75, "teacher": 0.7}, "coverage_radius": 0.5,
        "ece": 0.033, "ece_uncalibrated": 0.248, "label_doubts": None,
        "change": {"gain": 0.009, "low": -0.004, "high": 0.022, "won": 12, "lost": 8, "num_test": 400},
    }  # fmt: skip


def test_a_rounds_line_says_how_good_it_is_what_changed_and_what_it_cost(figures):
    assert in_words(figures) == (
        "80.0% of 400 test images (95% interval 75.8 to 83.6%), +0.9 (-0.4 to +2.2) points since round 1, "
        "within noise; 50 labels and 150 more for validation; CE head 78.0%, KD head 75.0%, teacher 70.0%; "
        "calibration error 3.3% (24.8% before calibration); coverage radius 0.500"
    )
    figures["change"] |= {"low": 0.004}
    assert "points since round 1; 50 labels" in in_words(figures)
    figures |= {"change": None, "labels_spent": {"training": 50, "validation": 0}}
    assert "(95% interval 75.8 to 83.6%); 50 labels; CE head" in in_words(figures)


def test_it_says_when_a_head_is_far_behind_as_the_mixture_hides_that(figures):
    assert "far behind" not in in_words(figures)
    figures["accuracy"] |= {"ce_head": 0.48}
    assert in_words(figures).endswith("; far behind is the CE head: few or lopsided labels")
    figures["accuracy"] |= {"ce_head": None}
    assert "far behind" not in in_words(figures)


def test_what_calibration_has_mended_is_said_and_nothing_where_it_changed_nothing(figures):
    assert words.before_calibration(figures) == "24.8% before calibration"
    assert words.before_calibration(figures | {"ece_uncalibrated": 0.0331}) is None
    older = {key: value for key, value in figures.items() if key != "ece_uncalibrated"}
    assert words.before_calibration(older) is None
    assert "; calibration error 3.3%; coverage" in in_words(older)


@pytest.mark.parametrize(("num", "text"), [(1, "1 of 200 training labels looks like a slip (1.2 would"),
                                           (12, "12 of 200 training labels look like slips (1.2 would")])  # fmt: skip
def test_a_line_ends_with_labels_that_look_like_slips_if_there_are_any(figures, num, text):
    doubts = {"num_labels": 200, "num_suspects": num, "by_chance": 1.23, "share": 0.05}
    assert in_words(figures | {"label_doubts": doubts}).endswith(f"; {text} if all were right)")
    untested = figures | {"label_doubts": doubts, "accuracy": None}
    assert in_words(untested).endswith(f"nothing to measure on; {text} if all were right)")
    assert "slip" not in in_words(figures | {"label_doubts": doubts | {"num_suspects": 0}})
    assert "slip" not in in_words(figures)


def test_it_says_what_labels_gave_the_teacher_if_anything(figures):
    figures["teacher_fit"] = FIT
    assert "KD head 75.0%, teacher 70.0% (+9.2 by labels); calibration" in in_words(figures)
    figures["teacher_fit"] = FIT | {"changed": 0.0}
    assert "teacher 70.0%; calibration" in in_words(figures)
    figures["teacher_fit"] = FIT | {"change": None}
    assert "teacher 70.0%; calibration" in in_words(figures)


def test_a_refits_line_begins_with_what_came_of_it():
    assert words.refit_in_words(FIT, 0.932) == (
        "proker on 50 labels: 93.2% of the test images, +9.2 (+5.4 to +13.3) points by labels; of labels not seen "
        "73.9% -> 77.2% right, log-loss 0.945 -> 0.555, calibration error 20.9% -> 11.5%; another first choice for "
        "15.1% of the pool; temperature 0.94, strength 2.3"
    )
    texts = {"rule": "zero_shot", "num_labels": 1, "chosen": {"temperature": 1.0}, "before": None, "after": None}
    assert words.refit_in_words(FIT | texts | {"changed": 0.0}, None) == (
        "zero_shot on 1 label; one label of a class says nothing yet of how good it is; temperature 1"
    )


def test_a_step_that_changes_nothing_is_left_out():
    on = [{"accuracy": a, "log_loss": math.nan, "ece": 0.2} for a in (0.6, 0.7, 0.7)]
    assert words.steps(on, "accuracy", words.percent) == "60.0% \N{RIGHTWARDS ARROW} 70.0%"
    assert words.steps(on, "ece", words.percent) == "20.0%"
    assert words.steps(on, "log_loss", words.number) == words.steps([None] * 3, "ece", words.percent) == words.UNKNOWN


def test_mistakes_are_named_with_how_often():
    assert words.mistakes(FIT) == "Its most frequent mistakes on 50 labels: 'a' seen as 'b': 7"
    assert words.mistakes(FIT | {"confusions": []}) is None


def test_without_test_images_it_says_what_it_can(figures):
    figures |= {"accuracy": None, "change": None, "num_test": 0}
    assert in_words(figures) == ("50 labels and 150 more for validation, coverage radius 0.500; nothing to measure on")


AHEAD = {
    "labels": 70, "accuracy": 0.82, "low": 0.79, "high": 0.85, "gain": 0.02, "gain_low": 0.004, "gain_high": 0.036,
    "reason": None,
}  # fmt: skip
AUDIT = {
    "accuracy": 0.8, "low": 0.74, "high": 0.85, "how": "control variate", "num_audited": 120, "num_right": 95,
    "worth": 161.4, "exact_low": 0.7, "exact_high": 0.87, "num_aside": 600, "num_unanswered": 0, "num_without_class": 0,
    "num_choosing": 0,
}  # fmt: skip


def on_audit(figures, **changes):
    audited = {"measured_on": "audit", "num_measured": 120, "num_test": 0, "interval": (0.74, 0.85), "audit": AUDIT}
    return figures | audited | {"at_least": 0.71, "forecast": AHEAD, "price": None} | changes


def test_a_round_without_test_images_is_measured_on_audited_ones_by_their_own_interval(figures):
    line = in_words(on_audit(figures))
    assert line.startswith(
        "80.0% of 120 audited images (95% interval 74.0 to 85.0%), at least 71.0% with 95% confidence, whenever one "
        "looks, +0.9"
    )
    assert words.interval(on_audit(figures), "ce_head") != words.interval(figures, "ce_head")  # of 120, not of 400


def test_what_to_expect_and_to_pay_is_one_line(figures):
    price = {"spent": 25.0, "cost": 10.0, "per_point": 5.0, "low": 2.5, "high": None}
    line = words.plain(outlook.words_of(on_audit(figures, price=price), 0.78))
    assert line == (
        "20 more labels are likely to bring +2.0 points (+0.4 to +3.6), to 82.0% (79.0 to 85.0%); 25.00 paid so far; "
        "the next round costs 10.00, or 5.00 a point (2.50 to no end); the goal of 78.0% is measured, but not sure yet"
    )
    none = AHEAD | {"accuracy": None, "gain": None, "gain_high": None, "reason": "too few rounds"}
    assert outlook.words_of(on_audit(figures, forecast=none), None) == "no forecast for 20 more labels: too few rounds"
    assert outlook.words_of(figures, 0.9) == ""  # of an older campaign nothing is known


@pytest.mark.parametrize(
    ("goal", "changes", "said"),
    [
        (0.7, {}, "Stop: the goal of 70.0% is reached, with 95% confidence"),
        (0.9, {}, "The goal of 90.0% is not reached. More labels pay: the next round is likely to bring +2.0 points"),
        (None, {}, "More labels pay: the next round is likely to bring +2.0 points (+0.4 to +3.6)"),
        (None, {"forecast": AHEAD | {"gain_low": -0.001}}, "More labels may pay: the next round"),
        (
            None,
            {"forecast": AHEAD | {"gain": 0.001, "gain_low": 0.0, "gain_high": 0.004}},
            "More labels of this kind h",
        ),
        (None, {"forecast": AHEAD | {"reason": "too few"}}, "Whether more labels pay cannot be told yet"),
    ],
)
def test_advice_follows_from_the_bound_and_from_the_forecast(figures, goal, changes, said):
    found = outlook.outlook([on_audit(figures, **changes)], goal)
    assert found.advice.startswith(said)
    assert found.grounds[0] == "Accuracy is at least 71.0% with 95% confidence, whenever one looks"
    assert found.grounds[1] == (
        "By the audit: 95 right of 120 audited images, worth 161 by how sure the student is of 600 set aside"
    )


def test_nothing_is_advised_where_nothing_is_measured(figures):
    assert outlook.outlook([], 0.9) is outlook.outlook([figures], 0.9) is None


def test_past_forecasts_are_held_against_what_came_of_them(figures):
    first, then = on_audit(figures), on_audit(figures, num_labeled=70, accuracy={"mixture": 0.86})
    assert outlook.forecasts_so_far([first, then]) == (
        "0 of 1 forecast so far had the next round within the interval; off by 4.0 points on average, 4.0 too low"
    )
    assert outlook.forecasts_so_far([first, then | {"num_labeled": 69}]) is None  # another number of labels came
    assert outlook.forecasts_so_far([first]) is None


def test_the_worth_of_the_last_labels_is_said_of_the_images_that_it_was_measured_on(figures):
    before = figures | {"num_labeled": 49}
    assert words.worth_of_last([figures]) is None
    assert words.worth_of_last([before, figures]).startswith("The last 1 label brought +0.9 points")
    figures["change"] |= {"num_test": 350}
    assert words.worth_of_last([before, figures]).endswith(
        "as 350 test images of both rounds cannot tell it from no change."
    )
    assert words.worth_of_last([before, {name: value for name, value in figures.items() if name != "change"}]) is None


def test_of_a_sound_class_list_nothing_is_said():
    assert words.class_doubts(SOUND) == []
    assert words.class_doubts(SOUND | {"num_images": 0, "never": ["cat"], "num_like_none": 0, "examples": []}) == []


def test_each_doubt_is_one_line_with_the_first_names_and_how_many_there_are():
    check = SOUND | {"never": ["a", "b", "c", "d", "e"], "close": [("a", "b", 0.04)], "num_like_none": 51}
    never, close, none = words.class_doubts(check)
    assert never == "5 classes are the likeliest for none of 1,000 pool images: 'a', 'b', 'c' and 2 more"
    assert close.endswith("coincide, closer than 0.3 of the usual distance: 'a' and 'b' (0.04)")
    assert none.startswith("5.1% of the pool looks like none of the classes")
    assert none.endswith("such as a and 50 more")
    assert words.class_doubts(SOUND | {"never": ["a"]})[0].startswith("1 class is the likeliest for none of")


def test_a_teachers_interval_is_of_the_images_that_it_was_measured_on():
    """A table in its place may have a row for ten of the 400 test images."""
    figures = {"num_test": 400, "accuracy": {"mixture": 0.7, "teacher": 0.7}, "teacher": {"num_images": 10}}
    low, high = words.wilson(0.7, 10)
    assert words.interval(figures, "teacher") == f"{100 * low:.1f} to {high:.1%}"
    assert words.interval(figures) != words.interval(figures, "teacher")
    assert words.interval(figures | {"teacher": {}}, "teacher") == words.interval(figures)  # of an older campaign


def test_what_the_pool_has_moved_is_not_said_to_be_by_labels_alone():
    assert words.taught_by({"passes": 2}) == "labels"
    assert words.taught_by({"passes": 12}) == "labels and pool"
