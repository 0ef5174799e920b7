"""A round's teacher is the rule's own refit on the stored features and that round's labels; no more, no later."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from fakes import Killed, images_read, new_campaign
from PIL import Image

from raykd.algo.few_shot.rules import RULES, fit_rule
from raykd.algo.few_shot.support import Support, Texts
from raykd.algo.few_shot.trained import ACTIVEKD_CLAP, PUBLISHED_CLAP
from raykd.algo.heads import softmax
from raykd.errors import UserError
from raykd.store.outputs import Encoded, Labels, Picks, Pool, Teacher
from raykd.store.place import Place
from raykd.store.stage_folder import Done, Writing
from raykd.store.tables import LEDGER, PICKS

LEARNING = [name for name in RULES if name != "zero_shot"] + ["auto"]


class Begun(NamedTuple):
    """A campaign that has come to its labels."""

    campaign: Any
    pool: Pool
    encoded: Encoded
    first: Teacher

    def refit(self, labels: Labels, number: int = 0) -> Teacher:
        from raykd.stages.teacher import refit

        return refit(self.campaign, number, self.pool, self.encoded, self.first, labels)

    def settle(self, answers: dict[str, str], number: int = 0, role: str = "train") -> Labels:
        """Labels of a round, by the ledger: class names by sample_id, and what they are for."""
        from raykd.stages.label import settle

        answer(self.campaign, answers, role, number)
        picks = self.campaign.round_place(number) / "no_picks"
        (picks / "picks.parquet").write_table(PICKS.empty_table())
        return settle(self.campaign, number, self.pool, Picks(Done(picks, "none")))

    def labeled(self, count: int, classes: tuple[str, ...] = ("blue", "green", "red"), skip: int = 0) -> dict[str, str]:
        """The first images of each class that can be labeled, and read."""
        rows = self.encoded.readable(self.pool.split("pool"))
        ids = sorted(rows["sample_id"].to_pylist())
        found = {}
        for name in classes:
            mine = [each for each in ids if each.startswith(f"{name}/")][skip : skip + count]
            assert len(mine) == count
            found |= dict.fromkeys(mine, name)
        return found


def answer(campaign: Any, answers: dict[str, str], role: str = "train", number: int = 0) -> None:
    fields = {"outcome": "label", "annotator": f"of {role}", "source": "test", "round": number, "role": role}
    rows = [{"sample_id": name, "label": label, **fields} for name, label in answers.items()]
    campaign.ledger().append(pa.Table.from_pylist(rows, LEDGER))


@pytest.fixture
def begun(seeded):
    """A campaign on the finished one's pool and features; with a name that was there, the same again."""
    from raykd.stages.encode import encode
    from raykd.stages.pool import list_pool
    from raykd.stages.teacher import teach

    known: dict[str, dict] = {}

    def begun(*overrides: str, name: str = "run") -> Begun:
        if name not in known:
            known[name], _ = seeded(name=name)
        campaign = new_campaign(known[name], *overrides)
        pool = list_pool(campaign)
        encoded = encode(campaign, pool)
        return Begun(campaign, pool, encoded, teach(campaign, pool, encoded))

    return begun


def features_of(encoded: Encoded) -> tuple[list[str], np.ndarray]:
    table = pa.concat_tables(part.place.read_table(["sample_id", "error", "features"]) for part in encoded.parts)
    table = table.filter(table["error"].is_null()).sort_by("sample_id")
    return table["sample_id"].to_pylist(), np.array(table["features"].to_pylist(), np.float16)


def rows_of(teacher: Teacher) -> dict[str, dict]:
    return {row["sample_id"]: row for part in teacher.parts for row in part.place.read_table().to_pylist()}


def probs_of(teacher: Teacher) -> np.ndarray:
    """Of the images that can be read, by sample_id."""
    rows = rows_of(teacher)
    return softmax(np.array([rows[name]["logits"] for name in sorted(rows) if rows[name]["error"] is None]))


def bits_of(teacher: Teacher) -> dict[str, bytes]:
    return {name: np.array(row["logits"], np.float16).tobytes() for name, row in rows_of(teacher).items()}


