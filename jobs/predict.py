"""Predict images by a student, without a campaign: a table of classes and probabilities.

    python jobs/predict.py --model runs/birds --pool /data/more --out predictions
    python jobs/predict.py --model runs/birds/round_002/student --pool s3://bucket/photos --out predictions --top 5

The pool is looked at as jobs/new.py does; --format and the columns say what else it is, in the words of a config. OUT
is a folder of Parquet files with ``sample_id``, ``uri``, ``label`` (where there are any), ``prediction`` (the likeliest
class), ``confidence`` (its probability) and ``probs`` (float32, in the order of classes in its _DONE.json). For many
images and classes ``--top 5`` keeps the five likeliest classes instead of all ``probs``, ``--top 0`` neither. What is
done is kept in OUT.cache, so a run that was killed goes on; it may be deleted when OUT is there. Images that cannot be
read are left out, and listed there with the reason in quarantine.parquet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import Field

from raykd import cli
from raykd.config import Count, Gpus, ModelConfig, Replicas, StudentConfig
from raykd.pool_options import PoolOptions, same

if TYPE_CHECKING:
    from raykd.store.stage_folder import Done


class Options(PoolOptions):
    """What to predict by what."""

    model: str = Field(
        description="folder of a student (RUN/round_002/student), an export, or a campaign (its last finished round)"
    )
    top: int | None = Field(None, ge=0, description="so many of the likeliest classes instead of all probabilities")
    features: bool = Field(False, description="the model's features, too, float16")
    batch_size: Count = same("predict_batch_size", StudentConfig, 256)
    replicas: Replicas = same("replicas", ModelConfig, 1)
    num_cpus: float = Field(1, gt=0, description="CPUs of each replica")
    num_gpus: Gpus = same("num_gpus", ModelConfig, 0)


def run(options: Options) -> Done:
    """Predict, and write the table."""
    from raykd.stages.classify import ClassifyRequest, Kept, classify_pool, named_model
    from raykd.stages.pool_table import pool_job, tell

    started = time.perf_counter()
    model = named_model(options.model)
    how = options.model_dump(include={"batch_size", "replicas", "num_cpus", "num_gpus"})
    with pool_job(options, model.classes) as (work, begun):
        kept = Kept(options.top, options.features)
        done = classify_pool(work, ClassifyRequest(model=model, kept=kept, **how, **begun))
    tell(work, done, time.perf_counter() - started)
    return done


main = cli.step_job(run, Options, __doc__)

if __name__ == "__main__":
    main()
