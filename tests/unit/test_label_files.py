"""What people write: every format, what a label means, what is refused and where it stands, and tasks.csv."""

import contextlib
import csv
import io
import json
import os
import pickle
import re
import tempfile
from datetime import datetime
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from raykd.errors import LabelFileError, UserError
from raykd.labels import files
from raykd.labels.files import ImportSummary, check_given, import_folder, labels_from, read_answers, write_tasks
from raykd.labels.ledger import KEY, OUTCOMES, Ledger
from raykd.store.place import Place
from raykd.store.tables import LEDGER

CLASSES = ["cat", "dog", "Grey Wolf"]
IDS = ["a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"]
CSV = "sample_id,label,outcome,annotator,time\n"


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


def said(*answers):
    """Answers as (sample_id, label or outcome[, annotator[, time]])."""
    rows = []
    for sample_id, answer, *more in answers:
        label, outcome = (None, answer) if answer in OUTCOMES else (answer, "label")
        rows.append(dict(zip(COLUMNS, (sample_id, label, outcome, *[*more, None, None][:2]), strict=True)))
    return rows


# ---------------------------------------------------------------- reading label files

COLUMNS = list(files.COLUMNS)
FULL = [
    {"sample_id": "a.jpg", "label": "cat", "annotator": "ann", "time": "2026-01-01", "uri": "x", "rank": 3},
    {"sample_id": "b.jpg", "label": None, "outcome": "unsure"},
    {"sample_id": "c.jpg", "label": None, "outcome": None},
    {"sample_id": "sub/d.jpg", "label": "none of the classes", "annotator": " bob "},
]


def full(ending):
    if ending == "jsonl":
        return "\n".join(map(json.dumps, FULL)).encode()
    if ending == "parquet":
        sink = io.BytesIO()
        names = ["sample_id", "label", "outcome", "annotator", "time", "rank"]
        pq.write_table(pa.table({name: [row.get(name) for row in FULL] for name in names}), sink)
        return sink.getvalue()
    out = io.StringIO()
    writer = csv.DictWriter(out, ["uri", *KEY, "rank"], delimiter={"csv": ",", "semicolon": ";", "tab": "\t"}[ending])
    writer.writeheader()
    writer.writerows(FULL)
    return out.getvalue().encode()


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tab", "jsonl", "parquet"])
def test_every_format_gives_the_same_answers(tmp_path, kind):
    name = f"x.{kind}" if kind in ("jsonl", "parquet") else "x.csv"
    expected = said(
        ("a.jpg", "cat", "ann", "2026-01-01"),
        ("b.jpg", "unsure"),
        ("sub/d.jpg", "none_of_the_classes", "bob"),
    )
    contents = (
        [full(kind)]
        if kind == "parquet"
        else [full(kind), b"\xef\xbb\xbf" + full(kind), full(kind).replace(b"\r\n", b"\n")]
    )
    for content in contents:
        table, unanswered = read(tmp_path, content, name, round_number=4)
        assert table.select(COLUMNS).to_pylist() == expected
        assert set(zip(*table.select(["source", "round"]).to_pydict().values(), strict=True)) == {(name, 4)}
        assert table.schema == LEDGER
        assert unanswered == 1


@pytest.mark.parametrize(
    "known", [IDS, set(IDS), pa.array(IDS), pa.chunked_array([IDS[:2], IDS[2:]]), dict.fromkeys(IDS)]
)
def test_known_ids_come_in_any_shape(tmp_path, known):
    assert len(read(tmp_path, "sample_id,label\nc.jpg,cat\n", known=known).rows) == 1
    assert "line 2: sample 'c.jpg' is a" in refused(tmp_path, "sample_id,label\nc.jpg,cat\n", forbidden=known)


def test_no_ids_at_all_is_an_error_of_the_row(tmp_path):
    empty = pa.chunked_array([], pa.string())
    assert "there is no sample to label" in refused(tmp_path, "sample_id,label\nc.jpg,cat\n", known=empty)