def texts_of(teacher: Teacher) -> Texts:
    files = [np.load(io.BytesIO((teacher.texts.place / name).read_bytes())) for name in ("classes.npy", "lengths.npy")]
    return Texts(files[0], teacher.texts.facts["scale"], files[1])


def plain_fit(rule: str, given: Begun, labels: dict[str, str], views_NVD=None, clap=PUBLISHED_CLAP):
    """The rule on the stored features of labeled images, and the probabilities of all images, by sample_id."""
    ids, features_ND = features_of(given.encoded)
    names = sorted(labels)
    labels_N = np.array([given.first.classes.index(labels[name]) for name in names])
    rows = features_ND[[ids.index(name) for name in names]]
    fitted = fit_rule(rule, Support(rows, labels_N, texts_of(given.first), views_NVD), clap)
    return fitted, softmax(fitted.scorer.logits(features_ND))


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize("rule", LEARNING)
def test_its_logits_are_those_of_the_rule_on_the_stored_features_and_the_rounds_labels(begun, no_image_is_read, rule):
    given = begun(f"teacher.rule={rule}")
    labels = given.labeled(4)
    teacher = given.refit(given.settle(labels))
    fitted, expected = plain_fit(rule, given, labels)
    np.testing.assert_allclose(probs_of(teacher), expected, atol=2e-3)
    assert np.abs(probs_of(teacher) - probs_of(given.first)).max() > 0.05  # or the texts alone would do
    assert teacher.fit["rule"] == fitted.rule
    assert teacher.fit["num_labels"] == 12
    assert teacher.fit["after"] == pytest.approx(fitted.after)
    assert teacher.fit["chosen"] == pytest.approx(dict(fitted.chosen))
    assert teacher.classes == given.first.classes
    assert teacher.fingerprint != given.first.fingerprint


def test_it_says_of_itself_what_its_logits_say(begun):
    given = begun("teacher.rule=gda")
    teacher = given.refit(given.settle(given.labeled(4)))
    splits = dict(zip(*(given.pool.manifest[name].to_pylist() for name in ("sample_id", "split")), strict=True))
    ids, _ = features_of(given.encoded)
    mine = np.array([splits[name] == "pool" for name in ids])
    now, before = probs_of(teacher).argmax(axis=1), probs_of(given.first).argmax(axis=1)
    assert teacher.fit["changed"] == pytest.approx((now != before)[mine].mean())
    assert teacher.check["never"] == [name for c, name in enumerate(teacher.classes) if not (now[mine] == c).any()]
    test = np.array([splits[name] == "test" for name in ids])
    truth = np.array([teacher.classes.index(name.split("/")[0]) for name in ids])
    assert teacher.scores["accuracy"] == pytest.approx((now == truth)[test].mean())
    assert teacher.fit["change"]["gain"] == pytest.approx((now == truth)[test].mean() - (before == truth)[test].mean())
    rows = rows_of(teacher)
    assert sorted(rows) == sorted(splits)
    assert {name: row["split"] for name, row in rows.items()} == splits
    assert [name for name, row in rows.items() if row["error"]] == ["red/broken.png"]
    assert np.isnan(rows["red/broken.png"]["logits"]).all()


def test_claps_other_settings_are_taken(begun):
    given = begun("teacher.rule=clap", "teacher.clap=activekd")
    labels = given.labeled(3)
    teacher = given.refit(given.settle(labels))
    _, expected = plain_fit("clap", given, labels, clap=ACTIVEKD_CLAP)
    _, published = plain_fit("clap", given, labels)
    np.testing.assert_allclose(probs_of(teacher), expected, atol=2e-3)
    assert np.abs(expected - published).max() > 0.02


def test_the_texts_alone_learn_nothing_and_cost_nothing(begun):
    given = begun()
    assert given.refit(given.settle(given.labeled(2))) is given.first
    assert not (given.campaign.round_place(0) / "teacher").exists()


