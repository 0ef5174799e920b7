"""Active learning simulated on a pool with known labels: arms (strategy, heads, teacher rule, student, ...) x seeds.

    python jobs/simulate.py SIMULATION.yaml [--set key.sub=value ...]
    python jobs/simulate.py --preset digits
    ray job submit --working-dir . -- python jobs/simulate.py SIMULATION.yaml --set results_path=s3://bucket/simulated

A simulation is the config of a campaign, and what differs between arms; python -m raykd.simulation.definition prints
every field. Arms whose student is frozen (heads on stored features) run side by side in actors, as many as there are
CPUs; others are whole campaigns, one after the other. The results folder holds a file a cell (an arm with a seed),
which is whole or absent: run it again to go on, with more seeds or arms, too. It ends with a table; results.parquet and
results.csv have every round, comparison.html says what the seeds show (jobs/compare.py: of several simulations).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raykd import cli

if TYPE_CHECKING:
    import pyarrow as pa

    from raykd.config import Config
    from raykd.simulation.definition import Arm, Simulation
    from raykd.simulation.runner import Cell
    from raykd.stages.work import Work
    from raykd.store.place import Place

ACTIVE_ROUND = Path(__file__).with_name("active_round.py")


def run(simulation: Simulation) -> pa.Table:
    """A whole simulation, from wherever it stands; the rows of all cells."""
    from raykd.report.comparison_page import write_comparison
    from raykd.simulation.results import all_results, results_in_words, write_results
    from raykd.stages.simulate import open_simulation, run_side_by_side

    whole = campaign_arms(simulation)
    with open_simulation(simulation) as work:
        cells = frozen_cells(work, simulation)
        missing = [cell for cell in cells if not cell.out.exists()]
        if there := len(cells) - len(missing):
            work.say("simulate", f"{there} of {len(cells)} cells are there already")
        run_side_by_side(work, missing)
        if whole:  # which take hours
            write_results(work.place, all_results(work.place, simulation))
        for arm in whole:
            run_campaigns(work, simulation, arm)
        table = all_results(work.place, simulation)
        write_results(work.place, table)
        write_comparison([work.place], work.place)
    print(results_in_words(table, simulation))
    print(f"\nall rounds: {work.place / 'results.csv'}\narms compared: {work.place / 'comparison.html'}")
    return table


def frozen_cells(work: Work, simulation: Simulation) -> list[Cell]:
    """All cells that run on features, seed by seed, checked; their problems are made here, unless they are there."""
    from raykd.errors import UserError
    from raykd.simulation.possible import check_cell, check_seeds
    from raykd.simulation.problem import problem_key
    from raykd.simulation.results import cell_place
    from raykd.simulation.runner import Cell, Variant

    arms = [arm for arm in simulation.arms.values() if arm.config.student.is_frozen]
    keys = {arm.name: problem_key(arm.config) for arm in arms}
    places: dict[str, Place] = {}
    for arm in arms:
        if keys[arm.name] not in places:
            if simulation.config.tables and keys[arm.name] != problem_key(simulation.base):
                raise UserError(f"arm {arm.name!r} asks for other features or another teacher than the tables have")
            places[keys[arm.name]] = make_problem(work, simulation, arm.config, keys[arm.name])
    variants = {}
    for key, place in places.items():
        for name, images in simulation.sets.items():
            seed, oracle = simulation.base.split_seed, simulation.config.oracle
            variants[key, name] = Variant(place, name, images, seed, oracle)
            problem, _ = variants[key, name].open()
            for arm in arms:
                if keys[arm.name] == key:
                    try:
                        check_cell(problem, arm.config, arm.num_rounds)
                        check_seeds(problem, arm.config, simulation.config.seeds)
                    except UserError as error:
                        raise UserError(f"set {name!r}, arm {arm.name!r}: {error}") from None
    return [
        Cell(
            variants[keys[arm.name], name], arm.name, arm.config.model_copy(update={"seed": seed}), arm.num_rounds,
            arm.greedy, cell_place(work.place, name, arm.name, seed),
        )
        for name in simulation.sets
        for seed in simulation.seeds()
        for arm in arms
    ]  # fmt: skip


def make_problem(work: Work, simulation: Simulation, config: Config, key: str) -> Place:
    """The folder of an arm's problem: from tables, or from what a campaign's first stages make of the images."""
    from raykd.simulation.problem import given_tables, problem_tables, write_problem
    from raykd.stages.campaign import open_campaign
    from raykd.stages.encode import encode
    from raykd.stages.few_shot import texts_of
    from raykd.stages.pool import list_pool
    from raykd.stages.simulate import as_campaign
    from raykd.stages.teacher import teach
    from raykd.store.place import Place

    folder = work.stage_folder(work.place / "problem" / key, "problem", version=1, made_from={"key": key})
    if done := folder.done():
        return done.place
    if simulation.config.tables:
        with folder.writing() as out:
            table, classes, texts = given_tables(Place.of(simulation.config.tables))
            write_problem(out.place, [table], classes, texts)
        return out.complete.place
    work.session.ensure()
    with open_campaign(as_campaign(config, work.place / "problem-campaign" / key, work.place / "cache")) as campaign:
        pool = list_pool(campaign)
        encoded = encode(campaign, pool)
        teacher = teach(campaign, pool, encoded)
    tables, teachers = problem_tables(pool, encoded, teacher)
    with folder.writing() as out:
        texts = None if teacher.texts is None else texts_of(teacher.texts)
        write_problem(out.place, tables, teacher.classes, texts, teachers)
    return out.complete.place


def campaign_arms(simulation: Simulation) -> list[Arm]:
    """The arms whose cells are whole campaigns, checked."""
    from raykd.simulation.campaigns import check_campaign_cell

    arms = [arm for arm in simulation.arms.values() if not arm.config.student.is_frozen]
    for arm in arms:
        check_campaign_cell(arm.name, simulation.sets, simulation.config.oracle, simulation.config.tables)
    return arms


def run_campaigns(work: Work, simulation: Simulation, arm: Arm) -> None:
    """All cells of an arm that are whole campaigns, one after the other."""
    from raykd.simulation.campaigns import rows_of_campaign, run_campaign
    from raykd.simulation.definition import slug
    from raykd.simulation.results import cell_place, result_rows
    from raykd.stages.simulate import as_campaign

    for name in simulation.sets:
        for seed in simulation.seeds():
            if (out := cell_place(work.place, name, arm.name, seed)).exists():
                continue
            work.still_ours()
            place = work.place / "campaigns" / slug(name) / slug(arm.name) / f"seed_{seed:03d}"
            config = as_campaign(arm.config.model_copy(update={"seed": seed}), place, work.place / "cache")
            run_campaign(ACTIVE_ROUND, config.model_dump(mode="json"), lambda line: work.say("simulate", line))
            rows = rows_of_campaign(place, arm.num_rounds, simulation.config.oracle.price)
            out.write_table(result_rows(name, arm.name, seed, rows))


def main(argv: Sequence[str] | None = None) -> pa.Table:
    from raykd.simulation.examples import SIMULATIONS, load_example

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("config", nargs="?", metavar="SIMULATION.yaml", help="what is to be simulated")
    what.add_argument("--preset", metavar="NAME", help=f"a simulation that comes with raykd: {', '.join(SIMULATIONS)}")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key.sub=value",
        help="overrides of the simulation, such as seeds=4 or campaign.rounds=8",
    )  # fmt: skip
    given = cli.parse_known(parser, argv)
    with cli.user_errors():
        from raykd.simulation.definition import load_simulation_file

        if given.preset:
            simulation = load_example(given.preset, given.set)
        elif given.config is None:
            parser.error("give SIMULATION.yaml (before --set) or --preset NAME")
        else:
            simulation = load_simulation_file(given.config, given.set)
        return run(simulation)


if __name__ == "__main__":
    main()