@pytest.mark.parametrize(
    "content", ["", "\ufeff", "\r\n\n", "sample_id,label\n", "sample_id,label", "sample_id,label\n,\n\n , \n"]
)
def test_a_file_with_nothing_in_it_has_no_answers(tmp_path, content):
    assert read(tmp_path, content) == (LEDGER.empty_table(), 0)


def test_an_empty_jsonl_or_parquet_table_has_no_answers(tmp_path):
    assert len(read(tmp_path, "\n", "x.jsonl").rows) == 0
    sink = io.BytesIO()
    pq.write_table(pa.table({"sample_id": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), sink)
    assert read(tmp_path, sink.getvalue(), "x.parquet") == (LEDGER.empty_table(), 0)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cat", "cat"),
        ("  DOG ", "dog"),
        ("grey wolf", "Grey Wolf"),
        ("2", "Grey Wolf"),
        ("Unsure", "unsure"),
        ("Cannot Label", "cannot_label"),
        ("cannot-label", "cannot_label"),
        ("NONE of the  classes", "none_of_the_classes"),
    ],
)
def test_what_text_means(tmp_path, written, meant):
    assert answered(read(tmp_path, f'sample_id,label\na.jpg,"{written}"\n').rows) == {"a.jpg": meant}
    line = json.dumps({"sample_id": "a.jpg", "label": written})
    assert answered(read(tmp_path, line, "x.jsonl").rows) == {"a.jpg": meant}


@pytest.mark.parametrize(
    ("classes", "label", "meant"),
    [
        (["zero", "one"], 1, "one"),
        (["zero", "one"], 1.0, "one"),
        (["zero", "one"], "1", "one"),
        (["zero", "one"], 2, "no class has index 2; there are 2, from 0"),
        (["zero", "one"], "2", "no class has index 2"),
        (["zero", "one"], -1, "no class has index -1"),
        (["zero", "one"], 0.5, "label 0.5 (float); expected a class name or a class index"),
        (["zero", "one"], True, "label True (bool)"),
        (["zero", "one"], ["one"], "label ['one'] (list)"),
        (["0", "1"], 1, "1"),
        (["0", "1"], "1", "1"),
        (["1", "2", "3"], "1", "1"),
        (["1", "2", "3"], "0", "unknown label '0'"),
        (["1", "2", "3"], 1, "label 1 could be a class index or a name such as '1'; write names as text"),
        (["unsure", "sure"], "unsure", "unsure"),
        (["Cat", "cat"], "cat", "cat"),
        (["Cat", "cat"], "CAT", "label 'CAT' could be 'Cat' or 'cat'; write it exactly"),
        (["café", "bar"], "CAFE\u0301", "café"),
        (["-1", "+1"], "'+1", "+1"),
        (["'tis", "dog"], "'tis", "'tis"),
    ],
)
def test_what_a_label_means_with_awkward_classes(tmp_path, classes, label, meant):
    line = json.dumps({"sample_id": "a.jpg", "label": label})
    if meant in classes:
        table = read(tmp_path, line, "x.jsonl", classes=classes).rows
        assert (table["outcome"][0].as_py(), table["label"][0].as_py()) == ("label", meant)
    else:
        assert f"x.jsonl, line 1: {meant}" in refused(tmp_path, line, "x.jsonl", classes=classes)


def test_a_class_with_the_name_of_an_outcome_leaves_the_outcome_column(tmp_path):
    table = read(tmp_path, CSV + "a.jpg,,unsure,,\nb.jpg,unsure,,,\n", classes=["unsure", "sure"]).rows
    assert table["outcome"].to_pylist() == ["unsure", "label"]


