"""What the teacher says of augmented images that a student trains on: of stored views, or of each crop as it comes.

N images, K views of each, n images of a batch, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raykd.algo.few_shot.scorer import Scorer
from raykd.algo.zeroshot import rounded
from raykd.errors import UserError
from raykd.models.teacher import ImageTower
from raykd.store.place import Place

READ_ROWS = 4096  # of a table of views, at a time


@dataclass(frozen=True)
class StoredViews:
    """Views of every image, encoded already. Travels to workers.

    Args:
        uris: Folders of tables.VIEWS, together every image once.
        count: K, of each image.
        size: Height and width of the views, pixels; the boxes are of images decoded for that.
        scorer: From features to logits.
    """

    uris: tuple[str, ...]
    count: int
    size: tuple[int, int]
    scorer: Scorer

    def crops(self, ids: pa.ChunkedArray) -> np.ndarray:
        """The views' boxes, int32 [N, K, 5]: left, top, right, bottom, and 1 if it is flipped; in the order of ``ids``.

        Raises:
            UserError: An image has no views.
        """
        crops_NK5 = np.zeros((len(ids), self.count, 5), np.int32)
        for rows, crops in self._parts(ids, "crops"):
            crops_NK5[rows] = crops.reshape(len(rows), self.count, 5)
        return crops_NK5

    def logits(self, ids: pa.ChunkedArray, num_classes: int, file: Any) -> np.memmap:
        """The teacher's logits of the views of some images, in a mapped file.

        Args:
            ids: Of the images, all different.
            num_classes: C.
            file: Path, or open file, to write into.

        Returns:
            float16 [N, K, C] (:func:`raykd.algo.zeroshot.rounded`), in the order of ``ids``. Cost: N K D C products,
            one pass over the views.

        Raises:
            UserError: An image has no views.
        """
        logits_NKC = np.memmap(file, np.float16, "w+", shape=(len(ids), self.count, num_classes))
        for rows, features in self._parts(ids, "features"):
            found = self.scorer.logits(features.reshape(len(rows) * self.count, -1))
            logits_NKC[rows] = rounded(found).reshape(len(rows), self.count, num_classes)
        return logits_NKC

    def _parts(self, ids: pa.ChunkedArray, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places among ``ids``, and the column's numbers [n, ...] there; each of them once."""
        seen_N, good = np.zeros(len(ids), bool), pc.field("error").is_null()
        for uri in self.uris:
            stored = Place.of(uri).parquet()
            for batch in stored.to_batches(columns=["sample_id", column], filter=good, batch_size=READ_ROWS):
                rows = pc.fill_null(pc.index_in(batch["sample_id"], value_set=ids), -1).to_numpy()
                mine_n = rows >= 0
                if mine_n.any():
                    numbers = batch[column].flatten().to_numpy().reshape(len(rows), -1)
                    seen_N[rows[mine_n]] = True
                    yield rows[mine_n], numbers[mine_n]
        if missing := int((~seen_N).sum()):
            first = ids[int(np.flatnonzero(~seen_N)[0])].as_py()
            raise UserError(
                f"{missing} images have no views that the teacher has seen, first {first!r}: it was readable and is no "
                "more. Put it back, or leave it out: answer it with cannot_label"
            )


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher that looks at every crop that is trained on. Travels to workers, which load it.

    Args:
        folder: The fetched model.
        size: Height and width of what it sees, pixels.
        precision: Of its image tower.
        scorer: From features to logits.
    """

    folder: Place
    size: tuple[int, int]
    precision: str
    scorer: Scorer

    def load(self, device: str, num_threads: int) -> LoadedTeacher:
        return LoadedTeacher(ImageTower(self.folder, self.precision, device, num_threads), self.scorer)


@dataclass(frozen=True)
class LoadedTeacher:
    """The same, loaded."""

    tower: ImageTower
    scorer: Scorer

    def logits(self, pixels: np.ndarray) -> torch.Tensor:
        """float32 [n, C] of uint8 [n, H, W, 3]. Cost: a forward pass of the teacher."""
        return torch.from_numpy(self.scorer.logits(self.tower.features(pixels)))
