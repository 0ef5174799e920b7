"""What people write, and how it is read: label files (CSV, JSONL, Parquet), folders of them, and tasks.csv.

What a written label means, in this order:

1. *Text* is a class name, exactly; then without surrounding blanks and regardless of case and of Unicode composition,
   when only one class fits; then an outcome word (``Cannot label``, ``none_of_the_classes``, ...); then, if it is all
   digits and no class at all is named by a number, a class index. Every text of a CSV is text.
2. A *number* (JSONL, Parquet; whole floats too, as pandas writes them where rows are missing) is a class index. If some
   class is named by a number other than its index, numbers could mean either and are refused: write names as text.
3. Empty, null or NaN, with no outcome: not answered yet.

Where classes were renamed or became one, a text may also be an old name, and means the class that has taken its place.
An index is refused then: it could be one of the classes before.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.types as pt

from raykd.errors import LabelFileError, UserError, did_you_mean
from raykd.labels.ledger import OUTCOMES, Ledger, current_labels, resolve_renamed
from raykd.store.place import Place
from raykd.store.tables import LEDGER

TASKS_FILE = "tasks.csv"  # in a round's folder
COLUMNS = ("sample_id", "label", "outcome", "annotator", "time")  # what is read of a label file; others are ignored
MAX_SHOWN = 20  # problems of one file that its error lists
MAX_NEAR = 2_000  # ids among which a nearest one is looked for
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # begins a formula in a spreadsheet; the wide forms in some

NOTHING_RENAMED: Mapping[str, str] = MappingProxyType({})
Problem = tuple[int, str]  # line (0: the whole file), message
Row = tuple[int, dict[str, Any]]  # line, cells by column name
Ids: TypeAlias = "pa.Array | pa.ChunkedArray | Collection[str]"


# ---------------------------------------------------------------- what a label means


class _Meanings:
    """Which class or outcome a written label means; the rules stand at the top of this file."""

    def __init__(self, classes: Sequence[str], renamed: Mapping[str, str] = NOTHING_RENAMED) -> None:
        self.classes = list(classes)
        self.renamed = resolve_renamed(renamed)
        names = list(dict.fromkeys([*classes, *self.renamed]))
        self.exact = set(names)
        self.loose: dict[str, list[str]] = {}
        for name in names:
            self.loose.setdefault(_loose(name), []).append(name)
        numbered = [(index, name) for index, name in enumerate(names) if name.strip().isdecimal()]
        self.has_numbers = bool(numbered)
        self.misnumbered = [name for index, name in numbered if name.strip() != str(index)]

    def of(self, label: Any, outcome: str, hint: bool = True) -> tuple[str, str | None] | None:
        """Outcome and class name; None when not answered yet.

        Raises:
            UserError: It means nothing, or more than one thing; with the nearest class if ``hint`` (milliseconds).
        """
        if outcome and (outcome := _word(outcome)) not in OUTCOMES:
            raise UserError(f"unknown outcome {outcome!r}; {did_you_mean(outcome, OUTCOMES)}")
        if _is_empty(label):
            if outcome == "label":
                raise UserError("the outcome is 'label', but the label is empty")
            return (outcome, None) if outcome else None
        if outcome not in ("", "label"):
            if isinstance(label, str) and _word(label) == outcome:
                return outcome, None
            raise UserError(f"the outcome is {outcome!r}, yet there is a label, {label!r}; keep one of the two")
        if not isinstance(label, str):
            return "label", self._by_number(label)
        if (name := self._by_name(label)) is not None:
            return "label", name
        if not outcome and (word := _word(label)) in OUTCOMES[1:]:
            return word, None
        if not self.has_numbers and label.strip().isdecimal():
            return "label", self._by_number(int(label))
        raise UserError(f"unknown label {label!r}" + (self._hint(label) if hint else ""))

    def _by_name(self, text: str) -> str | None:
        for form in (text, text[1:] if text.startswith("'") else text):  # an apostrophe: see write_tasks
            if form in self.exact:
                return self.renamed.get(form, form)
            fits = self.loose.get(_loose(form), [])
            meant = {self.renamed.get(name, name) for name in fits}
            if len(meant) > 1:
                raise UserError(f"label {text!r} could be {' or '.join(map(repr, fits))}; write it exactly")
            if meant:
                return meant.pop()
        return None

    def _by_number(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
            raise UserError(f"label {value!r} ({type(value).__name__}); expected a class name or a class index")
        if self.renamed:
            raise UserError(
                f"label {value!r} could be an index of the classes before or after labels.renamed; write names as text"
            )
        if self.misnumbered:
            raise UserError(
                f"label {value!r} could be a class index or a name such as {self.misnumbered[0]!r}; write names as text"
            )
        if not 0 <= value < len(self.classes):
            raise UserError(f"no class has index {value!r}; there are {len(self.classes)}, from 0")
        return self.classes[int(value)]

    def _hint(self, text: str) -> str:
        wanted = _loose(re.sub(r"\(\d\.\d+\)\s*$", "", text))  # the guess's cell, copied with its probability
        if near := difflib.get_close_matches(wanted, self.loose, n=1, cutoff=0.5):
            return f"; did you mean {self.loose[near[0]][0]!r}?"
        more = f", ... ({len(self.classes)} in all)" if len(self.classes) > 10 else ""
        return f"; classes: {', '.join(map(repr, self.classes[:10]))}{more}; or {', '.join(OUTCOMES[1:])}"


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _word(text: str) -> str:
    return re.sub(r"[\s_-]+", "_", text.strip().lower())


def _is_empty(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any) -> str:
    return "" if _is_empty(value) else str(value).strip()


# ---------------------------------------------------------------- label files


class Answers(NamedTuple):
    """The answers of one file, schema LEDGER, and how many of its rows have none yet."""

    rows: pa.Table
    unanswered: int


def read_answers(
    place: Place,
    classes: Sequence[str],
    known_ids: Ids,
    forbidden_ids: Ids | Mapping[str, str] = (),
    renamed: Mapping[str, str] = NOTHING_RENAMED,
    *,
    round_number: int | None = None,
) -> Answers:
    """The answers in one CSV, JSONL or Parquet file, all checked; nothing is written.

    Columns ``sample_id`` and ``label`` or ``outcome`` are needed, ``annotator`` and ``time`` are read, any others
    (those of tasks.csv) ignored; names regardless of case. CSV: UTF-8 with or without BOM, any line ends, the
    delimiter (comma, semicolon, tab) with which the header line has most of these names. An empty file has no answers.
    Ids are taken as :func:`write_tasks` wrote them, else verbatim, else without surrounding blanks: the first known.

    Args:
        place: The file; its ending names the format.
        classes: Class names, in the order of their indices.
        known_ids: Samples that may be labeled; an Arrow column is quickest.
        forbidden_ids: Samples of test and validation, or a mapping from each to its split; goes before ``known_ids``.
        renamed: What old class names mean now.
        round_number: For the column ``round``.

    Raises:
        LabelFileError: Anything is wrong; lists the first 20 problems, each with its line (of a CSV row over several
            lines, the first; of Parquet, the row from 1), with the nearest class or id where there is one.

    Cost: about 1.5 s for 100,000 rows against 1,000,000 ids, on 2 cores.
    """
    problems: list[Problem] = []
    written = _read_rows(place, problems)
    known, forbidden = _strings(known_ids), _strings(forbidden_ids)
    ids = _match_ids([_sample_id(cells.get("sample_id")) for _, cells in written], pa.concat_arrays([known, forbidden]))
    meanings = _Meanings(classes, renamed)
    answers = _read_meanings(written, ids, meanings, problems)
    splits = forbidden_ids if isinstance(forbidden_ids, Mapping) else {}
    problems += _wrong_ids(answers, known, forbidden, splits)
    problems += _contradictions(answers)
    if problems:
        raise _error(place, problems)
    constant = {"source": place.name, "round": round_number}
    rows = [{**dict(zip(COLUMNS, answer.values, strict=True)), **constant} for answer in answers]
    unanswered = sum(bool(sample_id.strip()) for sample_id in ids) - len(answers)
    return Answers(pa.Table.from_pylist(rows, LEDGER), unanswered)


class _Answer(NamedTuple):
    """A row that says something, as it is meant."""

    line: int
    written_id: Any
    sample_id: str
    meaning: tuple[str, str | None]  # outcome, class
    annotator: str
    time: str

    @property
    def values(self) -> tuple[str | None, ...]:
        """In the order of COLUMNS."""
        outcome, label = self.meaning
        return self.sample_id, label, outcome, self.annotator or None, self.time or None


def _read_rows(place: Place, problems: list[Problem]) -> list[Row]:
    """What stands in the file; what can't be read of it is a problem, and a file that can't be read at all an error."""
    reader = READERS.get(_ending(place.name))
    if reader is None:
        raise _error(place, [(0, f"unknown kind of file; expected {', '.join(READERS)}")])
    if not place.exists():
        raise _error(place, [(0, "no such file")])
    try:
        return list(reader(place, problems))
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        message = f"not UTF-8 (byte {byte:#04x}); save it as UTF-8 ('CSV UTF-8' in Excel)"
        raise _error(place, [(line, message)]) from None


def _read_meanings(written: list[Row], ids: list[str], meanings: _Meanings, problems: list[Problem]) -> list[_Answer]:
    """The rows that say something; what means nothing is a problem. Hints cost, so only what may be shown gets one."""
    answers: list[_Answer] = []
    num_wrong = 0
    for (line, cells), sample_id in zip(written, ids, strict=True):
        try:
            meaning = meanings.of(cells.get("label"), _text(cells.get("outcome")), hint=num_wrong < MAX_SHOWN)
        except UserError as error:
            problems.append((line, str(error)))
            num_wrong += 1
            continue
        if meaning is not None:
            annotator, time = _text(cells.get("annotator")), _text(cells.get("time"))
            answers.append(_Answer(line, cells.get("sample_id"), sample_id, meaning, annotator, time))
    return answers


def _wrong_ids(
    answers: list[_Answer], known: pa.Array, forbidden: pa.Array, splits: Mapping[str, str]
) -> list[Problem]:
    """The rows whose id is none, is measured on, or is not in the pool."""
    problems: list[Problem] = []
    ids = pa.array([answer.sample_id for answer in answers], pa.string())
    is_forbidden, is_known = (pc.is_in(ids, value_set=those).to_pylist() for those in (forbidden, known))
    for answer, never, ever in zip(answers, is_forbidden, is_known, strict=True):
        if not answer.sample_id.strip():
            message = f"sample_id is {answer.written_id!r}; expected the id of a sample"
        elif never:
            split = splits.get(answer.sample_id, "test or validation")
            message = f"sample {answer.sample_id!r} is a {split} image: measured on, never learned from"
        elif not ever:
            hint = _near_id(answer.sample_id, known) if len(problems) < MAX_SHOWN else ""
            message = f"unknown sample_id {answer.sample_id!r}{hint}"
        else:
            continue
        problems.append((answer.line, message))
    return problems


def _contradictions(answers: list[_Answer]) -> list[Problem]:
    """The rows that say of a sample something else than its first row by the same annotator."""
    problems: list[Problem] = []
    firsts: dict[tuple[str, str], _Answer] = {}
    for answer in answers:
        first = firsts.setdefault((answer.sample_id, answer.annotator), answer)
        if answer.sample_id.strip() and answer.meaning != first.meaning:
            here, there = (label or outcome for outcome, label in (answer.meaning, first.meaning))
            who = f" by {answer.annotator}" if answer.annotator else ""
            said = f"sample {answer.sample_id!r} is {here!r} here, but {there!r}{who} in line {first.line}; keep one"
            problems.append((answer.line, said))
    return problems


def _error(place: Place, problems: list[Problem]) -> LabelFileError:
    unit = "row" if _ending(place.name) == ".parquet" else "line"
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    text = [f"{place}: {count}, so nothing of this file was imported"]
    for line, message in sorted(problems)[:MAX_SHOWN]:
        text.append(f"{place}, {unit} {line}: {message}" if line else f"{place}: {message}")
    if len(problems) > MAX_SHOWN:
        text.append(f"... and {len(problems) - MAX_SHOWN} more")
    return LabelFileError("\n".join(text))


def _ending(name: str) -> str:
    return "." + name.lower().rsplit(".", 1)[-1]


def _read_csv(place: Place, problems: list[Problem]) -> Iterator[Row]:
    text = place.read_bytes().decode("utf-8-sig")
    if not text.strip():
        return
    first = io.StringIO(text.lstrip(), newline="").readline()
    names = {mark: _names(next(csv.reader([first], delimiter=mark))) for mark in ",;\t"}
    mark = max(names, key=lambda mark: len(set(names[mark]) & set(COLUMNS)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)  # else an open quote eats the file
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells[len(header) :]) and header:
                message = f"{len(cells)} cells under a header of {len(header)}; put quotes around a cell with {mark!r}"
                problems.append((line, message))
            elif any(cell.strip() for cell in cells):
                if header:
                    yield line, dict(zip(header, cells, strict=False))
                elif not _has_columns(header := _names(cells), line, problems):
                    return
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append((line, f"the row that begins here is not CSV ({error}); is a quote missing or never closed?"))


def _read_jsonl(place: Place, problems: list[Problem]) -> Iterator[Row]:
    found: set[str] = set()
    for line, text in enumerate(place.read_bytes().decode("utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            problems.append((line, f"not JSON: {error}"))
            continue
        if not isinstance(value, dict):
            example = '{"sample_id": "a.jpg", "label": "cat"}'
            problems.append((line, f"{text.strip()[:40]!r}; expected an object such as {example}"))
            continue
        cells = dict(zip(_names(value), value.values(), strict=True))
        found |= cells.keys()
        yield line, cells
    if found:
        _has_columns(sorted(found), 0, problems)


def _read_parquet(place: Place, problems: list[Problem]) -> Iterator[Row]:
    try:
        dataset = place.parquet()
        names = _names(dataset.schema.names)
        if not _has_columns(names, 0, problems):
            return
        wanted = {name: pads.field(dataset.schema.names[names.index(name)]) for name in COLUMNS if name in names}
        table = dataset.to_table(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        problems.append((0, f"not a Parquet file that can be read: {error}"))
        return
    columns = table.columns
    if "time" in wanted and pt.is_temporal(table["time"].type):
        columns[-1] = table["time"].cast(pa.string())  # Python's datetime has no nanoseconds
    for row, cells in enumerate(zip(*(column.to_pylist() for column in columns), strict=True), 1):
        yield row, dict(zip(wanted, cells, strict=True))


READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _names(header: Iterable[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _has_columns(names: list[str], line: int, problems: list[Problem]) -> bool:
    if repeated := [name for name in COLUMNS if names.count(name) > 1]:
        problems.append((line, f"there is more than one column {repeated[0]!r}"))
    elif "sample_id" not in names or not {"label", "outcome"} & set(names):
        shown = ", ".join(map(repr, names[:12]))
        problems.append((line, f"the columns are {shown}; expected 'sample_id' and 'label' (or 'outcome')"))
    else:
        return True
    return False


def _strings(ids: Ids | Mapping[str, str]) -> pa.Array:
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    return ids.cast(pa.string()) if isinstance(ids, pa.Array) else pa.array(list(ids), pa.string())


def _sample_id(value: Any) -> str:
    """A JSON or Parquet id as text; empty for what is no id (a float has lost digits)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _match_ids(written: list[str], known: pa.Array) -> list[str]:
    """Each id as write_tasks escaped it, verbatim, or stripped: the first that is known, else verbatim."""
    forms = [[_unescaped(text) for text in written], written, [text.strip() for text in written]]
    flat = pa.array([text for form in forms for text in form], pa.string())
    found = pc.is_in(flat, value_set=known).to_numpy(zero_copy_only=False).reshape(len(forms), len(written))
    choice = np.where(found.any(axis=0), found.argmax(axis=0), 1)
    return [forms[form][index] for index, form in enumerate(choice.tolist())]