def test_each_round_is_fitted_on_its_own_labels(begun):
    given = begun("teacher.rule=gda")
    first, more = given.labeled(2), given.labeled(3, skip=2)
    labels = given.settle(first)
    before = given.refit(labels)
    later = given.settle(more, number=1)
    after = given.refit(later, number=1)
    np.testing.assert_allclose(probs_of(before), plain_fit("gda", given, first)[1], atol=2e-3)
    np.testing.assert_allclose(probs_of(after), plain_fit("gda", given, first | more)[1], atol=2e-3)
    assert (before.fit["num_labels"], after.fit["num_labels"]) == (6, 15)
    assert labels.content != later.content


def test_the_student_trains_on_the_teacher_that_was_fitted_on_the_very_labels(begun, monkeypatch):
    """What train is given to read is that round's opinion; and train's marker says so."""
    from raykd.stages import train

    jobs, make_job = [], train.make_job

    def watched(*arguments):
        jobs.append(make_job(*arguments))
        return jobs[-1]

    monkeypatch.setattr(train, "make_job", watched)
    given = begun("teacher.rule=gda", "student.steps=1")
    for number in range(2):
        labels = given.settle(given.labeled(2, skip=2 * number), number)
        teacher = given.refit(labels, number)
        trained = train.train(given.campaign, number, given.pool, given.encoded, teacher, labels)
        (marker,) = Path(given.campaign.round_place(number).path).glob("teacher/*/fit/_DONE.json")
        fit = json.loads(marker.read_text())
        assert fit["made_from"]["labels"] == labels.content
        assert trained.done.settings["teacher"] == fit["fingerprint"] == teacher.fingerprint
        assert trained.done.made_from["labels"] == labels.content
        assert jobs[number].teacher == teacher.uris
        assert all(f"/round_00{number}/teacher/" in uri for uri in teacher.uris)
        assert len(jobs[number].labels_L) == fit["facts"]["num_labels"] == 6 * (number + 1)


# ---------------------------------------------------------------- a rule that changes


def test_a_rule_that_changes_counts_from_the_next_fit_on_and_no_image_is_read(begun, no_image_is_read):
    given = begun("teacher.rule=gda")
    labels = [given.settle(given.labeled(3, skip=3 * number), number) for number in range(2)]
    done = given.refit(labels[0])
    changed = begun("teacher.rule=proker")
    kept = changed.refit(labels[0])
    assert bits_of(kept) == bits_of(done)
    said = changed.campaign.progress.stream.getvalue()
    assert "round 0 teacher" in said
    assert "is done, and keeps what was set then; from the next round on: teacher.rule: was 'gda', now 'proker'" in said
    later = changed.refit(labels[1], number=1)
    assert (kept.fit["rule"], later.fit["rule"]) == ("gda", "proker")
    answers = given.labeled(6)
    np.testing.assert_allclose(probs_of(later), plain_fit("proker", given, answers)[1], atol=2e-3)


@pytest.mark.parametrize("before", ["zero_shot", "gda"])
def test_a_round_that_is_trained_gets_no_other_teacher_later(begun, before):
    """By texts alone, or of other classes: what is asked for since, the next round gets; its cards show the texts'."""
    from raykd.stages.train import train

    given = begun(f"teacher.rule={before}", "student.steps=1")
    labels = given.settle(given.labeled(2))
    train(given.campaign, 0, given.pool, given.encoded, given.refit(labels), labels)
    classes = [] if before == "zero_shot" else ["classes=[blue, green, red, purple]", "labels.start=none"]
    changed = begun("teacher.rule=gda", "student.steps=1", *classes)
    assert changed.refit(labels) is changed.first


def test_other_classes_asked_for_after_the_fit_and_before_the_training_are_learned_too(begun):
    """A round whose student is still to be trained: it is not left with texts that have seen no label."""
    given = begun("teacher.rule=gda")
    answers = given.labeled(3)
    labels = given.settle(answers)
    given.refit(labels)
    changed = begun("teacher.rule=gda", "classes=[blue, green, red, purple]", "labels.start=none")
    teacher = changed.refit(labels)
    assert teacher.classes == ("blue", "green", "red", "purple")
    assert teacher.fit is not None
    np.testing.assert_allclose(probs_of(teacher), plain_fit("gda", changed, answers)[1], atol=2e-3)
    again = begun("teacher.rule=gda")
    np.testing.assert_allclose(probs_of(again.refit(labels)), plain_fit("gda", again, answers)[1], atol=2e-3)


