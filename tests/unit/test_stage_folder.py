"""A stage is complete or absent; the same inputs skip, others stop by name. On a disk and on an object store."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykd.store.place import Place
from raykd.store.stage_folder import MARKER, Stage, differences, fingerprint, flatten

INPUTS = {"student": {"steps": 200, "crop_area": [0.5, 1.0]}, "seed": 0, "classes": ["a", "b"]}
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("abc.", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
plain_dict = st.dictionaries(st.text("abc", min_size=1, max_size=2), plain, max_size=4)


class Killed(BaseException):
    """Stands for kill -9: nothing that follows in raykd runs."""


@pytest.fixture(params=["disk", "object store"])
def place(request, tmp_path):
    root = Place.of(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    return root / "round_003" / "select"


def make(stage, rows=b"rows"):
    with stage.writing() as out:
        (out.place / "picks.parquet").write_bytes(rows)
        out.facts["rows"] = len(rows)


# ---------------------------------------------------------------- complete


def test_a_finished_stage_is_done_and_remembers_its_facts(place):
    stage = Stage(place, INPUTS)
    assert not stage.is_done()
    make(stage)
    assert stage.is_done()
    assert stage.facts["rows"] == 4
    assert stage.facts["seconds"] >= 0
    assert (place / "picks.parquet").read_bytes() == b"rows"
    assert {info.base_name for info in place.files()} == {"picks.parquet", MARKER}
    marker = (place / MARKER).read_json()
    assert marker["stage"] == "round_003/select"
    assert marker["inputs"] == INPUTS
    assert marker["fingerprint"] == stage.fingerprint


def test_the_same_inputs_skip_in_whatever_order_and_as_tuples_too(place):
    make(Stage(place, INPUTS))
    again = {"classes": ("a", "b"), "seed": 0, "student": {"crop_area": (0.5, 1.0), "steps": 200}}
    assert Stage(place, again).is_done()
    assert Stage(place, again).fingerprint == Stage(place, INPUTS).fingerprint


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({**INPUTS, "seed": 1}, "seed: was 0, now 1"),
        (
            {**INPUTS, "student": {"steps": 200, "crop_area": [0.7, 1.0]}},
            "student.crop_area: was [0.5, 1.0], now [0.7, 1.0]",
        ),
        ({**INPUTS, "classes": ["b", "a"]}, "classes: was ['a', 'b'], now ['b', 'a']"),
        ({**INPUTS, "new": True}, "new: was '(absent)', now True"),
        ({"student": INPUTS["student"], "seed": 0}, "classes: was ['a', 'b'], now '(absent)'"),
    ],
)
def test_other_inputs_are_refused_naming_the_field_and_nothing_is_touched(place, changed, line):
    make(Stage(place, INPUTS))
    with pytest.raises(ValueError, match="was made from other inputs") as error:
        Stage(place, changed).is_done()
    assert line in str(error.value)
    assert str(place) in str(error.value)
    assert "another storage_path" in str(error.value)
    assert Stage(place, INPUTS).is_done()


def test_facts_given_by_the_stage_itself_are_kept(place):
    with Stage(place, INPUTS).writing() as out:
        out.facts["seconds"] = 12.5
    assert Stage(place, INPUTS).facts == {"seconds": 12.5}


# ---------------------------------------------------------------- absent


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
def test_a_stage_that_fails_is_absent_and_can_be_made_again(place, error):
    stage = Stage(place, INPUTS)
    with pytest.raises(error), stage.writing() as out:  # noqa: PT012
        (out.place / "half.parquet").write_bytes(b"half")
        raise error
    assert not stage.is_done()
    make(stage)
    assert stage.is_done()
    assert {info.base_name for info in place.files(recursive=True)} == {"picks.parquet", MARKER}


def test_a_stage_killed_before_its_marker_is_absent(place, monkeypatch):
    stage = Stage(place, INPUTS)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write_json", killed)
        with pytest.raises(Killed):
            make(stage, b"first")
    assert not stage.is_done()
    make(stage, b"second")
    assert stage.is_done()
    assert (place / "picks.parquet").read_bytes() == b"second"


def test_on_a_disk_a_stage_killed_between_marker_and_rename_is_absent(tmp_path, monkeypatch):
    place = Place.of(tmp_path) / "pool"
    stage = Stage(place, INPUTS)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(Killed):
            make(stage, b"first")
    assert not place.exists()
    assert not stage.is_done()
    make(stage, b"second")
    assert (place / "picks.parquet").read_bytes() == b"second"


def test_on_a_disk_nothing_is_seen_under_the_stages_name_before_it_is_complete(tmp_path):
    place = Place.of(tmp_path) / "pool"
    with Stage(place, INPUTS).writing() as out:
        (out.place / "a").write_bytes(b"a")
        assert not place.exists()
        assert out.place.name.startswith(".pool.")
    assert sorted(os.listdir(tmp_path)) == ["pool"]
    assert sorted(os.listdir(place.path)) == [MARKER, "a"]


def test_on_an_object_store_the_marker_comes_last_and_leftovers_of_a_killed_attempt_go_first(bucket, monkeypatch):
    place, written = bucket / "pool", []
    place.fs.create_dir((place / "data").path, recursive=True)
    (place / "data/part-9.parquet").write_bytes(b"of a killed attempt")
    write = Place.write_bytes
    monkeypatch.setattr(Place, "write_bytes", lambda self, data: (written.append(self.name), write(self, data)))
    stage = Stage(place, INPUTS)
    assert not stage.is_done()
    with stage.writing() as out:
        assert out.place == place
        assert place.files(recursive=True) == []
        (place / "data/part-0.parquet").write_bytes(b"new")
        assert not stage.is_done()
    assert written[-1] == MARKER
    assert [info.base_name for info in (place / "data").files()] == ["part-0.parquet"]


def test_on_an_object_store_other_stages_keep_their_files(bucket):
    for name in ("teacher", "teacher_model"):
        make(Stage(bucket / name, INPUTS), name.encode())
    (bucket / "pool").fs.create_dir((bucket / "pool").path)
    make(Stage(bucket / "pool", INPUTS))
    for name in ("teacher", "teacher_model"):
        assert (bucket / name / "picks.parquet").read_bytes() == name.encode()


def test_on_a_disk_a_folder_that_raykd_did_not_finish_stops_before_the_work(tmp_path):
    place = Place.of(tmp_path) / "pool"
    (place / "somebodys.txt").write_bytes(b"theirs")
    with pytest.raises(ValueError, match=rf"pool holds files but no {MARKER}"), Stage(place, INPUTS).writing():
        pytest.fail("the work began")
    assert (place / "somebodys.txt").read_bytes() == b"theirs"


def test_a_finished_stage_is_never_overwritten_on_a_disk(tmp_path):
    stage = Stage(Place.of(tmp_path) / "pool", INPUTS)
    make(stage, b"first")
    with pytest.raises(ValueError, match="holds files"):
        make(stage, b"second")
    assert (stage.place / "picks.parquet").read_bytes() == b"first"


def test_a_stage_is_named_with_its_round():
    names = ["/runs/demo/pool", "/runs/demo/round_002/train", "s3://b/runs/round_002/tune?region=x"]
    assert [Stage(Place(name), {}).name for name in names] == ["pool", "round_002/train", "round_002/tune"]


# ---------------------------------------------------------------- taken over


def test_a_stage_is_not_complete_when_another_job_took_over_while_it_was_made(place):
    asked = []

    def still_ours():
        asked.append(place.exists())
        if len(asked) == 2:
            raise ValueError("another job took over")

    stage = Stage(place, INPUTS, still_ours)
    with pytest.raises(ValueError, match="took over"):
        make(stage)
    assert len(asked) == 2
    assert not stage.is_done()
    make(stage)
    assert stage.is_done()


def test_what_the_job_that_took_over_is_writing_is_not_deleted(place):
    def still_ours():
        raise ValueError("another job took over")

    with Stage(place, INPUTS).writing() as theirs:
        (theirs.place / "half.parquet").write_bytes(b"half")
        with pytest.raises(ValueError, match="took over"), Stage(place, INPUTS, still_ours).writing():
            pytest.fail("the work began")
        assert (theirs.place / "half.parquet").read_bytes() == b"half"


# ---------------------------------------------------------------- fingerprints and differences


def test_a_fingerprint_stays_the_same_over_versions_of_raykd():
    """Campaigns on disk hold these: changing how they are made would refuse or repeat every stage of theirs."""
    assert fingerprint({"b": [1, 2.5, None], "a": {"é": True}}) == fingerprint({"a": {"é": True}, "b": [1, 2.5, None]})
    assert fingerprint(INPUTS) == "7a184d82332d887b"


@given(plain_dict, plain_dict)
def test_there_are_differences_exactly_when_two_values_differ(one, other):
    assert differences(one, one) == []
    assert bool(differences(one, other)) == (one != other)


@given(plain_dict)
def test_flattening_keeps_every_leaf_under_its_dotted_name(value):
    def leaves(value, path=()):
        for key, inner in value.items():
            if isinstance(inner, dict) and inner:
                yield from leaves(inner, (*path, key))
            else:
                yield ".".join((*path, key)), inner

    assert flatten(value) == dict(leaves(value))


def test_long_values_are_shortened_in_a_difference():
    (line,) = differences({"classes": list(range(1000))}, {"classes": [1]})
    assert len(line) < 250
    assert line.endswith("..., now [1]")
