"""The teacher's features of images in augmented views, by parts: few-shot teachers and students learn from them.

The published figures of GDA are of ten random crops of each labeled image, flipped in half the cases. An image's crops
are drawn by seed, ``sample_id`` and the view's number, so they are the same in any batch, round or campaign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raykd.config import ModelConfig
from raykd.images.pixel_batches import FetchViews, PixelBatch
from raykd.images.transforms import ClipPreprocess, RandomCrop, RandomViews
from raykd.models.teacher import read_clip_preprocess
from raykd.stages.image_features import image_tower
from raykd.stages.map_images import Model, check_splits, find_parts, make_parts, model_memory
from raykd.stages.work import Work
from raykd.store.outputs import Views
from raykd.store.place import Place
from raykd.store.stage_folder import Done
from raykd.store.tables import VIEWS, vectors

VERSION = 1


def encode_views(
    work: Work, tables: Sequence[pa.Table], model: Done, config: ModelConfig, *, views: int,
    area: tuple[float, float], flip: bool, seed: int, at: Place, shared: bool, decode: str, max_bad_share: float,
) -> Views:  # fmt: skip
    """The features of images, of each in several random crops that fill what the teacher sees.

    Cost: as many forward passes as images that are new, times ``views``; each of these images is read once.

    Args:
        work: Where, and on which Ray.
        tables: tables.MANIFEST of the images, each image in one of them; each is cut into parts of its own. So
            the images that a round adds come as one more table, and those before it are found complete.
        model: The fetched teacher.
        config: How it runs. No forward pass has more than ``batch_size`` views.
        views: k, of each image.
        area: Of the crops: smallest and largest share of the image.
        flip: Whether half of them are flipped.
        seed: Of the draws.
        at: Where the parts lie, each named by what it was made from.
        shared: Other jobs may make the same parts at the same time.
        decode: ``exact``: a view has Pillow's pixels for its box, ``image.crop(box).resize(size, BICUBIC)``;
            ``reduced``: of a JPEG that was decoded at a reduced size, in whose pixels its box is.
        max_bad_share: How many may be out of reach.

    Raises:
        UserError: More of the images are out of reach; says which.
        StorageError: The network, the credentials or a disk fail.
    """
    parts = find_parts(
        work, tables, at=at, name="views", version=VERSION, settings={"batch_size": config.batch_size}, shared=shared,
        made_from={
            "model": model.place.name, "precision": config.precision, "decode": decode, "views": views,
            "area": [float(share) for share in area], "flip": flip, "seed": seed,
        },
    )  # fmt: skip
    encoder = Model(
        ViewEncoder, {"folder": model.place, "config": config}, VIEWS, config.replicas, config.num_cpus,
        config.num_gpus, memory_bytes=model_memory(model.place),
    )  # fmt: skip

    def check(bad: pa.Table) -> None:
        check_splits("views", pa.concat_tables(tables), bad, max_bad_share)
        if bad.num_rows:
            first = bad.slice(0, 1).to_pylist()[0]
            work.say(
                "views",
                f"{bad.num_rows} images cannot be read and have no views, first {first['sample_id']!r}: "
                f"{first['reason']}",
            )

    size = ClipPreprocess(read_clip_preprocess(model.place)).size
    crops = RandomViews(RandomCrop(size, area, flip, "bicubic"), views, seed)
    fetch = FetchViews(crops, max(1, config.batch_size // views), decode == "exact")
    return Views(tuple(make_parts(work, "views", parts, fetch, encoder, check)), views)


class ViewEncoder:
    """The image tower over batches of images in several views."""

    def __init__(self, folder: Place, config: ModelConfig) -> None:
        self.tower, self.batch_size = image_tower(folder, config), config.batch_size

    def __call__(self, batch: PixelBatch) -> pa.Table:
        assert batch.crops is not None
        starts = range(0, len(batch.pixels), self.batch_size)
        features = np.concatenate([self.tower.features(batch.pixels[i : i + self.batch_size]) for i in starts])
        count, num_views = batch.crops.shape[:2]
        of_images = features[: count * num_views].reshape(count, -1)
        return pa.table(
            {
                "sample_id": batch.sample_ids,
                "error": batch.errors,
                "crops": vectors(batch.crops.reshape(count, -1)),
                "features": vectors(of_images, batch.bad_N),
            }
        )
