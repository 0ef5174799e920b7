"""A stage is complete or absent; the same inputs skip, others stop by name. On a disk and on an object store."""

import os

import pytest
from fakes import Killed
from hypothesis import given
from hypothesis import strategies as st

from raykd.errors import UserError
from raykd.store.place import Place
from raykd.store.stage_folder import MARKER, StageFolder, differences, fingerprint, flatten, read_done

INPUTS = {"student": {"steps": 200, "crop_area": [0.5, 1.0]}, "seed": 0, "classes": ["a", "b"]}
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("abc.", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
plain_dict = st.dictionaries(st.text("abc", min_size=1, max_size=2), plain, max_size=4)


@pytest.fixture(params=["disk", "object store"])
def place(request, tmp_path):
    root = Place.of(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    return root / "round_003" / "select"


def folder_of(place, inputs, still_ours=lambda: None, settings=None):
    return StageFolder(place, "round 3 select", 1, inputs, settings or {}, still_ours)


def make(stage, rows=b"rows"):
    with stage.writing() as out:
        (out.place / "picks.parquet").write_bytes(rows)
        out.facts["rows"] = len(rows)


# ---------------------------------------------------------------- complete


def test_a_finished_stage_is_done_and_remembers_its_facts(place):
    stage = folder_of(place, INPUTS)
    assert stage.done() is None
    make(stage)
    assert stage.done() is not None
    assert stage.done().facts["rows"] == 4
    assert stage.done().facts["seconds"] >= 0
    assert (place / "picks.parquet").read_bytes() == b"rows"
    assert {info.base_name for info in place.files()} == {"picks.parquet", MARKER}
    marker = (place / MARKER).read_json()
    assert marker["stage"] == "round 3 select"
    assert marker["made_from"] == {"version": 1, **INPUTS}
    assert marker["fingerprint"] == stage.fingerprint == stage.done().fingerprint


def test_the_same_inputs_skip_in_whatever_order_and_as_tuples_too(place):
    make(folder_of(place, INPUTS))
    again = {"classes": ("a", "b"), "seed": 0, "student": {"crop_area": (0.5, 1.0), "steps": 200}}
    assert folder_of(place, again).done() is not None
    assert folder_of(place, again).fingerprint == folder_of(place, INPUTS).fingerprint


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
    make(folder_of(place, INPUTS))
    with pytest.raises(ValueError, match="was made from other inputs") as error:
        folder_of(place, changed).done()
    assert line in str(error.value)
    assert str(place) in str(error.value)
    assert "new storage_path" in str(error.value)
    assert "labels.given" in str(error.value)
    assert folder_of(place, INPUTS).done() is not None


def test_facts_given_by_the_stage_itself_are_kept(place):
    with folder_of(place, INPUTS).writing() as out:
        out.facts["seconds"] = 12.5
    assert folder_of(place, INPUTS).done().facts == {"seconds": 12.5}


# ---------------------------------------------------------------- absent


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
def test_a_stage_that_fails_is_absent_and_can_be_made_again(place, error):
    stage = folder_of(place, INPUTS)
    with pytest.raises(error), stage.writing() as out:  # noqa: PT012
        (out.place / "half.parquet").write_bytes(b"half")
        raise error
    assert stage.done() is None
    make(stage)
    assert stage.done() is not None
    assert {info.base_name for info in place.files(recursive=True)} == {"picks.parquet", MARKER}


def test_a_stage_killed_before_its_marker_is_absent(place, monkeypatch):
    stage = folder_of(place, INPUTS)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write_json", killed)
        with pytest.raises(Killed):
            make(stage, b"first")
    assert stage.done() is None
    make(stage, b"second")
    assert stage.done() is not None
    assert (place / "picks.parquet").read_bytes() == b"second"


def test_on_a_disk_a_stage_killed_between_marker_and_rename_is_absent(tmp_path, monkeypatch):
    place = Place.of(tmp_path) / "pool"
    stage = folder_of(place, INPUTS)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(Killed):
            make(stage, b"first")
    assert not place.exists()
    assert stage.done() is None
    make(stage, b"second")
    assert (place / "picks.parquet").read_bytes() == b"second"


def test_on_a_disk_nothing_is_seen_under_the_stages_name_before_it_is_complete(tmp_path):
    place = Place.of(tmp_path) / "pool"
    with folder_of(place, INPUTS).writing() as out:
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
    stage = folder_of(place, INPUTS)
    assert stage.done() is None
    with stage.writing() as out:
        assert out.place == place
        assert place.files(recursive=True) == []
        (place / "data/part-0.parquet").write_bytes(b"new")
        assert stage.done() is None
    assert written[-1] == MARKER
    assert [info.base_name for info in (place / "data").files()] == ["part-0.parquet"]


def test_on_an_object_store_other_stages_keep_their_files(bucket):
    for name in ("teacher", "teacher_model"):
        make(folder_of(bucket / name, INPUTS), name.encode())
    (bucket / "pool").fs.create_dir((bucket / "pool").path)
    make(folder_of(bucket / "pool", INPUTS))
    for name in ("teacher", "teacher_model"):
        assert (bucket / name / "picks.parquet").read_bytes() == name.encode()


def test_on_a_disk_a_folder_that_raykd_did_not_finish_stops_before_the_work(tmp_path):
    place = Place.of(tmp_path) / "pool"
    (place / "somebodys.txt").write_bytes(b"theirs")
    with pytest.raises(ValueError, match=rf"pool holds files but no {MARKER}"), folder_of(place, INPUTS).writing():
        pytest.fail("the work began")
    assert (place / "somebodys.txt").read_bytes() == b"theirs"


def test_a_finished_stage_is_never_overwritten_on_a_disk(tmp_path):
    stage = folder_of(Place.of(tmp_path) / "pool", INPUTS)
    make(stage, b"first")
    with pytest.raises(ValueError, match="holds files"):
        make(stage, b"second")
    assert (stage.place / "picks.parquet").read_bytes() == b"first"


# ---------------------------------------------------------------- settings, versions, damage


def test_other_settings_are_kept_and_named_and_the_fingerprint_is_that_of_the_time(place):
    first = folder_of(place, INPUTS, settings={"budget": 20})
    make(first)
    later = folder_of(place, INPUTS, settings={"budget": 30, "strategy": "random"})
    done = later.done()
    assert done.fingerprint == first.fingerprint != later.fingerprint
    assert done.settings == {"budget": 20}
    assert later.settings_changed(done) == ["budget: was 20, now 30", "strategy: was '(absent)', now 'random'"]
    assert first.settings_changed(done) == []


def test_another_version_of_the_stages_code_is_refused(place):
    make(folder_of(place, INPUTS))
    with pytest.raises(UserError, match="version: was 1, now 2"):
        StageFolder(place, "round 3 select", 2, INPUTS).done()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stage": "pool"}', b"\xff\xfe"])
def test_a_damaged_marker_is_named_with_what_to_do(place, content):
    make(folder_of(place, INPUTS))
    (place / MARKER).write_bytes(content)
    for look in (folder_of(place, INPUTS).done, lambda: read_done(place)):
        with pytest.raises(UserError, match="is damaged") as error:
            look()
        assert str(place / MARKER) in str(error.value)
        assert "move" in str(error.value)


def test_several_folders_are_made_at_a_time_and_each_is_complete_by_itself(place):
    parts = [folder_of(place / str(number), {"part": number}) for number in range(3)]
    writings = [part.begin() for part in parts]
    for number, out in enumerate(writings):
        (out.place / "rows").write_bytes(bytes([number]))
    assert [part.done() for part in parts] == [None] * 3
    done = writings[1].commit()
    assert done == parts[1].done()
    assert [part.done() is None for part in parts] == [True, False, True]
    writings[0].abandon()
    writings[2].commit()
    assert [part.done() is None for part in parts] == [True, False, False]
    make(parts[0])
    assert parts[0].done() is not None


# ---------------------------------------------------------------- taken over


def test_a_stage_is_not_complete_when_another_job_took_over_while_it_was_made(place):
    asked = []

    def still_ours():
        asked.append(place.exists())
        if len(asked) == 2:
            raise ValueError("another job took over")

    stage = folder_of(place, INPUTS, still_ours)
    with pytest.raises(ValueError, match="took over"):
        make(stage)
    assert len(asked) == 2
    assert stage.done() is None
    make(stage)
    assert stage.done() is not None


def test_what_the_job_that_took_over_is_writing_is_not_deleted(place):
    def still_ours():
        raise ValueError("another job took over")

    with folder_of(place, INPUTS).writing() as theirs:
        (theirs.place / "half.parquet").write_bytes(b"half")
        with pytest.raises(ValueError, match="took over"), folder_of(place, INPUTS, still_ours).writing():
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


def test_an_empty_mapping_that_gets_keys_is_named_by_them():
    assert differences({"renamed": {}}, {"renamed": {"a": "b"}}) == ["renamed.a: was '(absent)', now 'b'"]
    assert differences({"renamed": {}}, {}) == ["renamed: was {}, now '(absent)'"]


def test_long_values_are_shortened_in_a_difference():
    (line,) = differences({"classes": list(range(1000))}, {"classes": [1]})
    assert len(line) < 250
    assert line.endswith("..., now [1]")


# ---------------------------------------------------------------- shared by several jobs


def shared(place):
    return StageFolder(place, "encode", 1, INPUTS, shared=True)


def test_in_a_shared_place_two_jobs_make_the_same_folder_and_the_first_completes_it(tmp_path):
    place = Place.of(tmp_path) / "part"
    one, other = shared(place).begin(), shared(place).begin()
    for out in (one, other):
        (out.place / "rows").write_bytes(b"the same")
    first = one.commit()
    assert other.commit() == first == shared(place).done()
    assert sorted(os.listdir(tmp_path)) == ["part"]


def test_in_a_shared_place_only_what_is_old_is_taken_for_a_killed_attempts(tmp_path):
    place = Place.of(tmp_path) / "part"
    killed, living = shared(place).begin(), shared(place).begin()
    os.utime(killed.place.path, (0, 0))
    shared(place).begin().abandon()
    assert not killed.place.exists()
    (living.place / "rows").write_bytes(b"rows")
    assert living.commit() == shared(place).done()


def test_in_a_shared_bucket_nothing_of_another_job_is_deleted(bucket):
    one, other = shared(bucket / "part").begin(), shared(bucket / "part").begin()
    one.place.fs.create_dir(one.place.path, recursive=True)
    (one.place / "rows").write_bytes(b"the same")
    shared(bucket / "part").begin()
    assert (one.place / "rows").read_bytes() == b"the same"
    assert one.commit().fingerprint == other.commit().fingerprint


def test_in_a_shared_bucket_what_is_complete_is_whole_however_two_jobs_mix(bucket):
    """The first job is done when the second is in the middle, with files of other names."""
    place = bucket / "part"
    one, other = shared(place).begin(), shared(place).begin()
    (one.place / "block_1").write_bytes(b"rows 1 to 4")
    (other.place / "block_a").write_bytes(b"rows 1 to 3")
    (one.place / "block_2").write_bytes(b"rows 5 to 8")
    done = one.commit()
    (other.place / "block_b").write_bytes(b"rows 4 to 8")
    assert other.commit() == done == shared(place).done()
    assert {info.base_name for info in done.place.files()} == {"block_1", "block_2"}
    assert len(place.files(recursive=True)) == 3  # and the marker
