"""The append-only ledger: order, repeats, kills, concurrent writers; and what its labels mean after classes changed."""

import os
import re
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from fakes import object_store
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from profiles import examples

from raykd.errors import UserError
from raykd.labels.files import import_folder
from raykd.labels.ledger import OUTCOMES, Ledger, current_labels, resolve_renamed
from raykd.store.place import Place
from raykd.store.tables import ASKED, LABELS, LEDGER


def rows(*answers, number=0, source="test"):
    """Answers as (sample_id, label or outcome[, annotator[, time]])."""
    table = []
    for sample_id, answer, *more in answers:
        annotator, time = [*more, None, None][:2]
        outcome, label = (answer, None) if answer in OUTCOMES else ("label", answer)
        values = (sample_id, outcome, label, annotator, time, source, number, "train", None)
        table.append(dict(zip(LEDGER.names, values, strict=True)))
    return pa.Table.from_pylist(table, LEDGER)


def answered(table):
    return {row["sample_id"]: row["label"] or row["outcome"] for row in table.to_pylist()}


@pytest.fixture
def book(tmp_path):
    return Ledger(Place.of(tmp_path / "ledger"))


def test_an_empty_ledger_is_an_empty_table(book):
    assert book.read().equals(LEDGER.empty_table())
    assert book.current().equals(LEDGER.empty_table())
    assert book.append(LEDGER.empty_table()) == (0, 0, ())
    assert not book.place.exists()


def test_each_import_is_one_immutable_file(book):
    assert book.append(rows(("a", "cat"), ("b", "unsure"))).new == 2
    first = {name: (book.place / name).read_bytes() for name in os.listdir(book.place.path)}
    assert book.append(rows(("a", "dog"), ("b", "unsure"))) == (1, 1, ())
    assert book.append(rows(("a", "dog"))) == (0, 1, ())
    names = sorted(os.listdir(book.place.path))
    assert len(names) == 2
    assert all(re.fullmatch(rf"00000{n}-[0-9a-f]{{16}}\.parquet", name) for n, name in enumerate(names, 1))
    assert all((book.place / name).read_bytes() == content for name, content in first.items())
    assert answered(book.current()) == {"a": "dog", "b": "unsure"}
    assert book.read().schema == LEDGER


def test_rows_of_one_append_keep_their_order_and_repeats_are_dropped(book):
    assert book.append(rows(("a", "cat"), ("a", "dog"), ("a", "cat"), ("b", "cat", "", ""), ("b", "cat"))) == (3, 2, ())
    assert [row["label"] for row in book.read().to_pylist()] == ["cat", "dog", "cat"]
    assert answered(book.current()) == {"a": "dog", "b": "cat"}
    assert book.read()["annotator"].null_count == 3  # empty text is null


@pytest.mark.slow
def test_order_is_that_of_appending_over_many_files(book):
    for n in range(60):
        book.append(rows(*[(f"s{n}-{i}", "cat") for i in range(1 + n * 7 % 11)], ("x", f"class {n}")))
    latest = [row["label"] for row in book.read().to_pylist() if row["sample_id"] == "x"]
    assert latest == [f"class {n}" for n in range(60)]
    assert answered(book.current())["x"] == "class 59"


def test_going_back_needs_a_time_and_says_so(book):
    book.append(rows(("a", "cat", "ann"), ("b", "cat")))
    book.append(rows(("a", "dog", "bob"), ("b", "unsure")))
    done = book.append(rows(("a", "cat", "ann"), ("b", "cat")))
    assert done.superseded == (
        "a: ann says 'cat' again, but the current answer is 'dog' (bob); give a time to go back",
        "b: an answer says 'cat' again, but the current answer is unsure; give a time to go back",
    )
    assert answered(book.current()) == {"a": "dog", "b": "unsure"}
    assert book.append(rows(("a", "cat", "ann", "2026-01-02"))) == (1, 0, ())
    assert answered(book.current())["a"] == "cat"
    book.append(rows(("a", "dog", "ann")))
    assert book.append(rows(("a", "cat", "ann", "2026-01-02"))) == (0, 1, ())  # the same event once more: nothing asked


def test_a_file_that_holds_the_current_answer_too_is_no_attempt_to_go_back(book):
    both = rows(("a", "cat", "ann"), ("a", "dog", "bob"))
    assert book.append(both) == (2, 0, ())
    assert book.append(both) == (0, 2, ())


@pytest.mark.parametrize(
    "bad",
    [("", "cat"), (None, "cat"), ("a", "label"), ("a", ""), ("a", None)],
    ids=["no id", "null id", "no class", "empty", "null"],
)
def test_invalid_rows_are_refused_whole(book, bad):
    with pytest.raises(ValueError, match=r"1 of 2 answers are not valid, first: .*expected a sample_id, an outcome"):
        book.append(rows(("b", "cat"), bad))
    bad_outcome = rows(("b", "cat")).set_column(1, "outcome", pa.array(["maybe"]))
    bad_both = rows(("b", "cat")).set_column(1, "outcome", pa.array(["unsure"]))
    for table in (bad_outcome, bad_both):
        with pytest.raises(ValueError, match="1 of 1 answers"):
            book.append(table)
    assert not book.place.exists()


