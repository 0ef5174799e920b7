"""Images as people are shown them: a small picture, and the likeliest classes by whoever has an opinion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raykd.images.reading import load_many
from raykd.images.stored import ImageReader
from raykd.images.transforms import Thumbnail
from raykd.store.tables import CARDS

TOP = 3
THUMBNAIL = 96  # pixels
SHOWN_WRONG = 12  # mistakes, and labels that look like slips, of a round


def thumbnails(uris: pa.ChunkedArray) -> pa.Array:
    """JPEG or PNG of each image, null where it cannot be read. Raises StorageError where the storage fails."""
    shown = Thumbnail(THUMBNAIL)
    pictures = load_many(ImageReader(), uris.to_pylist(), shown, shown.shrinks)
    return pa.array([None if isinstance(picture, str) else picture for picture in pictures], pa.binary())


def top_guesses(probs_NC: np.ndarray, classes: Sequence[str]) -> pa.Array:
    """The most probable classes of each row, best first; of equal ones the smaller index first. Of a NaN row null."""
    best_NT = np.argsort(-probs_NC, axis=1, kind="stable")[:, :TOP].tolist()
    unknown_N = np.isnan(probs_NC).any(axis=1)
    rows = [
        None if unknown_N[n] else [{"label": classes[c], "p": float(probs_NC[n, c])} for c in best]
        for n, best in enumerate(best_NT)
    ]
    return pa.array(rows, CARDS.field("teacher").type)