# ---------------------------------------------------------------- stopped, and where it runs


@pytest.fixture
def in_parts(begun, tmp_path):
    """The stored features as several parts, of so many rows, in this order."""

    def in_parts(given: Begun, rows: int, backwards: bool = False) -> Begun:
        table = pa.concat_tables(part.place.read_table() for part in given.encoded.parts).sort_by("sample_id")
        parts = []
        for start in range(0, len(table), rows):
            place = Place.of(tmp_path / f"parts_of_{rows}") / f"part_{start:03d}"
            (place / "block_0.parquet").write_table(table.slice(start, rows))
            parts.append(Done(place, place.name, {"rows": rows, "unreadable": 0}))
        encoded = Encoded(tuple(parts[::-1] if backwards else parts), given.encoded.model, given.encoded.folder)
        encoded.__dict__["quarantine"] = given.encoded.quarantine
        return given._replace(encoded=encoded)

    return in_parts


def on_cluster(given: Begun) -> Begun:
    given.campaign.session = SimpleNamespace(is_local=False, stall_s=600, ensure=lambda: None)
    return given


@pytest.mark.parametrize("rule", ["gda", "clap"])
def test_the_bits_are_the_same_here_and_in_rays_tasks_whatever_the_order_of_the_parts(begun, in_parts, rule):
    here = in_parts(begun(f"teacher.rule={rule}", name="here"), 10)
    there = on_cluster(in_parts(begun(f"teacher.rule={rule}", name="there"), 10, backwards=True))
    one, other = (given.refit(given.settle(given.labeled(4))) for given in (here, there))
    assert len(one.parts) == 5
    assert bits_of(one) == bits_of(other)
    assert one.fit == other.fit
    assert one.scores == other.scores


def test_parts_of_any_size_give_the_same_opinion(begun, in_parts):
    plain = begun("teacher.rule=proker", name="plain")
    whole = plain.refit(plain.settle(plain.labeled(4)))
    for rows in (1, 7):
        given = in_parts(begun("teacher.rule=proker", name=f"of_{rows}"), rows)
        teacher = given.refit(given.settle(given.labeled(4)))
        assert teacher.fit == whole.fit
        np.testing.assert_allclose(probs_of(teacher), probs_of(whole), atol=1e-3)


def test_stopped_after_the_fit_and_between_parts_only_what_is_missing_is_made(begun, in_parts, monkeypatch):
    from raykd.stages import few_shot, teacher

    plain = in_parts(begun("teacher.rule=gda", name="undisturbed"), 10)
    undisturbed = plain.refit(plain.settle(plain.labeled(4)))
    commit, fit_labels, write_refitted = Writing.commit, few_shot.fit_labels, few_shot.write_refitted
    fits, written, committed = [], [], []

    def deadly(out):
        if out.folder.name.endswith("teacher"):
            committed.append(out)
            if len(committed) in (1, 3, 5):  # the fit, once the second part of a run
                commit(out)
                raise Killed
        return commit(out)

    monkeypatch.setattr(Writing, "commit", deadly)
    monkeypatch.setattr(teacher, "fit_labels", lambda *a: fits.append(1) or fit_labels(*a))
    monkeypatch.setattr(teacher, "write_refitted", lambda *a: written.append(str(a[0])) or write_refitted(*a))
    given = in_parts(begun("teacher.rule=gda"), 10)
    labels, stops = given.settle(given.labeled(4)), 0
    place = given.campaign.round_place(0) / "teacher"
    for _ in range(9):
        complete = {path.name for path in Path(place.path).glob("*/part_*")}
        written.clear()
        try:
            found = given.refit(labels)
        except Killed:
            stops += 1
            assert not set(complete) & {name.rpartition("/")[2] for name in written}
            continue
        break
    assert (stops, len(fits), len(complete)) == (3, 1, 4)
    assert not complete & {name.rpartition("/")[2] for name in written}
    assert bits_of(found) == bits_of(undisturbed)
    assert found.fit == undisturbed.fit
    assert not list(Path(place.path).rglob("*.aside"))