def test_a_kill_between_write_and_rename_loses_and_doubles_nothing(book, monkeypatch):
    book.append(rows(("a", "cat")))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            book.append(rows(("a", "dog"), ("b", "dog")))
    assert len(os.listdir(book.place.path)) == 2  # the file aside is there, and is not read
    assert answered(book.read()) == {"a": "cat"}
    assert book.append(rows(("a", "dog"), ("b", "dog"))).new == 2
    assert answered(book.current()) == {"a": "dog", "b": "dog"}


def test_concurrent_imports_of_the_same_rows_double_nothing(book, monkeypatch):
    """Both read the ledger before either writes; then again with another import between them."""
    one, other = rows(("a", "cat"), ("b", "dog")), rows(("a", "dog"))
    stale = Ledger.read(book)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "read", lambda self: stale)
        book.append(one)
        book.append(other)  # from here on, sequence numbers differ although the rows read do not
        book.append(one)
        book.append(one)
    assert len(os.listdir(book.place.path)) == 4
    assert [(row["sample_id"], row["label"]) for row in book.read().to_pylist()] == [
        ("a", "cat"),
        ("b", "dog"),
        ("a", "dog"),
    ]
    assert answered(book.current()) == {"a": "dog", "b": "dog"}

    again = Ledger(book.place / "again")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "read", lambda self: stale)
        patch.setattr(Ledger, "_files", lambda self: [])
        again.append(one)
        again.append(one)
    assert len(os.listdir(again.place.path)) == 1


def test_answers_from_before_there_were_roles_are_to_learn_from(book):
    table = rows(("a", "cat")).drop_columns(["role", "probability"])
    (book.place / "000001-0123456789abcdef.parquet").write_table(table)
    assert book.current()["role"].to_pylist() == ["train"]
    assert book.append(rows(("a", "cat"), ("b", "dog"))) == (1, 1, ())


def test_what_was_asked_for_gives_its_answers_their_role_whatever_file_they_come_in(book):
    asked = pa.table([["a", "b"], [0, 1], [np.nan] * 2, pa.array([None, 0.25]), ["audit", "train"]], schema=ASKED)
    told = Ledger(book.place, asked=asked)
    audited = rows(("c", "cat")).set_column(LEDGER.names.index("role"), "role", pa.array(["audit"]))
    told.append(pa.concat_tables([rows(("a", "cat"), ("b", "dog")), audited]))
    found = {row["sample_id"]: (row["role"], row["probability"]) for row in book.read().to_pylist()}
    assert found == {"a": ("audit", None), "b": ("train", 0.25), "c": ("train", None)}


def test_other_files_in_the_folder_are_not_read(book):
    book.append(rows(("a", "cat")))
    (name,) = os.listdir(book.place.path)
    copy = (book.place / name).read_bytes()
    (book.place / name.replace(".parquet", " (conflicted copy).parquet")).write_bytes(copy[:40])
    (book.place / "notes.txt").write_bytes(b"hello")
    assert len(book.read()) == 1


def test_the_ledger_works_where_nothing_can_be_renamed(tmp_path, monkeypatch):
    book = Ledger(object_store(monkeypatch, "store://bucket", files=tmp_path) / "ledger")
    book.place.fs.create_dir(book.place.path)
    assert not book.place.is_local
    assert book.append(rows(("a", "cat"))).new == 1
    assert book.append(rows(("a", "cat"), ("a", "dog"))) == (1, 1, ())
    answers = Place("store://bucket/answers")
    answers.fs.create_dir("bucket/answers")
    (answers / "x.csv").write_bytes(b"sample_id,label\nb.jpg,dog\n")
    assert import_folder(answers, ["cat", "dog"], ["b.jpg"], (), book, round_number=0).new == 1
    assert answered(book.current()) == {"a": "dog", "b.jpg": "dog"}


answers_st = st.tuples(
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(["cat", "dog", "unsure", "cannot_label"]),
    st.sampled_from([None, "", "ann", "bob"]),
    st.sampled_from([None, "", "1", "2"]),
)


@examples(60, suppress_health_check=[HealthCheck.too_slow])
@given(imports=st.lists(st.lists(answers_st, max_size=5), max_size=6), data=st.data())
def test_any_interleaving_equals_a_plain_list_and_repeats_change_nothing(imports, data):
    with tempfile.TemporaryDirectory() as folder:
        book, plain = Ledger(Place.of(folder)), []
        for number, batch in enumerate(imports):
            fresh = []
            for answer in batch:
                key = tuple(value or None for value in answer)
                if key not in plain and key not in fresh:
                    fresh.append(key)
            done = book.append(rows(*batch, number=number, source=f"file {number}"))
            assert (done.new, done.known) == (len(fresh), len(batch) - len(fresh))
            plain += fresh
            if batch and data.draw(st.booleans()):  # an import that was done is done once more
                again = data.draw(st.sampled_from(imports[: number + 1]))
                assert book.append(rows(*again, number=9)).new == 0
        table = book.read()
        kept = [
            (row["sample_id"], row["label"] or row["outcome"], row["annotator"], row["time"])
            for row in table.to_pylist()
        ]
        assert kept == plain
        current = book.current()
        assert answered(current) == {sample_id: answer for sample_id, answer, *_ in plain}
        assert current["sample_id"].to_pylist() == sorted(answered(current))
        for batch in data.draw(st.permutations(imports)):
            assert book.append(rows(*batch, number=9)).new == 0
        assert book.read().equals(table)