def _near_id(given: str, known: pa.Array) -> str:
    """A hint for an unknown id: the nearest that contains its file name; only in a small pool any near one."""
    name = re.split(r"[/\\]", given.strip())[-1]
    near = known.filter(pc.match_substring(known, name, ignore_case=True))
    if not len(near) and len(known) <= MAX_NEAR:
        near = known
    if match := difflib.get_close_matches(given, near[:MAX_NEAR].to_pylist(), n=1):
        return f"; did you mean {match[0]!r}?"
    return f"; ids look like {known[0].as_py()!r}" if len(known) else "; there is no sample to label"


# ---------------------------------------------------------------- tasks for people


def write_tasks(place: Place, table: pa.Table) -> bool:
    """Write tasks.csv, what people are to label, in the order of ``rank``; a file that exists is left as it is.

    Comma, every cell in quotes, UTF-8, line feeds; with a BOM only when something is not ASCII, as Excel needs it then
    and others do not. Opened in a spreadsheet, no cell is a formula, as one would be that begins with ``= + - @``: such
    an id, and one that begins with an apostrophe, gets an apostrophe before it, which :func:`read_answers` takes off
    again, so every id comes back as it was. Uris and guesses are for looking at: they get theirs also after a separator
    inside the cell, where a spreadsheet that is set to another separator would begin a new one.

    Args:
        place: The file.
        table: ``sample_id``, ``uri``, ``rank`` and the columns ``guess_1``, ``guess_2``, ... that there are.

    Returns:
        True when the file was written, False when there was one (people may have filled it).
    """
    if place.exists():
        return False
    names = ["sample_id", "uri", "rank", "guess_1", "guess_2", "guess_3", "label", "annotator"]
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(names)
    for row in table.sort_by("rank").to_pylist():
        writer.writerow([_escaped(row["sample_id"]), *(_defused(_text(row.get(name))) for name in names[1:])])
    text = out.getvalue()
    place.write_bytes(text.encode("utf-8" if text.isascii() else "utf-8-sig"))
    return True


