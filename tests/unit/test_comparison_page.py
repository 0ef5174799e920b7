"""What a comparison of simulated arms says, of results whose truth is known; and what it refuses to say."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_page import CHROMIUM, HOSTILE, Page, in_a_browser

from raykd.errors import UserError
from raykd.report import comparison
from raykd.report.claims import claim_table
from raykd.report.comparison_files import read_comparison
from raykd.report.comparison_page import render_comparison, write_comparison
from raykd.report.comparison_panels import named_arms, named_labels, panels_of
from raykd.report.comparison_words import arm_headings, arm_rows, as_markdown, leaders
from raykd.report.words import UNKNOWN
from raykd.store.place import Place
from raykd.store.tables import RESULTS

ROOT = Path(__file__).parents[2]
STRATEGY = comparison.STRATEGY
ARMS = {
    f"{strategy}{', ce' if heads == 'ce' else ''}": {"selection.strategy": strategy, "student.heads": heads}
    for heads in ("dho", "ce")
    for strategy in ("random", "pcoreset", "badge")
}
TRUTH = {"pcoreset": 0.05, "ce": -0.1}  # pcoreset is 5 points better than the others, no distillation 10 worse


def result_row(name, arm, seed, number, labels, accuracy):
    values = dict.fromkeys(RESULTS.names, 0.5)
    own = {"set": name, "arm": arm, "seed": seed, "round": number, "labels": labels, "accuracy": accuracy}
    return values | own


def results(
    folder, seeds=8, sets=("digits",), rounds=5, arms=ARMS, without=(), truth=TRUTH, labels=None, campaign=None
):
    """A results folder. labels: by arm, those of its rounds; left out: 10, 20, ... Accuracy hangs on them alone."""
    rng, rows = np.random.default_rng(3), []
    for name in sets:
        for arm, settings in arms.items():
            effect = sum(truth.get(value, 0.0) for value in settings.values())
            for seed in range(seeds):
                own = effect + rng.normal(0, 0.01)
                if (arm, seed) not in without:
                    counts = (labels or {}).get(arm, range(10, 10 * rounds + 1, 10))
                    rows += [
                        result_row(name, arm, seed, r, count, 0.66 + 0.004 * count + own)
                        for r, count in enumerate(counts)
                    ]
    place = Place.of(folder)
    if campaign is not None:
        (place / "simulation.json").write_json({"raykd": "9.8", "simulation": {"campaign": campaign}})
    (place / "results.parquet").write_table(pa.Table.from_pylist(rows, RESULTS))
    (place / "arms.json").write_json(arms)
    return place


def only(place):
    (found,) = read_comparison([place])
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


def test_arms_with_no_cell_at_all_are_missing_too(tmp_path):
    found = only(results(tmp_path, without=[("badge", seed) for seed in range(8)]))
    assert found.missing == ("badge (all seeds)",)
    assert "badge (all seeds)" in as_markdown([found])


def test_what_an_arm_leaves_as_it_is_is_read_from_the_simulation(tmp_path):
    arms = {"random": {STRATEGY: "random"}, "ours": {STRATEGY: "pcoreset"}}
    arms |= {"ours, ce": {STRATEGY: "pcoreset", "student.heads": "ce"}}
    campaign = {"student": {"heads": "dho", "steps": 300}, "selection": {"strategy": "badge"}}
    found = only(results(tmp_path / "a", arms=arms, campaign=campaign))
    assert list(found.by_setting) == ["student.heads: ce against dho"]
    assert [panel.title for panel in panels_of(found)] == ["heads dho", "heads ce"]
    assert claims_of(found)["Distillation helps every strategy (dho against ce)"] == "holds"
    assert "9.8" in Page(render_comparison([found], ["here"])).text
    alone = only(results(tmp_path / "b", arms=arms))
    assert list(alone.by_setting) == ["student.heads: ce against as in the campaign"]


def test_arms_with_other_numbers_of_labels_are_compared_over_those_that_all_have(tmp_path):
    labels = {"pcoreset": (20, 40, 80), "random": (10, 30, 60), "badge": (15, 60, 90)}
    arms = {name: ARMS[name] for name in labels}
    found = only(results(tmp_path / "a", arms=arms, labels=labels))
    assert found.span == (20, 60)
    for arm in found.arms:  # accuracy is a straight line over labels: its mean from 20 to 60 is its value at 40
        for seed, area in arm.areas.items():
            assert area == pytest.approx(np.interp(40, arm.labels_R, arm.accuracies[seed]))
    assert abs(found.against_base["pcoreset"].mean - 0.05) < 0.02
    said = "Not all arms have the same numbers of labels: they are compared between 20 and 60 labels"
    assert said in Page(render_comparison([found], ["here"])).text
    assert said in as_markdown([found])
    with pytest.raises(UserError, match=r"'badge' begins at 70 labels, and 'random' ends at 60; .* compare them apart"):
        only(results(tmp_path / "b", arms=arms, labels=labels | {"badge": (70, 90)}))


def test_an_upper_bound_of_fewer_rounds_shortens_nothing_and_has_no_area(tmp_path):
    bound = {"greedy oracle": ARMS["random"] | {"greedy_oracle.candidates": 4}}
    found = only(results(tmp_path, arms=ARMS | bound, labels={"greedy oracle": (10, 20)}))
    assert found.span == (10, 50)
    assert arm_rows(found)[-1][:2] == ["greedy oracle (upper bound)", UNKNOWN]


def test_without_random_all_are_held_against_the_first_arm(tmp_path):
    arms = {name: ARMS[name] for name in ("badge", "pcoreset", "badge, ce")}
    found = only(results(tmp_path, arms=arms))
    assert {(each.ours, each.theirs, each.said) for each in found.against_base.values()} == {
        ("pcoreset", "badge", "better"),
        ("badge, ce", "badge", "worse"),
    }
    assert "points over badge: pcoreset" in leaders(found)
    assert leaders(found).endswith(" 1 of 2 arms are shown to be better, 1 worse.")
    assert "Against badge, points" in Page(render_comparison([found], ["here"])).text


def test_arms_of_which_no_two_differ_in_their_strategy_alone_are_drawn_together(tmp_path):
    arms = {heads: {"student.heads": heads} for heads in ("dho", "ce")}
    (panel,) = panels_of(only(results(tmp_path, arms=arms)))
    assert [panel.label(arm) for arm in panel.arms] == ["dho", "ce"]
    assert {panel.label(arm): rank for arm, rank in named_arms(panel, named_labels([panel]))} == {"dho": None, "ce": 0}


def test_a_strategy_has_one_color_on_the_whole_page_and_all_panels_of_a_set_one_scale(tmp_path):
    found = only(results(tmp_path))
    panels = panels_of(found)
    labels = named_labels(panels)
    assert labels == ["pcoreset", "badge"]
    assert [{panel.label(arm): rank for arm, rank in named_arms(panel, labels)} for panel in panels] == [
        {"pcoreset": 0, "badge": 1, "random": None}
    ] * 2
    source = render_comparison([found], ["here"])
    scales = [
        re.findall(r'text-anchor="end">([\d.]+%)<', svg)
        for svg in re.findall(r'(?s)<svg class="desk".*?</svg>', source)
    ]
    assert len(scales) == 2
    assert scales[0] == scales[1]
    assert percent_of(scales[0][0]) <= 0.6 < 0.9 <= percent_of(scales[0][-1]) + 0.05


def percent_of(text):
    return float(text.rstrip("%")) / 100


def test_of_many_strategies_the_best_have_a_name_and_the_others_are_gray(tmp_path):
    strategies = ["random", *(f"s{number}" for number in range(9))]
    arms = {name: {STRATEGY: name} for name in strategies}
    truth = {name: 0.02 * number for number, name in enumerate(strategies)}
    found = only(results(tmp_path, arms=arms, truth=truth))
    assert named_labels(panels_of(found)) == ["s8", "s7", "s6", "s5"]
    source = render_comparison([found], ["here"])
    assert "Gray: 5 more." in Page(source).text
    desk = re.search(r'(?s)<svg class="desk".*?</svg>', source)[0]
    assert desk.count('<g class="rest">') == 5
    assert desk.count('<g class="teacher">') == 1


@pytest.mark.parametrize(("teacher", "drawn"), [(0.6, True), (0.1, False), (np.nan, False)])
def test_a_teacher_is_drawn_where_its_line_leaves_room_for_the_curves(tmp_path, teacher, drawn):
    place = results(tmp_path)
    rows = (place / "results.parquet").read_table()
    at = rows.column_names.index("teacher")
    (place / "results.parquet").write_table(rows.set_column(at, "teacher", pa.array([teacher] * len(rows))))
    source = render_comparison([only(place)], ["here"])
    assert ('<g class="teacher">' in source) == drawn
    assert ("Teacher: " in Page(source).text) == bool(np.isfinite(teacher))


def test_three_sets_are_ranked_and_two_are_not(tmp_path):
    three = read_comparison([results(tmp_path / "a", sets=("x", "y")), results(tmp_path / "b", sets=("z",))])
    dho, _ = comparison.rankings(three)
    assert dho.arms[int(np.argmin(dho.ranks.mean_A))].name == "pcoreset"
    assert "Mean ranks over 3 sets" in Page(render_comparison(three, ["a", "b"])).text
    assert "## Mean ranks over 3 sets" in as_markdown(three)
    assert comparison.rankings(three[:2]) == []


def test_one_round_and_one_arm_have_a_page_too(tmp_path):
    found = only(results(tmp_path / "one", rounds=1, arms={"random": ARMS["random"]}))
    assert "nothing is held against it" in Page(render_comparison([found], ["here"])).text
    found = only(results(tmp_path / "all", rounds=1))
    assert said(found, "pcoreset") == "better"
    assert arm_headings(found)[1] == "Accuracy (one round has no area)"
    assert leaders(found).startswith("Highest accuracy")


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
        read_comparison([Place.of(tmp_path)])
    place = results(tmp_path / "a")
    with pytest.raises(UserError, match=r"is in .* and in another folder"):
        read_comparison([place, results(tmp_path / "b")])
    other = {name: values | {"student.heads": "kd"} for name, values in ARMS.items()}
    with pytest.raises(UserError, match="compare them apart"):
        read_comparison([place, results(tmp_path / "c", sets=("other",), arms=other)])
    (place / "results.parquet").write_table(pa.table({"arm": ["a"]}))
    with pytest.raises(UserError, match=r"expected .*'set', 'arm'"):
        read_comparison([place])
    (place / "results.parquet").write_table(RESULTS.empty_table())
    with pytest.raises(UserError, match="has no row yet"):
        read_comparison([place])
    (place / "results.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"is no table of results \(.*run jobs/simulate.py again"):
        read_comparison([place])
    row = result_row("digits", "random", 0, 0, 10, np.nan)
    (place / "results.parquet").write_table(pa.Table.from_pylist([row], RESULTS))
    with pytest.raises(UserError, match="has 1 rows without an accuracy"):
        read_comparison([place])
    (place / "results.parquet").write_table(pa.Table.from_pylist([row | {"accuracy": 0.5, "arm": "else"}], RESULTS))
    with pytest.raises(UserError, match=r"says nothing of arm .else., which has results"):
        read_comparison([place])
    (place / "arms.json").write_json(["random"])
    with pytest.raises(UserError, match="holds no mapping of arms; expected"):
        read_comparison([place])


def test_several_folders_may_have_upper_bounds_that_differ(tmp_path):
    places = [
        results(tmp_path / name, sets=(name,), arms=ARMS | {"greedy oracle": {"greedy_oracle.candidates": count}})
        for name, count in (("a", 4), ("b", 20))
    ]
    assert [found.name for found in read_comparison(places)] == ["a", "b"]


def many(tmp_path):
    """Three sets, and names that are long."""
    arms = {
        f"{strategy} picks, {heads}, a teacher that learns": {STRATEGY: strategy, "student.heads": heads}
        for strategy in ("random", "class_balanced", "uherding", "a_strategy_of_ones_own_with_a_long_name")
        for heads in ("dho", "ce")
    }
    return read_comparison(
        [results(tmp_path / "many", arms=arms, sets=("digits", "Tiny-ImageNet, long tail", "birds"))]
    )


def test_the_page_loads_nothing_and_no_rule_is_wider_than_a_phone(tmp_path):
    source = render_comparison(many(tmp_path), ["here"], linked=True)
    html = Page(source)
    assert not [tag for tag, _ in html.tags if tag in {"script", "link", "iframe", "img", "object", "embed"}]
    assert [attrs["href"] for _, attrs in html.tags if "href" in attrs] == ["results.csv"]
    style = source[source.index("<style>") : source.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    for rule in re.findall(r"[{;]\s*((?:min-)?width: *\d+px)", style):
        assert int(re.search(r"\d+", rule)[0]) <= 200, rule
    assert len(html.all("table")) == len(re.findall(r'class="wide"[^>]*><table', source))
    ids = [attrs["id"] for _, attrs in html.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_names_beside_curves_are_cut_to_the_room_there_is(tmp_path):
    source = render_comparison(many(tmp_path), ["here"])
    for box, svg in re.findall(r'(?s)<svg class="\w+" viewBox="0 0 (\d+) \d+"(.*?)</svg>', source):
        for x, label in re.findall(r'<text class="name" x="([\d.]+)"[^>]*>([^<]*)<', svg):
            assert float(x) + 6.5 * len(label) <= int(box), label


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [500, 1200])
def test_in_a_browser_the_page_is_as_wide_as_its_window(tmp_path, width):
    shown, num_scrolling = in_a_browser(render_comparison(many(tmp_path), ["here"]), tmp_path, width)
    assert shown <= width
    if width == 1200:
        assert num_scrolling == 0


@pytest.mark.slow
def test_the_job_says_what_it_wrote_and_what_keeps_it_from_a_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    job = importlib.import_module("jobs.compare")
    places = [str(results(tmp_path / name, sets=(name,))) for name in ("a", "b")]
    job.main([*places, "--out", str(tmp_path / "out")])
    assert re.search(
        r"^b, 8 seeds: Highest area.*\n\npage: .*out/comparison.html$", capsys.readouterr().out, re.M | re.S
    )
    assert not (tmp_path / "a" / "comparison.html").exists()
    job.main([places[0], "--claims"])
    assert capsys.readouterr().out.startswith("| Claim |")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "a" / "comparison.png").unlink(missing_ok=True)
    job.main(places[:1])
    assert "no plot without matplotlib: pip install 'raykd[plot]'" in capsys.readouterr().out
    assert not (tmp_path / "a" / "comparison.png").exists()
    with pytest.raises(SystemExit, match="2"):
        job.main([str(tmp_path)])
    assert "has no results.parquet" in capsys.readouterr().err
