"""What a sweep may ask for, which points come of it, and how many trials a cluster has room for."""

import pytest
from fakes import tiny_campaign

from raykd.config import load
from raykd.errors import UserError
from raykd.report.sweep_words import as_csv, best_first, best_yaml, luck, printed, scaled
from raykd.store.place import Place
from raykd.sweeps import (
    Needs,
    Range,
    Sweep,
    check_same_sweep,
    check_sweep,
    config_of,
    corners,
    point_name,
    read_space,
)


@pytest.fixture
def base(tmp_path):
    return load(tiny_campaign(tmp_path / "run", tmp_path, tmp_path))


def sweep_of(*texts, sampler="grid", **changes):
    return Sweep(read_space(texts), sampler, changes.pop("trials", 5), **changes)


def test_a_grid_is_every_combination_and_the_campaign_as_it_is():
    points = sweep_of("student.learning_rate=1e-3,0.01", "mixture.temperature=1,2,4").points()
    assert points[0] == {}
    assert len(points) == 7
    assert len({point_name(point) for point in points}) == 7
    assert point_name({"a": 1, "b": 2}) == point_name({"b": 2, "a": 1})


def test_draws_are_within_their_ranges_and_the_same_again():
    sweep = sweep_of(
        "student.learning_rate=loguniform:1e-4,1e-2", "student.steps=int:3,5", "student.loss_ce_weight=uniform:0.2,0.4",
        "teacher.rule=gda,proker", sampler="random", trials=200,
    )  # fmt: skip
    first, *points = sweep.points()
    assert first == {}
    assert len(points) == 200
    assert points == sweep.points()[1:]
    rates = sorted(point["student.learning_rate"] for point in points)
    assert 1e-4 <= rates[0] < rates[100] < rates[-1] <= 1e-2
    assert 5e-4 < rates[100] < 2e-3  # even in the logarithm
    assert {point["student.steps"] for point in points} == {3, 4, 5}
    assert all(0.2 <= point["student.loss_ce_weight"] <= 0.4 for point in points)
    assert {point["teacher.rule"] for point in points} == {"gda", "proker"}
    assert [Range("int", 3, 5).at(share) for share in (0.0, 0.5, 1.0)] == [3, 4, 5]


