import os
import re
import tempfile

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raykd.labels.ledger import (
    OUTCOMES,
    LabelFileError,
    Ledger,
    collect,
    read_answers,
)
from raykd.store.place import Place
from raykd.store.tables import LEDGER

CLASSES = ["cat", "dog", "Grey Wolf"]
IDS = ["a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"]
CSV = "sample_id,label,outcome,annotator,time\n"


def rows(*answers, round=0, source="test"):
    """Answers as (sample_id, label or outcome[, annotator[, time]])."""
    table = []
    for sample_id, answer, *more in answers:
        annotator, time = [*more, None, None][:2]
        outcome, label = (answer, None) if answer in OUTCOMES else ("label", answer)
        values = (sample_id, outcome, label, annotator, time, source, round)
        table.append(dict(zip(LEDGER.names, values, strict=True)))
    return pa.Table.from_pylist(table, LEDGER)


def answered(table):
    return {row["sample_id"]: row["label"] or row["outcome"] for row in table.to_pylist()}


@pytest.fixture
def book(tmp_path):
    return Ledger(Place.of(tmp_path / "ledger"))


def put(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Place.of(folder / name)


def read(tmp_path, content, name="labels.csv", classes=CLASSES, known=IDS, forbidden=(), **more):
    return read_answers(put(tmp_path, name, content), classes, known, forbidden, **more)


def refused(tmp_path, content, name="labels.csv", **more):
    with pytest.raises(LabelFileError) as error:
        read(tmp_path, content, name, **more)
    return str(error.value).replace(str(tmp_path) + "/", "")


# ---------------------------------------------------------------- the ledger


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


def test_other_files_in_the_folder_are_not_read(book):
    book.append(rows(("a", "cat")))
    (name,) = os.listdir(book.place.path)
    copy = (book.place / name).read_bytes()
    (book.place / name.replace(".parquet", " (conflicted copy).parquet")).write_bytes(copy[:40])
    (book.place / "notes.txt").write_bytes(b"hello")
    assert len(book.read()) == 1


def test_the_ledger_works_where_nothing_can_be_renamed(tmp_path, monkeypatch):
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    (tmp_path / "bucket" / "ledger").mkdir(parents=True)
    monkeypatch.setattr(Place, "_resolved", property(lambda self: (store, self.uri.removeprefix("store://"))))
    book = Ledger(Place("store://bucket/ledger"))
    assert not book.place.is_local
    assert book.append(rows(("a", "cat"))).new == 1
    assert book.append(rows(("a", "cat"), ("a", "dog"))) == (1, 1, ())
    (Place("store://bucket/answers") / "x.csv").fs.create_dir("bucket/answers")
    (Place("store://bucket/answers") / "x.csv").write_bytes((CSV + "b.jpg,dog,,,\n").encode())
    assert collect(Place("store://bucket/answers"), CLASSES, IDS, (), book, 0).new == 1
    assert answered(book.current()) == {"a": "dog", "b.jpg": "dog"}


answers_st = st.tuples(
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(["cat", "dog", "unsure", "cannot_label"]),
    st.sampled_from([None, "", "ann", "bob"]),
    st.sampled_from([None, "", "1", "2"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
            done = book.append(rows(*batch, round=number, source=f"file {number}"))
            assert (done.new, done.known) == (len(fresh), len(batch) - len(fresh))
            plain += fresh
            if batch and data.draw(st.booleans()):  # an import that was done is done once more
                again = data.draw(st.sampled_from(imports[: number + 1]))
                assert book.append(rows(*again, round=9)).new == 0
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
            assert book.append(rows(*batch, round=9)).new == 0
        assert book.read().equals(table)
