"""What a comparison of simulated arms says, of results whose truth is known; and what it refuses to say."""

import re

import numpy as np
import pyarrow as pa
import pytest
from test_page import HOSTILE, Page

from raykd.errors import UserError
from raykd.report import comparison
from raykd.report.claims import claim_table
from raykd.report.comparison_page import render_comparison, write_comparison
from raykd.report.comparison_words import arm_rows, as_markdown, leaders
from raykd.store.place import Place
from raykd.store.tables import RESULTS

ARMS = {
    f"{strategy}{', ce' if heads == 'ce' else ''}": {"selection.strategy": strategy, "student.heads": heads}
    for heads in ("dho", "ce")
    for strategy in ("random", "pcoreset", "badge")
}
TRUTH = {"pcoreset": 0.05, "ce": -0.1}  # pcoreset is 5 points better than the others, no distillation 10 worse


def result_row(name, arm, seed, number, accuracy):
    values = dict.fromkeys(RESULTS.names, 0.5)
    own = {"set": name, "arm": arm, "seed": seed, "round": number, "labels": 10 * (number + 1), "accuracy": accuracy}
    return values | own


def results(folder, seeds=8, sets=("digits",), rounds=5, arms=ARMS, without=(), truth=TRUTH):
    rng, rows = np.random.default_rng(3), []
    for name in sets:
        for arm, settings in arms.items():
            effect = sum(truth.get(value, 0.0) for value in settings.values())
            for seed in range(seeds):
                own = effect + rng.normal(0, 0.01)
                if (arm, seed) not in without:
                    rows += [result_row(name, arm, seed, r, 0.7 + 0.04 * r + own) for r in range(rounds)]
    place = Place.of(folder)
    (place / "results.parquet").write_table(pa.Table.from_pylist(rows, RESULTS))
    (place / "arms.json").write_json(arms)
    return place


def only(place):
    (found,) = comparison.read_comparison([place])
    return found


def said(found, arm):
    return next(row for row in arm_rows(found) if row[0] == arm)[5]


def claims_of(found):
    """Each claim's last word."""
    lines = [line.strip("| ").split(" | ") for line in claim_table([found]).splitlines()[2:]]
    return {line[0]: line[-1] for line in lines}


def test_a_true_difference_is_shown_and_one_that_is_none_is_not(tmp_path):
    found = only(results(tmp_path))
    assert [said(found, arm) for arm in ("pcoreset", "pcoreset, ce")] == ["better", "better"]
    assert [said(found, arm) for arm in ("badge", "badge, ce")] == ["no difference shown"] * 2
    assert said(found, "random") == ""
    difference = found.against_base["pcoreset"]
    assert abs(difference.mean - 0.05) < difference.half < 0.03
    assert "2 of 4 arms are shown to be better, 0 worse; of 2 no difference" in leaders(found)
    (name,) = found.by_setting
    assert name == "student.heads: ce against dho"
    assert {each.said for each in found.by_setting[name]} == {"worse"}


def test_with_five_seeds_nothing_is_better_whatever_the_difference(tmp_path):
    found = only(results(tmp_path, seeds=5))
    assert {row[5] for row in arm_rows(found)} == {"", "too few seeds to tell"}
    assert "5 seeds can show no difference at 5 %, whatever it is: 6 can." in leaders(found)
    assert "too few seeds to tell" in Page(render_comparison([found], ["here"])).text
    assert set(claims_of(found).values()) == {"not shown: 6 seeds are needed"}


def test_how_many_labels_an_arm_saves_is_read_off_its_curve(tmp_path):
    labels = next(row for row in arm_rows(only(results(tmp_path))) if row[0] == "pcoreset")[6]
    assert float(re.match(r"[0-9]+", labels)[0]) == pytest.approx(37.5, abs=5)  # 5 points are 1.25 rounds of 4