def test_corners_hold_every_value_and_both_ends():
    found = corners(sweep_of("student.learning_rate=loguniform:1e-4,1e-2", "student.heads=ce,dho,kd", sampler="random"))
    assert {point["student.heads"] for point in found} == {"ce", "dho", "kd"}
    assert {point["student.learning_rate"] for point in found} == {1e-4, 1e-2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("student.learning_rat=1", "unknown field; did you mean 'learning_rate'"),
        ("student=1", "expected a field of student, mixture, teacher"),
        ("pool.limit=10", "expected a field of student, mixture, teacher"),
        ("selection.strategy=random,pcoreset", "jobs/simulate.py compares strategies"),
        ("teacher.model=a,b", "all points of a sweep share it"),
        ("student.steps", "expected field=value"),
        ("student.learning_rate=loguniform:1e-2,1e-4", "expected loguniform:smaller,larger"),
        ("student.learning_rate=loguniform:0,1", "begins above 0"),
        ("student.learning_rate=uniform:1", "expected uniform:low,high"),
        ("student.steps=int:1.5,4", "expected int:smaller,larger"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_what_to_write(text, problem):
    with pytest.raises(UserError, match=problem):
        read_space([text])


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        (lambda: sweep_of("student.steps=int:1,4"), "a grid needs values"),
        (lambda: sweep_of("student.steps=1,4", sampler="tpe"), "unknown sampler 'tpe'"),
        (lambda: sweep_of("student.steps=1,4", objective="f1"), "--objective 'f1'"),
        (lambda: sweep_of("student.steps=1,4", trials=0), "expected 1 or more"),
        (lambda: Sweep(read_space([]), "grid", 1), "give --search"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(sweep, problem):
    with pytest.raises(UserError, match=problem):
        check_sweep(sweep())


def test_a_config_takes_a_points_values_and_refuses_what_is_none(base):
    assert config_of(base, {}) == base
    found = config_of(base, {"student.learning_rate": 0.5, "mixture.temperature": 3})
    assert (found.student.learning_rate, found.mixture.temperature) == (0.5, 3)
    assert config_of(base, {"student.passes_labeled": 3}).student.steps is None  # one length at a time
    for point, problem in (({"mixture.temperature": -1}, "mixture.temperature"), ({"student.heads": "x"}, "heads"),
                           ({"student.backbone": "frozen"}, "sweep twice")):  # fmt: skip
        with pytest.raises(UserError, match=problem):
            config_of(base, point)


def test_as_many_trials_run_as_fit_and_not_one_is_refused_with_the_arithmetic(base):
    student = base.student.model_copy(update={"num_workers": 2, "num_cpus": 2.0, "num_gpus": 1.0})
    needs = Needs(base.model_copy(update={"student": student}), here=False)
    assert needs.cpus == pytest.approx(4.01)
    assert [needs.at_once(cpus, 8) for cpus in (5, 9, 100)] == [1, 2, 4]  # the last: of 8 GPUs 2 each
    with pytest.raises(UserError, match=r"4.01 CPUs \(the larger of 2 x 2 to train and 3 to predict\) and 2 GPUs, and"):
        needs.at_once(4, 8)
    with pytest.raises(UserError, match="not one fits"):
        needs.at_once(100, 1)
    here = Needs(base, here=True)
    assert (here.cpus, here.at_once(4, 0)) == (2, 2)


def test_a_folder_of_another_sweep_is_refused_and_more_trials_are_not(tmp_path):
    place = Place.of(tmp_path / "sweep")
    one = sweep_of("student.steps=1,4", sampler="random", trials=5)
    check_same_sweep(place, one.identity())
    check_same_sweep(place, sweep_of("student.steps=1,4", sampler="random", trials=9).identity())
    with pytest.raises(UserError, match=r"holds another sweep: .*steps"):
        check_same_sweep(place, sweep_of("student.steps=1,5", sampler="random").identity())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        check_same_sweep(Place.of(tmp_path / "other"), one.identity())


def row(objective, right, **point):
    repeat = {"right": right, "losses": [1 - each for each in right], "ce_weight": 0.5, "temperature": 1.0,
              "seconds": 1.0, "accuracy": objective, "log_loss": 1 - objective, "calibration": 0.1}  # fmt: skip
    return {"point": {f"student.{name}": value for name, value in point.items()}, "objective": objective,
            "ended": True, "repeats": [repeat]}  # fmt: skip


def test_the_best_is_held_against_the_campaign_on_the_same_images(base):
    sweep = sweep_of("student.steps=100,200")
    rows = [row(0.5, [1, 0] * 8), row(0.56, [1, 0] * 7 + [1, 1], steps=100), row(0.9, [1] * 14 + [0] * 2, steps=200)]
    assert [each["objective"] for each in best_first(rows, "accuracy")] == [0.9, 0.56, 0.5]
    assert best_first(rows, "log_loss")[0] is rows[0]
    assert "the best gains +0.375" in luck(rows, "accuracy")
    assert "partly luck" in luck(rows, "accuracy")
    assert "nothing is shown" in luck(rows[:2], "accuracy")
    assert luck(rows[:1], "accuracy") == "the campaign as it is is the best of them"
    assert luck(rows[1:], "accuracy") == "the campaign as it is has not been tried yet"
    lines = printed(rows, sweep).splitlines()
    assert lines[1].split()[:2] == ["0.9000", "200"]
    assert "as it is" in lines[3]
    assert as_csv(rows, sweep).splitlines()[1].startswith("200,0.9,1,0.9,")


def test_the_best_config_is_one_that_the_main_job_takes(base, tmp_path):
    from raykd.config import load_file

    sweep = sweep_of("student.passes_labeled=3,9")
    rows = [row(0.5, [1, 0] * 8), row(0.9, [1] * 16, passes_labeled=9)]
    (tmp_path / "best.yaml").write_text(best_yaml(base, rows, sweep, 2, "16 validation images"))
    found = load_file(tmp_path / "best.yaml", ["storage_path=/tmp/other"])
    assert (found.student.passes_labeled, found.student.steps, found.storage_path) == (9, None, "/tmp/other")
    assert "# accuracy 0.9000 on 16 validation images; the best gains" in (tmp_path / "best.yaml").read_text()


def test_axes_of_the_plot_take_numbers_by_size_and_words_in_order():
    assert scaled([1e-4, 1e-3, 1e-2]) == pytest.approx([0, 0.5, 1])
    assert scaled([1, 2, 3]) == [0, 0.5, 1]
    assert scaled(["b", "a"]) == [1, 0]
    assert scaled([5, 5]) == [0.5, 0.5]
