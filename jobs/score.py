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
from typing import TYPE_CHECKING, Any

from pydantic import Field

from raykd import cli
from raykd.config import ModelConfig
from raykd.pool_options import PoolOptions

if TYPE_CHECKING:
    from raykd.store.stage_folder import Done


class Options(PoolOptions, ModelConfig):
    """What to score by what."""

    model: str = Field(description=str(ModelConfig.model_fields["model"].description))
    classes: str | None = Field(None, description="file of class names; or names with commas between; else the data's")


def run(options: Options) -> Done:
    """Score, and write the table."""
    from raykd.images.class_lists import class_list
    from raykd.stages.pool_table import pool_job, tell
    from raykd.stages.score import ScoreRequest, score_pool
    from raykd.store.place import Place

    started = time.perf_counter()
    classes: Any = options.classes
    if classes is not None and "," in classes and not Place.of(classes).exists():
        classes = [name.strip() for name in classes.split(",") if name.strip()]
    teacher = ModelConfig(**{name: getattr(options, name) for name in ModelConfig.model_fields})
    with pool_job(options, None if classes is None else list(class_list(classes, None))) as (work, begun):
        done = score_pool(work, ScoreRequest(classes=classes, teacher=teacher, **begun))
    tell(work, done, time.perf_counter() - started)
    return done


main = cli.step_job(run, Options, __doc__)

if __name__ == "__main__":
    main()
