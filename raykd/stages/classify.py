"""Any pool through a student, without a campaign: a table of predictions, made by parts as a round's are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.config import Replicas
from raykd.errors import UserError
from raykd.images.pixel_batches import Fetch, PixelBatch
from raykd.models.opened import Found, find_model
from raykd.models.threads import limited_threads
from raykd.stages.campaign import count_done, round_place
from raykd.stages.pool_table import PoolRequest, finished_table, listed_pool, write_parts, write_table_part
from raykd.stages.weights import fetch_files
from raykd.stages.work import Work
from raykd.store.outputs import QUARANTINE_FILE, FromImages, manifest_content
from raykd.store.place import Place
from raykd.store.stage_folder import Done, fingerprint
from raykd.store.status import CAMPAIGN_FILE
from raykd.store.tables import classified, vectors

VERSION = 1


@dataclass(frozen=True)
class Kept:
    """What the table has of each image beside the likeliest class and its probability.

    Args:
        top: So many of the likeliest classes; None: the probabilities of all.
        features: The model's features.
    """

    top: int | None
    features: bool


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest(PoolRequest):
    """What to predict by what.

    Args:
        model: Of :func:`named_model`.
        kept: What of it goes into the table.
        batch_size, replicas, num_cpus, num_gpus: How it runs.
    """

    model: Found
    kept: Kept
    batch_size: int
    replicas: Replicas
    num_cpus: float
    num_gpus: float


def named_model(path: str) -> Found:
    """The model of a folder; of a campaign's that of its last finished round. Raises UserError: there is none."""
    place = Place.of(path)
    try:
        if (place / CAMPAIGN_FILE).exists():
            if not (done := count_done(place)):
                raise UserError(f"no round of the campaign in {place} is finished yet")
            place = round_place(place, done - 1)
        return find_model(place)
    except UserError as error:
        raise UserError(f"--model: {error}") from error


def classify_pool(work: Work, request: ClassifyRequest) -> Done:
    """The table (tables.CLASSIFIED), a file a part; images that cannot be read are listed in the cache.

    Cost: one pass over the images. A finished table is only looked at.

    Args:
        work: Its place is the cache.
        request: What is asked for.

    Raises:
        UserError: There are no images; ``out`` holds another table; no image can be read.
        StorageError: The network, the credentials or a disk fail.
    """
    found, kept = request.model, request.kept
    rows = listed_pool(work, request.source, found.classes).rows
    work.say("model", f"{found.place}: {found.words}")
    work.say("pool", f"{rows.num_rows:,} images; {len(found.classes)} classes")
    say_other_labels(work, rows, found.classes)
    files = {name: (found.place / name).sha256() for name in found.files}
    asked = {"model": fingerprint(files), "decode": request.decode, "top": kept.top, "features": kept.features}
    begun_from = {"rows": manifest_content(rows), "asked": asked}
    folder = work.stage_folder(request.out, "predictions", version=VERSION, made_from=begun_from)
    if there := finished_table(folder):
        return there
    work.session.begin()  # beside the imports
    model = fetch_files(work, "model", "model", found.place, files)

    from raykd.stages.map_images import (
        Model,
        check_share,
        find_parts,
        make_parts,
        model_memory,
        num_missing,
        say_changes,
    )

    parts = find_parts(
        work, [rows], at=work.place / "predict", name="predict", version=VERSION, made_from=asked,
        settings={"batch_size": request.batch_size}, shared=True,
    )  # fmt: skip
    answers = Model(
        ClassifiedParts,
        {"folder": model.place, "kept": kept, "num_cpus": request.num_cpus, "num_gpus": request.num_gpus},
        classified(kept.top, kept.features, part=True), request.replicas, request.num_cpus, request.num_gpus,
        memory_bytes=model_memory(model.place),
    )  # fmt: skip
    exact = request.decode == "exact"
    side = found.preprocess.image_size
    fetch = Fetch(found.preprocess.clean(exact), (side, side), request.batch_size, exact)
    made = FromImages(tuple(make_parts(work, "predict", parts, fetch, answers, check=lambda bad: None)))
    check_share(work, "predict", made, 1.0, work.place / QUARANTINE_FILE)
    if num_missing(parts):
        say_changes(work, "predict", made)
    with folder.writing() as out:
        out.facts |= {"classes": found.classes, "model": found.words}
        write_parts(work, out, made, rows, request.num_cpus, write_answers, kept, found.classes)
    return out.complete


def say_other_labels(work: Work, rows: pa.Table, classes: list[str]) -> None:
    """Say how many images have a label that the model does not know: nothing hangs on it but how often it is right."""
    other = rows["label"].drop_null()
    other = other.filter(pc.invert(pc.is_in(other, value_set=pa.array(classes, pa.string()))))
    if len(other):
        work.say("pool", f"{len(other):,} labels are no class of the model, such as {other[0].as_py()!r}: not counted")


class ClassifiedParts:
    """A model over batches of images: of each what is kept (tables.CLASSIFIED, in parts)."""

    def __init__(self, folder: Place, kept: Kept, num_cpus: float, num_gpus: float) -> None:
        from raykd.models.opened import open_model

        self.model, self.kept = open_model(folder, "cuda" if num_gpus else "cpu"), kept
        self.num_threads = max(1, int(num_cpus))
        self.classes = pa.array(self.model.classes, pa.string())

    def __call__(self, batch: PixelBatch) -> pa.Table:
        count, bad_N = len(batch), batch.bad_N
        with limited_threads(self.num_threads):
            if self.kept.features:
                features_ND, probs_NC = (rows[:count] for rows in self.model.with_features(batch.pixels))
            else:
                features_ND, probs_NC = None, self.model.probabilities(batch.pixels)[:count]
        probs_NC = np.where(bad_N[:, None], np.float32(np.nan), probs_NC)
        order_NK = np.argsort(-probs_NC, axis=1, kind="stable")[:, : max(1, self.kept.top or 0)]
        likely_NK = np.take_along_axis(probs_NC, order_NK, axis=1)
        columns = {
            "sample_id": batch.sample_ids,
            "error": batch.errors,
            "prediction": self.classes.take(pa.array(order_NK[:, 0], mask=bad_N)),
            "confidence": pa.array(likely_NK[:, 0]),
        }
        if self.kept.top is None:
            columns["probs"] = vectors(probs_NC)
        elif self.kept.top:
            guesses = [self.classes.take(pa.array(order_NK.ravel())), pa.array(likely_NK.ravel())]
            starts = pa.array(np.arange(count + 1, dtype=np.int32) * order_NK.shape[1])
            columns["top"] = pa.ListArray.from_arrays(starts, pa.StructArray.from_arrays(guesses, ["label", "p"]))
        if features_ND is not None:
            columns["features"] = vectors(features_ND.astype(np.float16), bad_N)
        return pa.table(columns)


def write_answers(part: Place, file: Place, kept: Kept, classes: list[str], rows: pa.Table) -> dict[str, int]:
    """One part: of the images that could be read, tables.CLASSIFIED."""
    table = part.read_table().sort_by("sample_id")
    table = table.filter(table["error"].is_null())
    columns = {name: table[name] for name in table.column_names if name not in ("sample_id", "error")}
    schema = classified(kept.top, kept.features)
    return write_table_part(file, rows, table["sample_id"], columns, table["prediction"], classes, schema)
