"""The demo's pool: scikit-learn's 1,797 handwritten digits, as one Parquet file.

Shape letters: N pictures, H and W pixels.
"""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raykd.config import Source
from raykd.demo import CLASSES, POOL
from raykd.errors import UserError, did_you_mean, why
from raykd.store.place import Place

TEACHER = Path(__file__).parent / "teacher"

POOL_FILE = "digits.parquet"
IMAGE_SIZE = 32
SPLIT_SIZES = {"test": 400, "val": 150}  # the rest is the pool
SPLIT_SEED = 0
ROW_GROUP_SIZE = 128


def materialise(source: Source, shared: Place | None = None) -> Source:
    """The source itself; of one whose path is ``demo:digits``, the same with the path of the file, made when missing.

    The file is in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), outside of any campaign. Costs a second.

    Args:
        source: The pool, as the config has it.
        shared: A folder that all machines of a cluster see; the file is in there instead.

    Raises:
        UserError: ``demo:`` and another name; scikit-learn is missing; the cache cannot be written.
    """
    if not source.path.startswith("demo:"):
        return source
    if source.path != POOL:
        raise UserError(f"no pool {source.path!r} comes with raykd; {did_you_mean(source.path, [POOL])}")
    if shared is not None:
        place = shared / POOL_FILE
        if not place.exists():
            place.write_bytes(pool_bytes())
        return source.model_copy(update={"path": place.uri})
    path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raykd" / POOL_FILE
    try:
        return source.model_copy(update={"path": str(write_pool(path))})
    except OSError as error:
        raise UserError(f"cannot write {path}: {why(error)}; set XDG_CACHE_HOME to a folder that can") from error


def write_pool(path: str | Path) -> Path:
    """Write the demo's pool, the same bytes on every call; leave a file that already holds them alone.

    Args:
        path: The Parquet file. Its folder is made; another file of that name is replaced.

    Returns:
        `path`, complete: it is written aside and renamed.

    Raises:
        UserError: scikit-learn, which ships the digits, is missing.

    Costs about a second and 1 MB.

    Example:
        >>> pq.read_metadata(write_pool("/tmp/raykd-digits.parquet")).num_rows
        1797
    """
    path, content = Path(path), pool_bytes()
    if path.is_file() and path.read_bytes() == content:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)
    return path


def pool_bytes() -> bytes:
    """The pool as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pool_table(), buffer, row_group_size=ROW_GROUP_SIZE)
    return buffer.getvalue()


def pool_table() -> pa.Table:
    """The pool in memory: `sample_id`, `image` (PNG, 8-bit grey, 32x32), `label` (a class name) and `split`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the demo's pool is scikit-learn's digits, not installed: pip install raykd[demo]") from error
    digits = load_digits()
    columns = {
        "sample_id": [f"digit-{i:04d}" for i in range(len(digits.target))],
        "image": pa.array([_png(pixels_HW) for pixels_HW in digits.images], pa.binary()),
        "label": [CLASSES[y] for y in digits.target],
        "split": _splits(digits.target),
    }
    return pa.table(columns)


def _png(pixels_HW: np.ndarray) -> bytes:
    """An 8x8 digit with levels 0 to 16, with one pixel of margin, enlarged. Pillow's integer bicubic has one answer."""
    margin_HW = np.pad(np.round(pixels_HW * (255 / 16)).astype(np.uint8), 1)
    buffer = io.BytesIO()
    Image.fromarray(margin_HW).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).save(buffer, "png")
    return buffer.getvalue()


def _splits(labels_N: np.ndarray) -> list[str]:
    """A split for every picture: each class is shuffled and spread over the splits in the same proportions."""
    # RandomState, unlike default_rng, promises the same stream in every version of numpy.
    shuffled_N = np.random.RandomState(SPLIT_SEED).permutation(len(labels_N))
    place_N = np.empty(len(labels_N))  # of a picture among the shuffled ones of its class, 0 to 1
    for label in np.unique(labels_N):
        members = shuffled_N[labels_N[shuffled_N] == label]
        place_N[members] = (np.arange(len(members)) + 0.5) / len(members)
    order_N = np.argsort(place_N, kind="stable")
    splits_N = np.full(len(labels_N), "pool", dtype=object)
    start = 0
    for split, size in SPLIT_SIZES.items():
        splits_N[order_N[start : start + size]] = split
        start += size
    return splits_N.tolist()