def test_claims_hold_are_refuted_or_are_not_shown_by_what_was_measured(tmp_path):
    words = claims_of(only(results(tmp_path / "a")))
    assert words["Distillation helps every strategy (dho against ce)"] == "holds"
    assert words["PCoreSet is ahead of random"] == "holds"
    assert words["PCoreSet is ahead of every other strategy"] == "holds"  # of badge and random
    assert not any("Two heads" in name for name in words)  # no arm says anything of it
    found = only(results(tmp_path / "b", truth=TRUTH | {"badge": 0.08}))
    assert claims_of(found)["PCoreSet is ahead of every other strategy"] == "refuted"
    assert claims_of(found)["PCoreSet is ahead of random"] == "holds"
    assert "highest mean in 0 of 5 rounds" in claim_table([found])
    equal = only(results(tmp_path / "c", truth={}))
    assert set(claims_of(equal).values()) == {"not shown"}


def test_cells_that_are_missing_are_named_and_the_others_compared(tmp_path):
    found = only(results(tmp_path, without=[("pcoreset", 2), ("pcoreset", 7)]))
    assert found.missing == ("pcoreset (seeds 2, 7)",)
    assert found.against_base["pcoreset"].num_seeds == 6
    assert said(found, "pcoreset") == "better"
    assert "Not there yet: pcoreset (seeds 2, 7)." in Page(render_comparison([found], ["here"])).text


def test_three_sets_are_ranked_and_two_are_not(tmp_path):
    three = comparison.read_comparison([results(tmp_path / "a", sets=("x", "y")), results(tmp_path / "b", sets=("z",))])
    rank = comparison.ranking(three)
    assert rank.names[int(np.argmin(rank.ranks.mean_A))] == "pcoreset"
    assert "Mean ranks over 3 sets" in Page(render_comparison(three, ["a", "b"])).text
    assert "## Mean ranks over 3 sets" in as_markdown(three)
    assert comparison.ranking(three[:2]) is None


def test_one_round_and_one_arm_have_a_page_too(tmp_path):
    found = only(results(tmp_path / "one", rounds=1, arms={"random": ARMS["random"]}))
    assert "nothing is held against it" in Page(render_comparison([found], ["here"])).text
    assert said(only(results(tmp_path / "all", rounds=1)), "pcoreset") == "better"


def test_hostile_names_are_text(tmp_path):
    arms = {HOSTILE: {"selection.strategy": HOSTILE}, "a|b": {"selection.strategy": "random"}}
    found = only(results(tmp_path, arms=arms, sets=(HOSTILE,)))
    page = Page(render_comparison([found], [HOSTILE]))
    assert not page.all("script") + page.all("img")
    assert "| a\\|b |" in as_markdown([found])


def test_an_upper_bound_is_drawn_beside_the_arms_that_it_bounds_and_compared_with_none(tmp_path):
    bound = {"greedy oracle": ARMS["random"] | {"greedy_oracle.candidates": 4}}
    found = only(results(tmp_path, arms=ARMS | bound))
    assert "greedy oracle" not in [*found.against_base, *(arm.name for arm in found.strategies)]
    assert Page(render_comparison([found], ["here"])).text.count("Dotted: an upper bound") == 1


def test_everything_is_written_into_the_folder(tmp_path):
    pytest.importorskip("matplotlib")
    place = results(tmp_path)
    write_comparison([place], place)
    made = {"comparison.html", "comparison.md", "comparison.png"}
    assert {file.name for file in tmp_path.iterdir()} == {"arms.json", "results.parquet", *made}
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "| pcoreset |" in (tmp_path / "comparison.md").read_text("utf-8")


def test_what_is_no_result_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"has no results.parquet and arms.json; give the results_path"):
        comparison.read_comparison([Place.of(tmp_path)])
    place = results(tmp_path / "a")
    with pytest.raises(UserError, match=r"is in .* and in another folder"):
        comparison.read_comparison([place, results(tmp_path / "b")])
    other = {name: values | {"student.heads": "kd"} for name, values in ARMS.items()}
    with pytest.raises(UserError, match="compare them apart"):
        comparison.read_comparison([place, results(tmp_path / "c", sets=("other",), arms=other)])
    (place / "results.parquet").write_table(pa.table({"arm": ["a"]}))
    with pytest.raises(UserError, match=r"expected .*'set', 'arm'"):
        comparison.read_comparison([place])
    (place / "results.parquet").write_table(RESULTS.empty_table())
    with pytest.raises(UserError, match="has no row yet"):
        comparison.read_comparison([place])