# ---------------------------------------------------------------- which labels


def test_audit_labels_and_test_and_val_images_reach_neither_the_fit_nor_the_training(begun):
    """Audited images are in the training as the rest of the pool is, without their labels: or they measured less."""
    from raykd.stages.train import make_job

    given = begun("teacher.rule=gda")
    answers, audit = given.labeled(3), given.labeled(1, skip=3)
    wrong = dict(zip(audit, ["green", "red", "blue"], strict=True))  # so that they would be seen in the fit
    answer(given.campaign, wrong, "audit")
    held_out = given.pool.manifest.filter(pa.compute.not_equal(given.pool.manifest["split"], "pool"))
    answer(given.campaign, dict.fromkeys(held_out["sample_id"].to_pylist(), "blue"))  # a ledger of another split
    labels = given.settle(answers)
    assert len(labels.table) == 9 + 3 + len(held_out)
    teacher = given.refit(labels)
    assert teacher.fit["num_labels"] == 9
    np.testing.assert_allclose(probs_of(teacher), plain_fit("gda", given, answers)[1], atol=2e-3)
    job = make_job(given.campaign, 0, given.pool, given.encoded, teacher, labels, None)
    ids, num_labeled = job.ids.to_pylist(), len(job.labels_L)
    assert ids[:num_labeled] == sorted(answers)
    assert set(audit) < set(ids[num_labeled:])
    assert not set(ids) & {*held_out["sample_id"].to_pylist()}


def test_audit_images_are_not_picked_again(begun, finished):
    from dataclasses import replace

    from raykd.stages.select import select

    given = begun("selection.budget=19", "teacher.rule=gda")
    answers, audit = given.labeled(2), given.labeled(1, skip=2)
    answer(given.campaign, audit, "audit")
    before = replace(finished.rounds[0], labels=given.settle(answers))
    picks = select(given.campaign, 1, given.pool, given.encoded, given.first, before)
    pool = given.encoded.readable(given.pool.split("pool"))["sample_id"].to_pylist()
    assert sorted(picks.ids.to_pylist()) == sorted(set(pool) - {*answers, *audit})


def test_an_image_that_shows_the_teacher_nothing_is_refused_by_name(begun, in_parts):
    given = in_parts(begun("teacher.rule=gda"), 49)
    labels = given.labeled(2)
    name = sorted(labels)[1]
    file = given.encoded.parts[0].place / "block_0.parquet"
    table = file.read_table()
    rows = np.array(table["features"].to_pylist(), np.float16)
    rows[table["sample_id"].to_pylist().index(name)] = 0
    file.write_table(table.set_column(2, "features", pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 16)))
    with pytest.raises(UserError, match=rf"features of '{name}' have length 0.*cannot_label"):
        given.refit(given.settle(labels))
    assert not list(Path(given.campaign.round_place(0).path).rglob("fit"))


@pytest.mark.parametrize(("rule", "per_class"), [("gda", 1), *((rule, 3) for rule in LEARNING)])
def test_labels_of_one_class_are_enough_to_go_on(begun, rule, per_class):
    given = begun(f"teacher.rule={rule}")
    labels = given.labeled(per_class, ("green",))
    teacher = given.refit(given.settle(labels))
    assert np.isfinite(probs_of(teacher)).all()
    assert teacher.fit["num_labels"] == per_class
    assert teacher.fit["after"] is None  # they say nothing of how good it is


@pytest.mark.parametrize("rule", ["gda", "proker", "tip", "clap"])
def test_a_class_without_labels_has_a_stand_in(begun, rule):
    given = begun(f"teacher.rule={rule}", "classes=[blue, green, red, purple]", "labels.start=none")
    labels = given.labeled(4)
    teacher = given.refit(given.settle(labels))
    np.testing.assert_allclose(probs_of(teacher), plain_fit(rule, given, labels)[1], atol=2e-3)
    assert probs_of(teacher).shape == (48, 4)
    assert np.ptp(np.log(probs_of(teacher)[:, 3])) > 0.1  # it says something of the images, too


