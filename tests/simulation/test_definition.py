"""What a simulation's YAML may say, and what is said of mistakes in it."""

from dataclasses import replace

import pytest
import yaml
from small import STUDENT, frozen_digits, small_problem, small_values, write_small

from raykd.config import describe
from raykd.errors import UserError
from raykd.simulation.definition import (
    GREEDY,
    SimulationConfig,
    load_simulation,
    load_simulation_file,
    slug,
    when_it_may_change,
)
from raykd.simulation.examples import SIMULATIONS, load_example
from raykd.simulation.possible import check_cell, check_seeds
from raykd.simulation.problem import problem_key
from raykd.simulation.results import check_same_simulation, note_simulation
from raykd.store.place import Place


@pytest.fixture
def values(tmp_path):
    (tmp_path / "tables").mkdir()
    write_small(tmp_path / "tables")
    return small_values(tmp_path / "tables", tmp_path / "results")


def changed(values: dict, **campaign) -> dict:
    return values | {"campaign": values["campaign"] | campaign}


def test_a_grid_makes_an_arm_of_every_combination_beside_those_that_are_named(values):
    grid = {"selection.strategy": ["badge", "margin"], "student.heads": ["dho", "ce"], "mixture.search": [False]}
    arms = load_simulation(values | {"grid": grid}).arms
    assert list(arms)[2:] == [f"{s} · {h} · false" for s in ("badge", "margin") for h in ("dho", "ce")]
    assert arms["badge · ce · false"].config.student.heads == "ce"
    assert arms["badge · ce · false"].config.selection.budget == 4
    assert arms["badge · ce · false"].overrides == {
        "selection.strategy": "badge",
        "student.heads": "ce",
        "mixture.search": False,
    }
    assert not arms["badge · ce · false"].config.mixture.search
    assert arms["random"].config.mixture.search


def test_relative_paths_begin_where_they_are_written(values, tmp_path):
    (tmp_path / "inner").mkdir()
    campaign = values["campaign"] | {"cache_path": "cache"}
    (tmp_path / "inner" / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    given = values | {"campaign": "inner/campaign.yaml", "tables": "tables", "results_path": "results"}
    (tmp_path / "simulation.yaml").write_text(yaml.safe_dump(given))
    found = load_simulation_file(tmp_path / "simulation.yaml", ["campaign.rounds=2", "seeds=3"])
    assert found.config.results_path == str(tmp_path / "results")
    assert found.config.tables == str(tmp_path / "tables")
    assert found.base.cache_path == str(tmp_path / "inner" / "cache")
    assert (found.base.rounds, list(found.seeds())) == (2, [0, 1, 2])
    assert found.base.selection.budget == 4


def test_the_greedy_oracle_has_the_settings_of_an_arm_and_its_own_rounds(values):
    arms = load_simulation(values | {"greedy_oracle": {"candidates": 5, "rounds": 2, "arm": "PCoreSet"}}).arms
    assert list(arms)[-1] == GREEDY
    assert (arms[GREEDY].num_rounds, arms["PCoreSet"].num_rounds) == (2, 3)
    assert arms[GREEDY].overrides["greedy_oracle.candidates"] == 5
    assert arms[GREEDY].config == arms["PCoreSet"].config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": {"a": {"student.haeds": "ce"}}}, r"arm 'a': student.haeds: unknown key; did you mean 'heads'\?"),
        ({"arms": {"a": {"selection.strategy": "pcorset"}}}, r"arm 'a': .*did you mean 'pcoreset'\?"),
        ({"arms": {"a": {"seed": 3}}}, "arm 'a': seed is the same of all arms"),
        ({"arms": {"a": {"pool.path": "x"}}}, "arm 'a': pool.path is the same of all arms"),
        ({"arms": {"greedy oracle": {}}}, "this name is that of the upper bound"),
        ({"arms": {}, "grid": {}}, "give arms, or grid, or both"),
        ({"grid": {"student.heads": []}}, r"grid\.student\.heads is an empty list"),
        ({"grid": {"student.heads": ["ce", "ce"]}}, "two arms 'ce'"),
        ({"arms": {"a b": {}, "A_b": {}}}, "'a b' and 'A_b' would have one folder"),
        ({"seedz": 3}, r"seedz: unknown key; did you mean 'seeds'\?"),
        ({"seeds": 0}, "seeds: .*greater than or equal to 1"),
        ({"oracle": {"knd": "noisy"}}, r"oracle.knd: unknown key; did you mean 'kind'\?"),
        ({"oracle": {"kind": "noisy"}}, "needs exactly one of rate, confusion; given: none"),
        ({"oracle": {"kind": "perfect", "rate": 0.1}}, "rate is for kind: noisy or abstaining"),
        ({"oracle": {"kind": "people"}}, "needs exactly one of human_probs"),
        ({"sets": {"tail": {"longtailed": 3}}}, r"sets.tail.longtailed: unknown key; did you mean 'long_tailed'\?"),
        ({"sets": {"tail": {"long_tailed": 0.5}}}, "long_tailed: .*greater than or equal to 1"),
        ({"greedy_oracle": {"arm": "randm"}}, r"there is no arm 'randm'; did you mean 'random'\?"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_was_meant(change, said, values):
    with pytest.raises(UserError, match=said):
        load_simulation(values | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": {"path": "x", "format": "images"}}, "campaign: pool and tables"),
        ({"teacher": {"model": "ViT-B-32"}}, "campaign: teacher.model and tables"),
        ({"labels": {"oracle": "people"}}, "a simulation answers itself"),
        ({"student": STUDENT | {"steps": None}}, "give exactly one of steps"),
    ],
)
def test_a_mistake_in_the_campaign_is_named(change, said, values):
    with pytest.raises(UserError, match=said):
        load_simulation(changed(values, **change))


def test_a_campaign_that_people_label_is_refused_and_one_that_says_nothing_of_it_is_simulated(values):
    assert load_simulation(values).base.labels.oracle == "simulated"


@pytest.mark.parametrize(
    ("campaign", "said"),
    [
        ({"rounds": 20}, r"20 rounds with a budget of 4 ask for 79 labels, and the pool has 60 .* \(to 3\)"),
        ({"labels": {"start": "one_per_class", "shots": 21}}, "the pool has 20 of 'ant'; lower it to 20"),
        ({"labels": {"start": "one_per_class", "shots": 20}}, "seeds: 2, and 20 of each class can be drawn in 1 ways"),
    ],
)
def test_what_the_labels_do_not_allow_is_refused_with_what_would_do(campaign, said, values):
    simulation = load_simulation(changed(values, **campaign))
    problem, config = small_problem(values["tables"]), simulation.arms["random"].config

    def check() -> None:
        check_cell(problem, config, config.rounds if "rounds" in campaign else 1)
        check_seeds(problem, config, 2)

    with pytest.raises(UserError, match=said):
        check()


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ({"teacher.rule": "gda"}, "learns from class texts, and there are none"),
        ({"teacher.stat_a": True}, "learns from class texts"),
    ],
)
def test_an_arm_that_needs_texts_is_refused_where_there_are_none(dotted, said, values):
    simulation = load_simulation(values | {"arms": {"a": dotted}})
    problem = small_problem(values["tables"])
    check_cell(problem, simulation.arms["a"].config, 3)
    with pytest.raises(UserError, match=said):
        check_cell(replace(problem, texts=None), simulation.arms["a"].config, 3)


