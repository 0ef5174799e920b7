"""Cells on made-up features: what rounds share, what answers change, and the upper bound."""

from dataclasses import replace

import numpy as np
import pytest
from small import oracle_of, perfect, small_problem, small_values, write_small

from raykd.errors import UserError
from raykd.simulation.cell import first_round_key, run_cell
from raykd.simulation.definition import OracleConfig, SetConfig, load_simulation
from raykd.simulation.greedy_oracle import CANDIDATES, batches, run_greedy
from raykd.simulation.oracles import UNSURE
from raykd.simulation.problem import variant
from raykd.simulation.runner import Cell, CellRunner, Variant
from raykd.store.place import Place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_small(folder)
    return folder


@pytest.fixture(scope="module")
def problem(folder):
    return small_problem(folder)


def config_of(folder, campaign=None, **dotted):
    arm = {name.replace("__", "."): value for name, value in dotted.items()}
    values = small_values(folder, folder / "results", arms={"arm": arm})
    values["campaign"] = values["campaign"] | (campaign or {})
    return load_simulation(values).arms["arm"].config


def figures(rounds) -> list[dict]:
    return [{name: value for name, value in after.row.items() if name != "seconds"} for after in rounds]


def same(one, other) -> None:
    np.testing.assert_equal(figures(one), figures(other))
    for name in ("rows", "answers"):
        np.testing.assert_array_equal(getattr(one[-1].answered, name), getattr(other[-1].answered, name))


# ---------------------------------------------------------------- rounds


def test_no_image_is_asked_for_twice_and_rounds_cost_their_prices(problem, folder):
    oracle = oracle_of(problem, OracleConfig(price_per_class={"ant": 3.0}))
    rounds = run_cell(problem, config_of(folder, selection__strategy="margin"), oracle, 4)
    rows = rounds[-1].answered.rows
    assert len(set(rows.tolist())) == len(rows) == 3 + 3 * 4
    assert set(rows) <= set(problem.pool)
    assert [after.row["labels"] for after in rounds] == [3, 7, 11, 15]
    assert rounds[-1].row["spent"] == np.where(problem.labels_N[rows] == 0, 3.0, 1.0).sum()


def test_images_without_a_class_are_paid_for_and_left_alone(problem, folder):
    oracle = oracle_of(problem, OracleConfig(kind="abstaining", rate=0.4))
    rounds = run_cell(problem, config_of(folder), oracle, 5)
    answered = rounds[-1].answered
    unsure = answered.rows[answered.answers == UNSURE]
    assert len(unsure)
    assert rounds[-1].row["labels"] == len(set(answered.rows.tolist())) == 3 + 4 * 4
    labeled, labels = answered.labeled(problem)
    assert not set(labeled) & set(unsure)
    np.testing.assert_array_equal(labels, problem.labels_N[labeled])
    shards, known = rounds[-1].space
    assert len(known) == len(labeled)
    assert sum(map(len, shards.shards)) == len(problem.pool) - len(answered.rows)


def test_wrong_labels_are_what_the_student_learns_from(problem, folder):
    config = config_of(folder, student__heads="ce", student__steps=60)
    right, wrong = (run_cell(problem, config, oracle, 4)[-1] for oracle in (
        perfect(problem), oracle_of(problem, OracleConfig(kind="noisy", rate=1.0))))  # fmt: skip
    assert right.row["accuracy"] > 0.7 > 0.4 > wrong.row["accuracy"]
    assert np.isnan([right.row["kd_head"], right.row["ce_weight"], right.row["temperature"]]).all()
    assert right.row["ce_head"] == right.row["accuracy"]


def test_an_oracle_that_never_names_a_class_leaves_nothing_to_train_on(problem, folder):
    with pytest.raises(UserError, match="no answer names a class"):
        run_cell(problem, config_of(folder), oracle_of(problem, OracleConfig(kind="abstaining", rate=1.0)), 2)


def test_a_teacher_that_learns_gets_better_by_labels(problem, folder):
    blurred = replace(problem, texts=replace(problem.texts, directions_CD=np.roll(problem.texts.directions_CD, 1, 1)))
    rounds = run_cell(blurred, config_of(folder, teacher__rule="gda"), perfect(problem), 4)
    assert rounds[-1].row["teacher"] > rounds[0].row["teacher"]


def test_a_cold_start_picks_in_the_teachers_probabilities(problem, folder):
    config = config_of(folder, {"labels": {"start": "none"}}, selection__strategy="pcoreset")
    (first,) = run_cell(problem, config, perfect(problem), 1)
    logits = problem.logits_NC[problem.pool].astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen = [int((probs**2).sum(axis=1).argmax())]
    while len(chosen) < 4:
        distances = np.linalg.norm(probs[:, None] - probs[chosen], axis=2).min(axis=1)
        chosen.append(int(distances.argmax()))
    assert first.answered.rows.tolist() == problem.pool[chosen].tolist()


def test_a_missing_class_is_never_answered_and_still_measured(problem, folder):
    some = variant(problem, SetConfig(missing=["bee"]), 0)
    rounds = run_cell(some, config_of(folder), perfect(some), 2)
    assert set(rounds[-1].answered.answers) == {0, 2}
    assert rounds[0].row["labels"] == 2


# ---------------------------------------------------------------- first rounds


