"""Score images by a vision-language model, without a campaign: a table of features and class probabilities.

    python jobs/score.py --pool /data/birds --classes birds.txt --model ViT-B-32 --pretrained laion2b_s34b_b79k \\
        --out scores
    python jobs/pick.py --pool scores --budget 100 --out picks.parquet

The pool is looked at as jobs/new.py does; --format and the columns say what else it is, in the words of a config. OUT
is a folder of Parquet files with ``sample_id``, ``uri``, ``label`` (where there are any), ``features`` (float16, of
length 1) and ``probs`` (float32, in the order of classes in its _DONE.json). Features are kept in OUT.cache: a run that
was killed goes on, other classes or templates read no image, and a campaign with that ``cache_path`` reads none either.
Images that cannot be read are left out, and listed there with the reason in quarantine.parquet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from raykd import cli
from raykd.config import Config, ModelConfig, Source
from raykd.errors import UserError

if TYPE_CHECKING:
    from raykd.store.stage_folder import Done

SOURCE_FIELDS = ("format", "id_column", "image_column", "uri_column", "label_column", "split_file", "label_values")
FORMATS = Source.model_fields["format"].annotation


def same(name: str, section: Any = Source) -> Any:
    """An option that a config has under this name."""
    return Field(None, description=section.model_fields[name].description)


class Options(ModelConfig):
    """What to score by what."""

    model: str = Field(description=str(ModelConfig.model_fields["model"].description))
    pool: str = Field(description="folder, Parquet file, tars or a list of the images; local, s3:// or gs://")
    classes: str | None = Field(None, description="file of class names; or names with commas between; else the data's")
    format: FORMATS | None = same("format")  # type: ignore[valid-type]
    id_column: str | None = same("id_column")
    image_column: str | None = same("image_column")
    uri_column: str | None = same("uri_column")
    label_column: str | None = same("label_column")
    split_file: str | None = same("split_file")
    label_values: Literal["sorted", "index"] | None = same("label_values")
    decode: Literal["reduced", "exact"] = Field("reduced", description=Config.model_fields["decode"].description)
    local_cpus: int | None = same("local_cpus", Config)
    stall_s: float = Field(1800, gt=0, description=Config.model_fields["stall_s"].description)
    cache: str | None = Field(None, description="folder of the features; else OUT.cache")
    out: str = Field(description="folder of the table to write; never overwritten")


def run(options: Options) -> Done:
    """Score, and write the table."""
    from raykd.stages.progress import Progress
    from raykd.stages.score import ScoreRequest, check_folder_to_write, score_pool
    from raykd.stages.session import Session
    from raykd.stages.work import Work
    from raykd.store.lock import only_job
    from raykd.store.place import Place

    started = time.perf_counter()
    out = Place.of(options.out)
    cache = Place.of(options.cache) if options.cache else out.sibling(f"{out.path.rstrip('/')}.cache")
    classes: Any = options.classes
    if classes is not None and "," in classes and not Place.of(classes).exists():
        classes = [name.strip() for name in classes.split(",") if name.strip()]
    for option, place in (("--out", out), ("--cache", cache)):
        check_folder_to_write(option, place)
    progress = Progress()
    request = ScoreRequest(
        source=source_of(options, classes, progress),
        classes=classes,
        teacher=ModelConfig(**{name: getattr(options, name) for name in ModelConfig.model_fields}),
        decode=options.decode,
        out=out,
    )
    with Session(options.local_cpus, options.stall_s, progress) as session, only_job(cache) as still_ours:
        done = score_pool(Work(place=cache, progress=progress, session=session, still_ours=still_ours), request)
    facts = done.facts
    print(f"{facts['rows']:,} images, {len(facts['classes'])} classes, {time.perf_counter() - started:.1f} s; {out}")
    if facts["labeled"]:
        print(f"right on {facts['right'] / facts['labeled']:.1%} of the {facts['labeled']:,} that have a label")
    if facts["unreadable"]:
        print(f"{facts['unreadable']:,} images could not be read: {cache / 'quarantine.parquet'}")
    return done


def source_of(options: Options, classes: Any, progress: Any) -> Source:
    """The source, looked at where the options do not say what it is."""
    from raykd.store.place import Place

    given = {name: value for name in SOURCE_FIELDS if (value := getattr(options, name)) is not None}
    given = {name: None if value == "null" else value for name, value in given.items()}
    if "format" in given:
        return Source(path=Place.of(options.pool).uri, **given)
    if given:
        option = next(iter(given)).replace("_", "-")
        raise UserError(f"--{option} says how to read a source of one format: give --format, too")
    from raykd.images.class_lists import class_list
    from raykd.images.survey import survey

    found = survey(Place.of(options.pool).uri, None if classes is None else list(class_list(classes, None)))
    for line in found.lines:
        progress.say("pool", line)
    return Source(**found.pool)


main = cli.step_job(run, Options, __doc__)

if __name__ == "__main__":
    main()