# ---------------------------------------------------------------- what a folder belongs to


def test_a_folder_takes_more_arms_and_seeds_and_nothing_else(values, tmp_path):
    place, simulation = Place.of(tmp_path / "results"), load_simulation(values)
    check_same_simulation(place, simulation)
    note_simulation(place, simulation)
    check_same_simulation(place, load_simulation(values | {"seeds": 5, "arms": values["arms"] | {"more": {}}}))
    for change, said in (
        ({"seeds": 1}, "seeds: was 2, now 1"),
        ({"arms": {"random": {}}}, "arms.PCoreSet"),
        ({"arms": values["arms"] | {"random": {"student.heads": "ce"}}}, r"arms\.random"),
        ({"oracle": {"price": 2.0}}, "oracle.price: was 1.0, now 2.0"),
        ({"sets": {"tail": {"long_tailed": 3}}}, r"sets\.tail"),
        ({"campaign": values["campaign"] | {"rounds": 4}}, "campaign.rounds: was 3, now 4"),
        ({"campaign": values["campaign"] | {"student": STUDENT | {"steps": 13}}}, "campaign.student.steps"),
    ):
        with pytest.raises(UserError, match=f"results of another simulation: .*{said}"):
            check_same_simulation(place, load_simulation(values | change))
    check_same_simulation(place, load_simulation(changed(values, progress="lines")))


def test_a_folder_that_holds_something_else_is_refused(values, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no simulation"):
        check_same_simulation(Place.of(tmp_path / "results"), load_simulation(values))


def test_arms_that_see_the_same_images_through_the_same_network_share_a_problem(tmp_path):
    values = {
        "results_path": str(tmp_path),
        "campaign": frozen_digits(tmp_path / "run", tmp_path / "cache"),
        "arms": {
            "a": {"selection.strategy": "badge", "student.hidden": 8, "teacher.rule": "gda"},
            "b": {"teacher.templates": ["a {}."]},
            "c": {"student.features": "resnet18.a1_in1k"},
        },
    }
    simulation = load_simulation(values)
    keys = {name: problem_key(arm.config) for name, arm in simulation.arms.items()}
    assert keys["a"] == problem_key(simulation.base)
    assert len(set(keys.values())) == 3


def test_names_become_folders():
    assert slug("PCoreSet · dho, 0.5") == "PCoreSet_dho_0.5"
    assert slug("../..") == "_"


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATIONS)
def test_the_simulations_that_come_with_raykd_are_possible(name, tmp_path):
    simulation = load_example(name, [f"results_path={tmp_path}", "seeds=6"])
    assert len(simulation.seeds()) == 6
    assert SIMULATIONS[name].__doc__
    with pytest.raises(UserError, match="did you mean"):
        load_example(name[:-1])


def test_what_may_still_change_is_told_of_every_field():
    told = dict(line.rsplit("  ", 1) for line in describe(SimulationConfig, when=when_it_may_change) if "\n    " in line
                for line in [line.strip("\n").split("\n")[0]])  # fmt: skip
    names = {line.partition("  ")[0]: when for line, when in told.items()}
    assert names["seeds"] == names["arms"] == "may grow"
    assert names["results_path"] == "free"
    assert names["oracle.rate"] == names["sets.missing"] == "fixed once there are results"