@pytest.mark.parametrize("renamed", ["{red: crimson}", "{red: warm, green: warm}"])
def test_labels_of_a_renamed_or_merged_class_are_those_of_its_new_name(begun, renamed):
    before = begun("teacher.rule=gda")
    answers = before.labeled(4)
    before.refit(before.settle(answers))
    given = begun("teacher.rule=gda", f"labels.renamed={renamed}")
    more = given.labeled(1, ("blue",), skip=4)
    teacher = given.refit(given.settle(more, number=1), number=1)
    now = {name: given.pool.renamed.get(label, label) for name, label in (answers | more).items()}
    np.testing.assert_allclose(probs_of(teacher), plain_fit("gda", given, now)[1], atol=2e-3)
    assert teacher.classes == given.pool.classes


# ---------------------------------------------------------------- a pool that grows


def test_the_last_opinion_covers_the_images_that_have_come_since(begun, tmp_path, finished):
    """The next round's cards show it for them, too."""
    from raykd.stages import label
    from raykd.stages.train import train

    given = begun("teacher.rule=gda", "student.steps=1")
    labels = given.settle(given.labeled(3))
    first = given.refit(labels)
    train(given.campaign, 0, given.pool, given.encoded, first, labels)
    folder = Path(given.campaign.config.pool.path) / "green"
    new = folder / "zz_new.png"
    Image.new("RGB", (24, 24), (40, 200, 10)).save(new)
    try:
        grown = begun("teacher.rule=gda", "student.steps=1")
        assert len(grown.encoded.parts) == len(given.encoded.parts) + 1
        teacher = grown.refit(labels)
        ids = pa.chunked_array([["green/zz_new.png", *given.labeled(1)]])
        assert teacher.parts[: len(first.parts)] == first.parts
        assert teacher.fingerprint == first.fingerprint
        _, probs = plain_fit("gda", grown, given.labeled(3))
        where = features_of(grown.encoded)[0].index("green/zz_new.png")
        np.testing.assert_allclose(teacher.probabilities(ids)[0], probs[where], atol=2e-3)
        table = pa.table(
            [ids, pa.array(range(4), pa.int32()), pa.array([0.0] * 4), pa.nulls(4, pa.float64())], schema=PICKS
        )
        place = Place.of(tmp_path / "picks")
        (place / "picks.parquet").write_table(table)
        cards = label.cards(grown.pool, teacher, Picks(Done(place, "p")), None).to_pylist()
        assert cards[0]["teacher"][0]["label"] == grown.pool.classes[probs[where].argmax()]
        assert cards[0]["teacher"][0]["p"] == pytest.approx(probs[where].max(), abs=2e-3)
    finally:
        new.unlink()


# ---------------------------------------------------------------- augmented views


@pytest.fixture
def read_images(monkeypatch) -> list[str]:
    """The images that Ray Data is given to read, as they come."""
    return images_read(monkeypatch, lambda uri: "/".join(uri.split("/")[-2:]))


def views_of(given: Begun, names: list[str]) -> np.ndarray:
    """float16 [N, 2, D], as they are stored; NaN where there are none."""
    folders = Path((given.campaign.cache / "views").path).glob("*")
    rows = pa.concat_tables(Place.of(folder).read_table(["sample_id", "features"]) for folder in folders).to_pylist()
    features = {row["sample_id"]: row["features"] for row in rows}
    return np.array([features[name] for name in names], np.float16).reshape(len(names), 2, -1)


@pytest.mark.parametrize("rule", ["gda", "tip_f", "clap"])
def test_views_are_encoded_once_an_image_and_learned_from(begun, read_images, rule):
    given = begun(f"teacher.rule={rule}", "teacher.views=2")
    first, more = given.labeled(2), given.labeled(2, skip=2)
    given.refit(given.settle(first))
    assert sorted(read_images) == sorted(first)
    read_images.clear()
    teacher = given.refit(given.settle(more, number=1), number=1)
    assert sorted(read_images) == sorted(more)
    answers = first | more
    views_NVD = views_of(given, sorted(answers))
    _, expected = plain_fit(rule, given, answers, views_NVD)
    np.testing.assert_allclose(probs_of(teacher), expected, atol=2e-3)
    assert np.abs(expected - plain_fit(rule, given, answers)[1]).max() > 0.01
    read_images.clear()
    assert bits_of(begun(f"teacher.rule={rule}", "teacher.views=2").refit(given.settle({}, 1), 1)) == bits_of(teacher)
    assert read_images == []