def _escaped(sample_id: str) -> str:
    return "'" + sample_id if sample_id.lstrip()[:1] in tuple(_FORMULA + "'") else sample_id


def _unescaped(text: str) -> str:
    return text[1:] if text.startswith("'") and _escaped(text[1:]) == text else text


def _defused(text: str) -> str:
    return re.sub(rf"(^|[,;\t\r\n])(\s*[{re.escape(_FORMULA)}])", r"\1'\2", text)


# ---------------------------------------------------------------- a folder of label files


@dataclass(frozen=True)
class ImportSummary:
    """What :func:`import_folder` found: files read, rows new, known and not yet answered; see ``ledger.Appended``."""

    files: int
    new: int
    known: int
    unanswered: int
    superseded: tuple[str, ...]
    ignored: tuple[str, ...]  # names of files of another kind, such as .xlsx

    def __str__(self) -> str:
        text = f"{self.files} label files: {self.new} new answers, {self.known} known, {self.unanswered} not given yet"
        if self.superseded:
            text += f"; {len(self.superseded)} repeat what was replaced since, such as {self.superseded[0]}"
        return text + (f"; not read: {', '.join(self.ignored)}" if self.ignored else "")


def import_folder(
    folder: Place,
    classes: Sequence[str],
    known_ids: Ids,
    forbidden_ids: Ids | Mapping[str, str],
    ledger: Ledger,
    renamed: Mapping[str, str] = NOTHING_RENAMED,
    *,
    round_number: int | None = None,
) -> ImportSummary:
    """Import every label file of a folder (not of folders in it), by name, each whole or not at all.

    Hidden and temporary files (``.~lock.tasks.csv#``, ``~$tasks.csv``) are passed over; no folder is an empty folder.
    Repeating it changes nothing, so it may be called whenever files may have come. Arguments: :func:`read_answers`.

    Raises:
        LabelFileError: A file is wrong; those before it are imported, it and those after it are not.
    """
    known_ids = _strings(known_ids)
    files, unanswered, ignored, done = 0, 0, [], []
    for info in folder.files():
        if info.base_name.startswith((".", "~")):
            continue
        if _ending(info.base_name) not in READERS:
            ignored.append(info.base_name)
            continue
        file = folder.sibling(info.path)
        answers = read_answers(file, classes, known_ids, forbidden_ids, renamed, round_number=round_number)
        done.append(ledger.append(answers.rows))
        files, unanswered = files + 1, unanswered + answers.unanswered
    return ImportSummary(
        files=files,
        new=sum(one.new for one in done),
        known=sum(one.known for one in done),
        unanswered=unanswered,
        superseded=tuple(line for one in done for line in one.superseded),
        ignored=tuple(ignored),
    )