def test_parquet_columns_of_other_types(tmp_path):
    sink = io.BytesIO()
    table = {
        "Sample_ID": pa.array([7, 8, 9]),
        "label": pa.array([1.0, float("nan"), 0.0]),
        "time": pa.array([datetime(2026, 1, 2)] * 3, pa.timestamp("ns")),
        "image": pa.array([b"..."] * 3),
    }
    pq.write_table(pa.table(table), sink)
    answers = read(tmp_path, sink.getvalue(), "x.parquet", known=["7", "8", "9"])
    assert answered(answers.rows) == {"7": "dog", "9": "cat"}
    assert answers.rows["time"][0].as_py() == "2026-01-02 00:00:00.000000000"
    assert answers.unanswered == 1
    pq.write_table(
        pa.table({"sample_id": ["a.jpg"], "label": pa.array(["dog"]).dictionary_encode()}), sink := io.BytesIO()
    )
    assert answered(read(tmp_path, sink.getvalue(), "x.parquet").rows) == {"a.jpg": "dog"}


BAD = {
    "unknown label": ("a.jpg,cta,,,", "unknown label 'cta'; did you mean 'cat'?"),
    "copied guess": ("a.jpg,grey wolf (0.87),,,", "did you mean 'Grey Wolf'?"),
    "nothing near": ("a.jpg,zebra,,,", "classes: 'cat', 'dog', 'Grey Wolf'; or unsure, cannot_label, none"),
    "unknown id": ("d.jpg,cat,,,", "unknown sample_id 'd.jpg'; did you mean 'sub/d.jpg'?"),
    "strange id": ("zzz,cat,,,", "unknown sample_id 'zzz'; ids look like 'a.jpg'"),
    "test id": ("t.jpg,cat,,,", "sample 't.jpg' is a test image: measured on, never learned from"),
    "no id": (",cat,,,", "sample_id is ''; expected the id of a sample"),
    "no label": ("a.jpg,,label,,", "the outcome is 'label', but the label is empty"),
    "both": ("a.jpg,cat,unsure,,", "the outcome is 'unsure', yet there is a label, 'cat'; keep one of the two"),
    "outcome": ("a.jpg,,unshure,,", "unknown outcome 'unshure'; did you mean 'unsure'?"),
    "far outcome": ("a.jpg,,42,,", "unknown outcome '42'; known: cannot_label, label, none_of_the_classes, unsure"),
    "cells": ("a.jpg,cat,,,,x", "6 cells under a header of 5; put quotes around a cell with ','"),
    "quote": ('"a.jpg"x,cat', "the row that begins here is not CSV ("),
    "open quote": ('a.jpg,"cat,,,\nb.jpg,cat,,,', "is a quote missing or never closed?"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_its_true_line(tmp_path, case):
    row, message = BAD[case]
    before = '\r\nb.jpg,cat,,"of two\r\nlines",\r\n\r\n'
    text = refused(tmp_path, "\ufeff" + CSV.strip() + before + row + "\r\n", forbidden={"t.jpg": "test"})
    first, second = text.split("\n")
    assert first == "labels.csv: 1 problem, so nothing of this file was imported"
    assert second.startswith("labels.csv, line 5: ")
    assert message in second


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "sample_id;class\na;cat\n", "x.csv, line 1: the columns are 'sample_id', 'class'; expected"),
        ("x.csv", "\nid,label\na,cat\n", "x.csv, line 2: the columns are 'id', 'label'; expected 'sample_id'"),
        ("x.csv", "sample_id,label,Label\n", "x.csv, line 1: there is more than one column 'label'"),
        ("x.csv", b"sample_id,label\na.jpg,cat\nb.jpg,caf\xe9\n", "x.csv, line 3: not UTF-8 (byte 0xe9); save"),
        ("x.csv", "sample_id,label".encode("utf-16"), "x.csv, line 1: not UTF-8 (byte 0xff)"),
        ("x.jsonl", '{"sample_id": "a.jpg", "label": "cat"}\n\n{"sample_id":\n', "line 3: not JSON: Expecting value"),
        ("x.jsonl", '["a.jpg", "cat"]', 'x.jsonl, line 1: \'["a.jpg", "cat"]\'; expected an object such as {'),
        ("x.jsonl", '{"sample_id": "a.jpg", "class": "cat"}', "x.jsonl: the columns are 'class', 'sample_id'"),
        ("x.jsonl", '{"sample_id": 1.5, "label": "cat"}', "x.jsonl, line 1: sample_id is 1.5; expected the id"),
        ("x.parquet", b"PAR0", "x.parquet: not a Parquet file that can be read"),
        ("x.txt", "", "x.txt: unknown kind of file; expected .csv, .jsonl, .parquet"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    assert message in refused(tmp_path, content, name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LabelFileError, match=r"gone\.csv: no such file"):
        read_answers(Place.of(tmp_path / "gone.csv"), CLASSES, IDS)


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path):
    pq.write_table(pa.table({"sample_id": ["a.jpg", "b.jpg"], "label": ["cat", "cow"]}), sink := io.BytesIO())
    assert "x.parquet, row 2: unknown label 'cow'" in refused(tmp_path, sink.getvalue(), "x.parquet")
    pq.write_table(pa.table({"sample_id": ["a.jpg"], "text": ["cat"]}), sink := io.BytesIO())
    assert "x.parquet: the columns are 'sample_id', 'text'" in refused(tmp_path, sink.getvalue(), "x.parquet")


def test_the_same_sample_twice_by_one_annotator_must_agree(tmp_path):
    twice = CSV + "a.jpg,cat,,ann,\na.jpg,dog,,bob,\na.jpg,Cat,,ann,\n"
    assert answered(read(tmp_path, twice).rows) == {"a.jpg": "cat"}
    text = refused(tmp_path, twice + "a.jpg,unsure,,ann,\n")
    assert "labels.csv, line 5: sample 'a.jpg' is 'unsure' here, but 'cat' by ann in line 2; keep one" in text


def test_twenty_problems_are_shown_in_order_and_the_rest_counted(tmp_path):
    lines = [f"{'a.jpg' if n % 2 else 'nope'},{'cow' if n % 2 else 'cat'}" for n in range(50)]
    text = refused(tmp_path, "sample_id,label\n" + "\n".join(lines)).split("\n")
    assert text[0] == "labels.csv: 50 problems, so nothing of this file was imported"
    assert [int(re.search(r"line (\d+)", line)[1]) for line in text[1:-1]] == list(range(2, 22))
    assert text[-1] == "... and 30 more"


def test_a_file_that_is_wrong_all_over_gets_hints_only_where_they_are_shown(tmp_path, monkeypatch):
    classes = [f"class {n}" for n in range(1000)]
    content = "sample_id,label\n" + "".join(f"a.jpg,clas {n % 1000}\nz{n},class 1\n" for n in range(5000))
    searches, near = [], get_close_matches
    monkeypatch.setattr(
        files.difflib, "get_close_matches", lambda *args, **kw: searches.append(args) or near(*args, **kw)
    )
    text = refused(tmp_path, content, classes=classes).split("\n")
    assert len(searches) <= 2 * files.MAX_SHOWN  # of 10,000 wrong rows
    assert len(text) == 22
    assert all("did you mean" in line or "ids look like" in line for line in text[1:-1])


def test_the_error_survives_a_trip_between_processes(tmp_path):
    with pytest.raises(LabelFileError) as error:
        read(tmp_path, "sample_id,label\na.jpg,cow\n")
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_large_pool_still_gets_a_hint_for_an_id_without_its_folder(tmp_path):
    known = pa.array([f"images/cls/{n:06d}.jpg" for n in range(50_000)])
    text = refused(tmp_path, "sample_id,label\ncls/012345.jpg,cat\nx(1.jpg,cat\n", known=known)
    assert "did you mean 'images/cls/012345.jpg'?" in text
    assert "unknown sample_id 'x(1.jpg'; ids look like 'images/cls/000000.jpg'" in text


# ---------------------------------------------------------------- tasks.csv


def guesses(probs, classes):
    order = np.argsort(-probs, axis=1, kind="stable").tolist()
    return {
        f"guess_{i + 1}": [f"{classes[best[i]]} ({probs[n, best[i]]:.2f})" for n, best in enumerate(order)]
        for i in range(min(3, len(classes)))
    }


def tasks_table(ids, classes=CLASSES):
    probs = np.random.default_rng(0).dirichlet(np.ones(len(classes)), len(ids))
    columns = {"sample_id": ids, "uri": [f"/pool/{name}" for name in ids], "rank": list(range(len(ids)))}
    return pa.table(columns | guesses(probs, classes))


def test_tasks_are_written_in_rank_order_with_the_best_guesses(tmp_path):
    table = pa.table(
        {"sample_id": ["b.jpg", "a.jpg"], "uri": ["/b.jpg", "/a, b.jpg"], "rank": [1, 0]}
        | guesses(np.array([[0.2, 0.2, 0.6], [0.874, 0.1, 0.026]]), CLASSES)
    )
    place = Place.of(tmp_path / "round_000" / "tasks.csv")
    assert write_tasks(place, table)
    assert place.read_bytes().decode() == (
        '"sample_id","uri","rank","guess_1","guess_2","guess_3","label","annotator"\n'
        '"a.jpg","/a, b.jpg","0","cat (0.87)","dog (0.10)","Grey Wolf (0.03)","",""\n'
        '"b.jpg","/b.jpg","1","Grey Wolf (0.60)","cat (0.20)","dog (0.20)","",""\n'
    )
    assert read_answers(place, CLASSES, IDS) == (LEDGER.empty_table(), 2)


def test_two_classes_have_two_guesses(tmp_path):
    place = Place.of(tmp_path / "tasks.csv")
    assert write_tasks(place, tasks_table(["a"], ["yes", "no"]))
    cells = next(csv.reader(place.read_bytes().decode().split("\n")[1:]))
    assert re.fullmatch(r"a,/pool/a,0,(yes|no) \(0.\d\d\),(yes|no) \(0.\d\d\),,,", ",".join(cells))


def test_tasks_that_people_may_have_filled_are_left_alone(tmp_path):
    place = put(tmp_path, "tasks.csv", "sample_id,label\na.jpg,cat\n")
    assert not write_tasks(place, tasks_table(IDS))
    assert place.read_bytes() == b"sample_id,label\na.jpg,cat\n"


def test_tasks_have_a_bom_only_when_excel_needs_one(tmp_path):
    write_tasks(one := Place.of(tmp_path / "1.csv"), tasks_table(["a"]))
    write_tasks(two := Place.of(tmp_path / "2.csv"), tasks_table(["ä"]))
    assert one.read_bytes()[:4] == b'"sam'
    assert two.read_bytes()[:3] == b"\xef\xbb\xbf"


NASTY = [
    "=1+1",
    "'=1+1",
    "''=1+1",
    "+a",
    "-b.jpg",
    "@c",
    " =d",
    "\t=e",
    "\uff1df",
    "'g",
    "'",
    "a;=h",
    "a\t@i",
    'j"k',
    "l,m",
    "n\r\no",
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_cell_of_tasks_is_a_formula_under_any_separator(tmp_path, separator):
    classes = ["=cmd()", "+1", "a;@b"]
    write_tasks(place := Place.of(tmp_path / "tasks.csv"), tasks_table(NASTY, classes))
    text = place.read_bytes().decode("utf-8-sig")
    for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        for cell in cells:
            assert not re.match(r"[\s\"]*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell), cell


text_st = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)
ids_st = st.lists(
    (text_st | st.text("=+-@'\t ;,\"\r\na", min_size=1, max_size=5)).filter(str.strip),
    min_size=1,
    max_size=8,
    unique=True,
)


@examples(150)
@given(ids=ids_st, mark=st.sampled_from(",;\t"), bom=st.booleans())
def test_every_id_comes_back_from_tasks(ids, mark, bom):
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(place := Place.of(folder) / "tasks.csv", tasks_table(ids))
        lines = list(csv.reader(io.StringIO(place.read_bytes().decode("utf-8-sig"), newline="")))
        out = io.StringIO()  # as a spreadsheet saves it
        writer = csv.writer(out, delimiter=mark)
        writer.writerows([lines[0]] + [[*cells[:6], "dog", "ann"] for cells in lines[1:]])
        (Place.of(folder) / "filled.csv").write_bytes(out.getvalue().encode("utf-8-sig" if bom else "utf-8"))
        table, unanswered = read_answers(Place.of(folder) / "filled.csv", CLASSES, [*NASTY, *ids])
        assert table["sample_id"].to_pylist() == ids
        assert set(table["label"].to_pylist()) == {"dog"}
        assert unanswered == 0


# ---------------------------------------------------------------- a folder of label files


def test_a_folder_is_imported_by_name_and_twice_changes_nothing(tmp_path, book):
    folder = tmp_path / "answers"
    assert import_folder(Place.of(folder), CLASSES, IDS, (), book, round_number=0) == ImportSummary(0, 0, 0, 0, (), ())
    put(folder, "2.csv", "sample_id,label\na.jpg,dog\nb.jpg,\n")
    put(folder, "1.CSV", "sample_id,label\na.jpg,cat\n")
    put(folder, "3.jsonl", full("jsonl"))
    put(folder, "4.parquet", full("parquet"))
    for name in (".~lock.2.csv#", "~$2.csv", ".5.csv"):
        put(folder, name, "rubbish")
    put(folder, "labels.xlsx", "rubbish")
    (folder / "deeper").mkdir()
    put(folder / "deeper", "6.csv", "rubbish")
    first = import_folder(Place.of(folder), CLASSES, pa.array(IDS), {}, book, round_number=3)
    assert (first.files, first.new, first.known, first.unanswered, first.ignored) == (4, 5, 3, 3, ("labels.xlsx",))
    table = book.read()
    assert table["source"].to_pylist() == ["1.CSV", "2.csv", "3.jsonl", "3.jsonl", "3.jsonl"]
    assert set(table["round"].to_pylist()) == {3}
    again = import_folder(Place.of(folder), CLASSES, IDS, (), book, round_number=4)
    assert (again.new, again.known) == (0, 8)
    assert book.read().equals(table)
    assert "4 label files: 0 new answers, 8 known, 3 not given yet; " in str(again)
    assert "a.jpg: an answer says 'dog' again, but the current answer is 'cat' (ann); give a time" in str(again)
    assert str(again).endswith("; not read: labels.xlsx")


def test_an_edited_file_gives_the_new_answer(tmp_path, book):
    folder = tmp_path / "answers"
    for label, current in (("cat", "cat"), ("dog", "dog"), ("cat", "dog")):
        put(folder, "a.csv", f"sample_id,label\na.jpg,{label}\n")
        done = import_folder(Place.of(folder), CLASSES, IDS, (), book, round_number=0)
        assert answered(book.current()) == {"a.jpg": current}
    assert len(done.superseded) == 1
    put(folder, "a.csv", "sample_id,label,time\na.jpg,cat,again\n")
    assert import_folder(Place.of(folder), CLASSES, IDS, (), book, round_number=0).superseded == ()
    assert answered(book.current()) == {"a.jpg": "cat"}


def test_a_bad_file_stops_after_the_good_ones_and_nothing_of_it_is_applied(tmp_path, book):
    folder = tmp_path / "answers"
    put(folder, "1.csv", "sample_id,label\na.jpg,cat\n")
    put(folder, "2.csv", "sample_id,label\nb.jpg,cat\nc.jpg,cow\n")
    put(folder, "3.csv", "sample_id,label\nsub/d.jpg,cat\n")
    with pytest.raises(LabelFileError, match=r"answers/2.csv, line 3: unknown label 'cow'"):
        import_folder(Place.of(folder), CLASSES, IDS, (), book, round_number=0)
    assert answered(book.read()) == {"a.jpg": "cat"}
    put(folder, "2.csv", "sample_id,label\nb.jpg,cat\nc.jpg,dog\n")
    assert import_folder(Place.of(folder), CLASSES, IDS, (), book, round_number=0).new == 3
    assert answered(book.current()) == {"a.jpg": "cat", "b.jpg": "cat", "c.jpg": "dog", "sub/d.jpg": "cat"}


@pytest.mark.slow
@examples(25)
@given(
    files=st.dictionaries(
        st.sampled_from(["a.csv", "b.csv", "c.jsonl"]),
        st.dictionaries(st.sampled_from(IDS), st.sampled_from([*CLASSES, "unsure", ""]), min_size=1),
    ),
    kill_at=st.integers(0, 3),
)
def test_an_import_killed_anywhere_and_repeated_equals_one_that_was_not(files, kill_at):
    with tempfile.TemporaryDirectory() as folder:
        for name, labels in files.items():
            if name.endswith("csv"):
                content = "sample_id,label\n" + "".join(f"{sample_id},{label}\n" for sample_id, label in labels.items())
            else:
                content = "".join(
                    json.dumps({"sample_id": one, "label": label}) + "\n" for one, label in labels.items()
                )
            (Place.of(folder) / "answers" / name).write_bytes(content.encode())
        whole, killed = Ledger(Place.of(folder) / "whole"), Ledger(Place.of(folder) / "killed")
        import_folder(Place.of(folder) / "answers", CLASSES, IDS, (), whole, round_number=0)

        replaced = 0

        def kill(source, target, replace=os.replace):
            nonlocal replaced
            if replaced == kill_at:
                raise KeyboardInterrupt
            replaced += 1
            replace(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", kill)
            with contextlib.suppress(KeyboardInterrupt):
                import_folder(Place.of(folder) / "answers", CLASSES, IDS, (), killed, round_number=0)
        import_folder(Place.of(folder) / "answers", CLASSES, IDS, (), killed, round_number=0)
        assert killed.read().equals(whole.read())
        assert killed.current().equals(whole.current())


# ---------------------------------------------------------------- old names of classes

TODAY = ["cat", "dog"]
RENAMED = {"puppy": "dog", "whelp": "puppy", "Dog": "dog"}


@pytest.mark.parametrize("written", ["puppy", " PUPPY", "whelp", "Dog", "dog", "DOG"])
def test_an_old_name_means_the_class_that_has_taken_its_place(tmp_path, written):
    content = f"sample_id,label\na.jpg,{written}\n"
    assert answered(read(tmp_path, content, classes=TODAY, renamed=RENAMED).rows) == {"a.jpg": "dog"}


def test_an_old_and_a_new_name_do_not_contradict_each_other(tmp_path):
    content = "sample_id,label\na.jpg,puppy\na.jpg,dog\n"
    assert set(read(tmp_path, content, classes=TODAY, renamed=RENAMED).rows["label"].to_pylist()) == {"dog"}
    text = refused(tmp_path, content + "a.jpg,cat\n", classes=TODAY, renamed=RENAMED)
    assert "line 4: sample 'a.jpg' is 'cat' here, but 'dog' in line 2; keep one" in text


def test_names_that_meet_in_two_classes_are_still_refused(tmp_path):
    text = refused(tmp_path, "sample_id,label\na.jpg,PUPPY\n", classes=TODAY, renamed={"puppy": "dog", "Puppy": "cat"})
    assert "label 'PUPPY' could be 'puppy' or 'Puppy'; write it exactly" in text


@pytest.mark.parametrize("label", [1, "1"])
def test_an_index_could_be_one_of_before_and_is_refused_where_classes_were_renamed(tmp_path, label):
    line = json.dumps({"sample_id": "a.jpg", "label": label})
    assert answered(read(tmp_path, line, "x.jsonl", classes=TODAY).rows) == {"a.jpg": "dog"}
    text = refused(tmp_path, line, "x.jsonl", classes=TODAY, renamed=RENAMED)
    assert "label 1 could be an index of the classes before or after labels.renamed; write names as text" in text


def test_a_file_that_stays_in_the_folder_is_known_after_a_class_was_renamed(tmp_path, book):
    folder = tmp_path / "answers"
    put(folder, "1.csv", "sample_id,label\na.jpg,puppy\n")
    put(folder, "2.csv", "sample_id,label,annotator\na.jpg,cat,bob\n")
    import_folder(Place.of(folder), ["cat", "puppy"], IDS, (), book, round_number=0)
    renamed = {"puppy": "dog"}
    today = Ledger(book.place, renamed)
    done = import_folder(Place.of(folder), TODAY, IDS, (), today, renamed, round_number=1)
    assert (done.new, done.known) == (0, 2)
    assert answered(today.current()) == {"a.jpg": "cat"}


# ---------------------------------------------------------------- labels from elsewhere


@pytest.fixture
def campaign(tmp_path):
    """The folder of a campaign with answers: one that was changed, one by Ann, one without a class."""
    book = Ledger(Place.of(tmp_path / "other") / "ledger")
    table = [
        {"sample_id": "a.jpg", "outcome": "label", "label": "cow", "round": 0},
        {"sample_id": "a.jpg", "outcome": "label", "label": "cat", "round": 1},
        {"sample_id": "b.jpg", "outcome": "label", "label": "dog", "annotator": "ann", "source": "x.csv", "round": 2},
        {"sample_id": "c.jpg", "outcome": "unsure", "round": 2, "role": "audit", "probability": 0.5},
    ]
    book.append(pa.Table.from_pylist(table, LEDGER))
    return Place.of(tmp_path / "other")


def test_labels_come_from_a_campaign_or_its_ledger_in_order_with_who_gave_them(campaign, book):
    for place in (campaign, campaign / "ledger"):
        rows = labels_from(place, CLASSES, IDS)
        assert rows.schema == LEDGER
        assert set(rows["round"].to_pylist()) == {0}
        assert rows.drop_columns("round").equals(Ledger(campaign / "ledger").read().drop_columns("round"))
        book.append(rows)
    assert answered(book.current()) == {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "unsure"}
    assert len(book.read()) == 4


def test_labels_come_from_a_file_as_of_round_0(tmp_path):
    rows = labels_from(put(tmp_path, "x.csv", "sample_id,label\na.jpg,cat\n"), CLASSES, IDS)
    assert answered(rows) == {"a.jpg": "cat"}
    assert rows["round"].to_pylist() == [0]


def test_labels_from_a_campaign_mean_todays_classes_or_are_refused(campaign):
    with pytest.raises(
        UserError, match=r"ledger has labels that are no class: 'dog' \(1 label\); say what they are called"
    ):
        labels_from(campaign, ["cat", "hound"], IDS)
    assert answered(labels_from(campaign, ["cat", "hound"], IDS, (), {"dog": "hound"}))["b.jpg"] == "hound"


def test_labels_of_images_that_are_not_here_or_are_measured_on_are_refused(campaign):
    with pytest.raises(UserError, match=r"1 of the 3 images labeled in .*ledger are not in the pool, such as 'c\.jpg'"):
        labels_from(campaign, CLASSES, ["a.jpg", "b.jpg"])
    with pytest.raises(
        UserError, match=r"2 of the 3 .* are test or validation images here, such as 'a\.jpg'; give that"
    ):
        labels_from(campaign, CLASSES, ["c.jpg"], {"a.jpg": "test", "b.jpg": "val"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", r"there is no .*gone; expected a label file \(\.csv, \.jsonl, \.parquet\), or the folder of a ledger"),
        ("answers", r"no answer in .*answers; expected a label file"),
        ("x.xlsx", r"x\.xlsx: unknown kind of file; expected \.csv"),
    ],
)
def test_labels_from_anything_else_are_refused_saying_what_is_taken(tmp_path, name, message):
    put(tmp_path / "answers", "1.csv", "sample_id,label\na.jpg,cat\n")
    put(tmp_path, "x.xlsx", "rubbish")
    for look in (check_given, lambda place: labels_from(place, CLASSES, IDS)):
        with pytest.raises(UserError, match=message):
            look(Place.of(tmp_path / name))


def test_what_is_given_is_looked_at_before_there_is_a_pool(tmp_path, campaign):
    for good in (campaign, campaign / "ledger", put(tmp_path, "x.csv", "sample_id,label\nwho knows,what\n")):
        check_given(good)
    with pytest.raises(LabelFileError, match=r"y\.csv, line 1: the columns are 'id', 'class'; expected 'sample_id'"):
        check_given(put(tmp_path, "y.csv", "id,class\na.jpg,cat\n"))