def test_no_views_are_made_of_audit_images_until_they_are_learned_from(begun, read_images):
    given = begun("teacher.rule=gda", "teacher.views=2")
    answers, audit = given.labeled(2), given.labeled(1, skip=2)
    answer(given.campaign, audit, "audit")
    given.refit(given.settle(answers))
    assert sorted(read_images) == sorted(answers)
    read_images.clear()
    teacher = given.refit(given.settle(audit, number=1), number=1)
    assert sorted(read_images) == sorted(audit)
    assert teacher.fit["num_labels"] == 9


def test_views_are_cropped_and_flipped_as_the_students_images_are(begun, monkeypatch):
    from raykd.stages import teacher

    asked, encode_views = [], teacher.encode_views

    def watched(*arguments, **options):
        asked.append(options)
        return encode_views(*arguments, **options)

    monkeypatch.setattr(teacher, "encode_views", watched)
    crops = []
    for number, flip in enumerate(("true", "false")):
        given = begun("teacher.rule=gda", "teacher.views=2", "student.crop_area=[0.2,0.3]", f"student.flip={flip}",
                      name=f"flip_{flip}")  # fmt: skip
        given.refit(given.settle(given.labeled(4)))
        assert (asked[number]["area"], asked[number]["flip"]) == ((0.2, 0.3), flip == "true")
        (folder,) = Path(given.campaign.place.path).glob("views/*")
        crops.append(np.array(Place.of(folder).read_table()["crops"].to_pylist()).reshape(-1, 5))
    shares = [(c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) / 24**2 for c in crops]
    assert all(share.max() < 0.4 for share in shares)
    assert crops[0][:, 4].any()
    assert not crops[1][:, 4].any()


def test_a_change_of_what_views_hang_on_is_said_of_a_fit_that_is_done(begun):
    given = begun("teacher.rule=gda", "teacher.views=2")
    labels = given.settle(given.labeled(2))
    done = given.refit(labels)
    changed = begun("teacher.rule=gda", "teacher.views=2", "student.crop_area=[0.2,0.3]")
    assert bits_of(changed.refit(labels)) == bits_of(done)
    assert "is done, and keeps what was set then; from the next round on: crop_area" in (
        changed.campaign.progress.stream.getvalue()
    )


def test_views_are_not_asked_for_where_the_rule_learns_from_the_image_as_it_is(begun, no_image_is_read):
    given = begun("teacher.rule=proker", "teacher.views=2")
    labels = given.labeled(3)
    np.testing.assert_allclose(
        probs_of(given.refit(given.settle(labels))), plain_fit("proker", given, labels)[1], atol=2e-3
    )


def test_a_labeled_image_whose_views_cannot_be_had_is_its_own_view(begun, finished):
    given = begun("teacher.rule=gda", "teacher.views=2", "max_bad_share=0.5")
    answers = given.labeled(3)
    name = sorted(answers)[4]
    file = Path(finished.settings["pool"]["path"]) / name
    file.rename(file.with_suffix(".away"))
    try:
        teacher = given.refit(given.settle(answers))
    finally:
        file.with_suffix(".away").rename(file)
    views_NVD = views_of(given, sorted(answers))
    assert np.isnan(views_NVD[4]).all()
    ids, features_ND = features_of(given.encoded)
    views_NVD[4] = features_ND[ids.index(name)]
    np.testing.assert_allclose(probs_of(teacher), plain_fit("gda", given, answers, views_NVD)[1], atol=2e-3)
    assert f"1 images cannot be read and have no views, first {name!r}" in (given.campaign.progress.stream.getvalue())