# ---------------------------------------------------------------- labels from elsewhere


def labels_from(
    place: Place,
    classes: Sequence[str],
    known_ids: Ids,
    forbidden_ids: Ids | Mapping[str, str] = (),
    renamed: Mapping[str, str] = NOTHING_RENAMED,
) -> pa.Table:
    """Answers to begin with, schema LEDGER, ready for ``Ledger.append``; nothing is written.

    Args:
        place: A label file, a ledger's folder, or another campaign's folder (its ledger is in it). Of a ledger all
            answers are taken, in their order, with who gave them and what for.
        classes: And the others: as for :func:`read_answers`. Every answer is of round 0.

    Raises:
        LabelFileError: The file is wrong.
        UserError: There is no such place, or no ledger in the folder; a current label is no class; samples are not in
            the pool, or are measured on.
    """
    ledger = _ledger_in(place, renamed)
    if ledger is None:
        return read_answers(place, classes, known_ids, forbidden_ids, renamed, round_number=0).rows
    current_labels(ledger, classes)  # or refuse
    rows = ledger.read()
    known, forbidden = _strings(known_ids), _strings(forbidden_ids)
    is_forbidden = pc.is_in(rows["sample_id"], value_set=forbidden)
    is_strange = pc.invert(pc.is_in(rows["sample_id"], value_set=pa.concat_arrays([known, forbidden])))
    for wrong, what, advice in (
        (is_strange, "not in the pool", "give the pool that they are of"),
        (is_forbidden, "test or validation images here", "give that campaign's split_seed, test_share and val_share"),
    ):
        if len(ids := rows["sample_id"].filter(wrong).unique()):
            labeled = len(rows["sample_id"].unique())
            raise UserError(
                f"{len(ids)} of the {labeled} images labeled in {ledger.place} are {what}, such as {ids[0].as_py()!r}; "
                f"{advice}, or write a label file of those that you mean"
            )
    return rows.set_column(LEDGER.get_field_index("round"), "round", pa.array([0] * len(rows), pa.int32()))


def check_given(place: Place) -> None:
    """Whether answers stand there, as far as that can be told without pool and classes: before anything expensive.

    Raises:
        LabelFileError: The file is of no known kind, or its rows or columns are none.
        UserError: There is no such place, or no ledger in the folder.
    """
    if _ledger_in(place, NOTHING_RENAMED) is None:
        problems: list[Problem] = []
        _read_rows(place, problems)
        if problems:
            raise _error(place, problems)


def _ledger_in(place: Place, renamed: Mapping[str, str]) -> Ledger | None:
    """The ledger of a folder, or of the campaign in it; None of a file."""
    if not place.exists():
        raise UserError(f"labels.given: there is no {place}; expected {_SOURCES}")
    if not place.is_dir():
        return None
    for ledger in (Ledger(place, renamed), Ledger(place / "ledger", renamed)):
        if ledger.read().num_rows:
            return ledger
    raise UserError(f"labels.given: no answer in {place}; expected {_SOURCES}")


_SOURCES = f"a label file ({', '.join(READERS)}), or the folder of a ledger or of a campaign that has labels"