def test_an_answer_is_for_training_unless_it_says_otherwise(book):
    bare = rows(("a", "cat"), ("b", "dog")).drop_columns(["role", "probability"])
    assert book.append(bare).new == 2
    audit = rows(("c", "cat")).set_column(7, "role", pa.array(["audit"])).set_column(8, "probability", pa.array([0.25]))
    assert book.append(audit).new == 1
    kept = book.read()
    assert kept.schema == LEDGER
    assert kept["role"].to_pylist() == ["train", "train", "audit"]
    assert kept["probability"].to_pylist() == [None, None, 0.25]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("role", "judge"),
        ("probability", 0.0),
        ("probability", 1.5),
        ("probability", -0.1),
        ("probability", float("nan")),
    ],
)
def test_a_role_or_a_probability_that_is_none_is_refused(book, column, value):
    good = rows(("a", "cat"))
    bad = good.set_column(
        LEDGER.get_field_index(column), LEDGER.field(column), pa.array([value], LEDGER.field(column).type)
    )
    with pytest.raises(UserError, match=r"1 of 1 answers are not valid, .*a role \(train, audit\) and, of an image"):
        book.append(bad)
    assert not book.place.exists()


# ---------------------------------------------------------------- classes that were renamed


def renamed_by_steps(renamed, name):
    """The plain way: one step after another, until there is none or one too many."""
    for _ in range(len(renamed) + 1):
        if name not in renamed:
            return name
        name = renamed[name]
    return None  # a circle


NAMES = st.sampled_from("abcdef")


@given(st.dictionaries(NAMES, NAMES, max_size=6))
def test_old_names_lead_to_their_ends_or_are_refused_when_they_lead_in_a_circle(renamed):
    ends = {name: renamed_by_steps(renamed, name) for name in renamed}
    if None in ends.values():
        with pytest.raises(UserError, match=r"labels.renamed leads in a circle: '.' -> .*in the end, a class of today"):
            resolve_renamed(renamed)
    else:
        assert resolve_renamed(renamed) == ends


def test_a_circle_is_shown_as_it_goes_round():
    with pytest.raises(UserError, match="'a' -> 'b' -> 'a';"):
        resolve_renamed({"a": "b", "b": "a"})
    with pytest.raises(UserError, match="'a' -> 'a';"):
        resolve_renamed({"a": "a"})


def test_labels_are_read_by_todays_names_and_stay_as_they_were_on_disk(book):
    book.append(rows(("a", "puppy"), ("b", "whelp"), ("c", "cat"), ("d", "unsure")))
    today = Ledger(book.place, {"whelp": "puppy", "puppy": "dog"})
    labels = current_labels(today, ["cat", "dog"])
    assert labels.schema == LABELS
    assert answered(labels) == {"a": "dog", "b": "dog", "c": "cat", "d": "unsure"}
    assert answered(book.current()) == {"a": "puppy", "b": "whelp", "c": "cat", "d": "unsure"}


def test_what_was_imported_before_a_class_was_renamed_is_known_after_it(book):
    """Else a file that is still in the answers folder would be appended again, after what was said since."""
    before = rows(("a", "puppy", "ann"))
    book.append(before)
    book.append(rows(("a", "cat", "bob")))
    today = Ledger(book.place, {"puppy": "dog"})
    for again in (before, rows(("a", "dog", "ann"))):
        done = today.append(again)
        assert (done.new, done.known) == (0, 1)
        assert done.superseded == (
            "a: ann says 'dog' again, but the current answer is 'cat' (bob); give a time to go back",
        )
    assert answered(today.current()) == {"a": "cat"}


def test_labels_of_no_class_are_counted_and_it_is_said_what_to_write(book):
    book.append(rows(("a", "puppy"), ("b", "puppy"), ("c", "cat"), ("d", "whelp"), ("e", "cannot_label")))
    with pytest.raises(UserError) as error:
        current_labels(book, ["cat", "dog"])
    assert str(error.value) == (
        f"{book.place} has labels that are no class: 'puppy' (2 labels), 'whelp' (1 label); say what they are called "
        "now (labels.renamed: {puppy: ...}), or put them back among the classes; known: cat, dog"
    )
    with pytest.raises(UserError, match=r"no class: 'whelp' \(1 label\)"):
        current_labels(Ledger(book.place, {"puppy": "dog"}), ["cat", "dog"])
    book.append(rows(("d", "dog")))
    assert answered(current_labels(Ledger(book.place, {"puppy": "dog"}), ["cat", "dog"]))["d"] == "dog"


def test_an_empty_ledger_has_no_labels(book):
    assert current_labels(book, ["cat"]).equals(LABELS.empty_table())