def test_arms_that_differ_in_their_picks_alone_share_a_first_round(folder):
    key = first_round_key(config_of(folder))
    assert first_round_key(config_of(folder, selection__strategy="badge", selection__budget=9)) == key
    for other in ({"student__heads": "ce"}, {"teacher__rule": "gda"}, {"mixture__search": False}, {"labels__shots": 2}):
        assert first_round_key(config_of(folder, **other)) != key
    assert first_round_key(config_of(folder, selection__mixture=[0.5, 1.0])) != key
    cold = {"labels": {"start": "none"}}
    assert first_round_key(config_of(folder, cold)) != first_round_key(
        config_of(folder, cold, selection__strategy="badge")
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pcoreset", "badge", "coreset", "typiclust"])
def test_a_first_round_of_another_arm_gives_the_same_rows(strategy, problem, folder):
    config = config_of(folder, selection__strategy=strategy)
    oracle = perfect(problem)
    other = run_cell(problem, config_of(folder, selection__strategy="entropy"), oracle, 2)
    same(run_cell(problem, config, oracle, 3, first=other[0]), run_cell(problem, config, oracle, 3))


@pytest.mark.slow
def test_a_runner_that_shares_leaves_the_files_of_one_that_does_not(folder, tmp_path, monkeypatch):
    from raykd.simulation import cell, runner
    from raykd.simulation.problem import given_tables, write_problem

    table, classes, texts = given_tables(Place.of(folder))
    write_problem(Place.of(tmp_path / "problem"), [table], classes, texts)
    simulation = load_simulation(
        small_values(folder, tmp_path / "results", greedy_oracle={"candidates": 2, "arm": "random"})
    )
    images = Variant(Place.of(tmp_path / "problem"), "small", SetConfig(), 0, OracleConfig())
    trainings, trained = [], cell.trained_heads
    monkeypatch.setattr(cell, "trained_heads", lambda *of: trainings.append(of[2]) or trained(*of))
    files, firsts = {}, {}
    for share in (True, False):
        one, trainings[:] = runner.CellRunner(share), []
        for seed in (0, 1):
            for name, arm in simulation.arms.items():
                out = Place.of(tmp_path / str(share) / f"{name} {seed}.parquet")
                config = arm.config.model_copy(update={"seed": seed})
                one.run(Cell(images, name, config, arm.num_rounds, arm.greedy, out))
                files.setdefault((name, seed), []).append(out.read_table().drop_columns("seconds"))
        firsts[share] = trainings.count(0)
    assert firsts == {True: 2, False: 6}
    for shared, alone in files.values():
        assert shared.to_pylist() == alone.to_pylist()
        assert len(shared) == 3
    assert isinstance(one, CellRunner)


# ---------------------------------------------------------------- the upper bound


@pytest.mark.slow
def test_the_greedy_oracle_takes_the_candidate_whose_student_is_best(problem, folder):
    config, oracle = config_of(folder, selection__strategy="random"), perfect(problem)
    found = run_greedy(problem, config, oracle, 2, candidates=len(CANDIDATES))
    alone = [
        run_cell(problem, config.model_copy(update={"selection": config.selection.model_copy(
            update={"strategy": name})}), oracle, 2, found[0])[1]
        for name in CANDIDATES
    ]  # fmt: skip
    assert found[1].row["accuracy"] == max(after.row["accuracy"] for after in alone)
    assert any(found[1].answered.rows.tolist() == after.answered.rows.tolist() for after in alone)
    with_halves = run_greedy(problem, config, oracle, 2, candidates=len(CANDIDATES) + 6, first=found[0])
    assert with_halves[1].row["accuracy"] >= found[1].row["accuracy"]


def test_its_candidates_are_as_many_as_asked_for_and_all_different(problem, folder):
    config, oracle = config_of(folder, selection__strategy="random"), perfect(problem)
    first = run_cell(problem, config, oracle, 1)[0]
    found = batches(problem, config, 1, 20, first)
    assert len(CANDIDATES) < len({frozenset(rows.tolist()) for rows in found}) == len(found) <= 20
    for rows in found:
        assert len(set(rows.tolist())) == 4
        assert set(rows) <= set(problem.pool) - set(first.answered.rows)
    cold = config_of(folder, {"labels": {"start": "none"}})
    assert len(batches(problem, cold, 0, 5, None)) > 1
    assert len(run_greedy(problem, cold, oracle, 2, 3)) == 2


# ---------------------------------------------------------------- who runs which cell


@pytest.mark.parametrize(("num_seeds", "num_actors"), [(1, 3), (4, 3), (8, 2)])
def test_every_cell_is_handed_out_once_and_a_seed_stays_with_its_actor_while_there_are_others(
    num_seeds, num_actors, folder
):
    from raykd.stages.simulate import handing_out

    images = Variant(Place.of(folder), "small", SetConfig(), 0, OracleConfig())
    config = config_of(folder)
    cells = [
        Cell(images, arm, config.model_copy(update={"seed": seed}), 3, None, Place.of(f"{seed}/{arm}"))
        for seed in range(num_seeds)
        for arm in "abcd"
    ]
    next_cell, turn, given = handing_out(cells), np.random.default_rng(0), []
    while True:
        number = int(turn.integers(num_actors))
        if (cell := next_cell(number)) is None:
            break
        given.append((number, cell))
    assert sorted(cell.out.uri for _, cell in given) == sorted(cell.out.uri for cell in cells)
    firsts = {(number, cell.config.seed) for number, cell in given}
    assert len(firsts) <= num_seeds + (num_actors - 1) * 2
    assert all(next_cell(number) is None for number in range(num_actors))
