"""Who answers: as often right, wrong or unsure as is said, and the same in every arm."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from small import CLASSES, oracle_of, small_problem, write_small

from raykd.algo.keyed import hash_ids
from raykd.errors import UserError
from raykd.simulation.definition import OracleConfig
from raykd.simulation.oracles import UNSURE, answering, answers_by_distribution, answers_by_rate, answers_with_doubts
from raykd.store.place import Place
from raykd.store.tables import vectors

COUNT, NUM_CLASSES = 40_000, 4
IDS = [f"image {number}" for number in range(COUNT)]
HASHES = hash_ids(IDS)
LABELS = np.arange(COUNT) % NUM_CLASSES


def close(found: float, share: float, count: int = COUNT) -> bool:
    """Within four standard errors of a share."""
    return abs(found - share) <= 4 * np.sqrt(share * (1 - share) / count)


@pytest.fixture
def problem(tmp_path):
    write_small(tmp_path)
    return small_problem(tmp_path)


def test_a_noisy_oracle_is_wrong_as_often_as_is_said_and_takes_no_class_more_often_than_another():
    answers = answers_by_rate(LABELS, NUM_CLASSES, 0.3, HASHES, seed=5)
    wrong = answers != LABELS
    assert close(wrong.mean(), 0.3)
    for away in (1, 2, 3):
        assert close(((answers - LABELS) % NUM_CLASSES == away).mean(), 0.1)
    np.testing.assert_array_equal(answers_by_rate(LABELS, NUM_CLASSES, 0.0, HASHES, 5), LABELS)
    assert (answers_by_rate(LABELS, NUM_CLASSES, 1.0, HASHES, 5) != LABELS).all()


def test_an_abstaining_oracle_is_unsure_as_often_as_is_said_and_else_right():
    answers = answers_with_doubts(LABELS, 0.25, HASHES, seed=1)
    assert close((answers == UNSURE).mean(), 0.25)
    np.testing.assert_array_equal(answers[answers != UNSURE], LABELS[answers != UNSURE])


def test_answers_are_drawn_from_each_images_own_distribution():
    probs = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.1, 0.2, 0.7], [1.0, 0.0, 0.0, 0.0], [0.25] * 4])
    answers = answers_by_distribution(probs[LABELS], HASHES, seed=2)
    for label, row in enumerate(probs):
        of_class = answers[label == LABELS]
        for answer, share in enumerate(row):
            assert close((of_class == answer).mean(), share, len(of_class)), (label, answer)


def test_an_image_gets_the_same_answer_in_any_order_and_another_one_with_another_seed(problem):
    config = OracleConfig(kind="noisy", rate=0.5)
    one = oracle_of(problem, config, 3).answers_N
    order = np.random.default_rng(0).permutation(len(problem.ids))
    shuffled = replace(
        problem, **{name: getattr(problem, name)[order] for name in ("ids", "splits_N", "labels_N", "features_ND")}
    )
    np.testing.assert_array_equal(oracle_of(shuffled, config, 3).answers_N, one[order])
    assert (oracle_of(problem, config, 4).answers_N != one).any()


def test_a_confusion_matrix_is_taken_from_a_file_as_it_is_given(problem, tmp_path):
    matrix = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    (tmp_path / "rates.csv").write_text("\n".join(",".join(map(str, row)) for row in matrix) + "\n")
    given, read = (
        oracle_of(problem, OracleConfig(kind="noisy", confusion=each)) for each in (matrix, str(tmp_path / "rates.csv"))
    )
    np.testing.assert_array_equal(given.answers_N, read.answers_N)
    pool = problem.pool
    assert set(given.answers_N[pool][problem.labels_N[pool] < 2]) == {1}
    assert set(given.answers_N[pool][problem.labels_N[pool] == 2]) == {0, 2}


def test_people_answer_as_the_table_says_by_id(problem, tmp_path):
    pool = problem.pool[::-1]
    said = np.roll(np.eye(3)[problem.labels_N[pool]], 1, axis=1)
    table = pa.table({"path": problem.ids[pool].tolist(), "shares": vectors(said.astype(np.float32))})
    Place.of(tmp_path / "people.parquet").write_table(table)
    config = OracleConfig(
        kind="people", human_probs=str(tmp_path / "people.parquet"), id_column="path", probs_column="shares"
    )
    answers = oracle_of(problem, config).answers_N
    np.testing.assert_array_equal(answers[problem.pool], (problem.labels_N[problem.pool] + 1) % 3)


def test_an_answer_costs_what_its_class_costs(problem):
    oracle = oracle_of(problem, OracleConfig(kind="noisy", rate=1.0, price=2.0, price_per_class={"bee": 7.5}))
    np.testing.assert_array_equal(oracle.prices_N, np.where(problem.labels_N == CLASSES.index("bee"), 7.5, 2.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "noisy", "confusion": [[1, 0], [0, 1]]}, "has 2 rows of 2 numbers; expected 3 of 3"),
        ({"kind": "noisy", "confusion": [[1, 0, 0], [0.5, 0, 0.4], [0, 0, 1]]}, "row 1 is no distribution: .*sum 0.9"),
        ({"kind": "noisy", "confusion": "nowhere.csv"}, "no such file"),
        ({"kind": "people", "human_probs": "nowhere.parquet"}, "no such table"),
        ({"price_per_class": {"bea": 1.0}}, r"'bea' is no class; did you mean 'bee'\?"),
    ],
)
def test_what_does_not_fit_is_refused(given, said, problem):
    with pytest.raises(UserError, match=said):
        answering(OracleConfig(**given), problem)


def test_a_table_of_people_that_lacks_an_image_or_a_column_is_refused(problem, tmp_path):
    file = tmp_path / "people.parquet"
    table = pa.table({"sample_id": ["a"], "human_probs": vectors(np.ones((1, 3)) / 3)})
    Place.of(file).write_table(table)
    with pytest.raises(UserError, match=r"60 of 60 ids are not in oracle\.human_probs"):
        answering(OracleConfig(kind="people", human_probs=str(file)), problem)
    with pytest.raises(UserError, match=r"no column 'probs' \(oracle.probs_column\)"):
        answering(OracleConfig(kind="people", human_probs=str(file), probs_column="probs"), problem)
