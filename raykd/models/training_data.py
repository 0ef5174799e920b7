"""What a training sees: batches of augmented images, or of stored features, made while the model is at those before.

N images, n of a batch, D feature width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from raykd.errors import UserError
from raykd.images.decoded import DecodedImages
from raykd.images.decoding import Shrinks
from raykd.images.reading import load_one
from raykd.images.stored import ImageReader
from raykd.images.transforms import RandomCrop, height_width
from raykd.models.preprocess import Preprocess
from raykd.models.student import normalised

AHEAD = 2  # batches that are made before they are asked for
GIB = 2**30
SMALL_BYTES = 2**22  # of a batch's pixels


@dataclass(frozen=True)
class AskedBatch:
    """Which images make a batch.

    Args:
        places: int64 [n] among all images, the labeled ones first.
        seeds: int64 [n], of each one's augmentation.
        num_labeled: How many are labeled ones.
    """

    places: np.ndarray
    seeds: np.ndarray
    num_labeled: int


@dataclass(frozen=True)
class Batch:
    """What came of it.

    Args:
        items: uint8 [n, H, W, 3], pixels of the crops; or float32 [n, D], features; or what the model takes already.
        for_teacher: uint8 [n, H', W', 3], the same crops as the teacher takes them; None: it has looked already.
    """

    items: torch.Tensor
    for_teacher: torch.Tensor | None = None

    def pin_memory(self) -> Batch:
        """For a DataLoader, which calls it so."""
        return replace(self, items=self.items.pin_memory())


Made = tuple[AskedBatch, Batch | UserError]


class TrainingData(Protocol):
    """What is trained on."""

    def __len__(self) -> int: ...

    def batches(self, asked: Iterable[AskedBatch], processes: int, on_gpu: bool) -> Iterator[Made]:
        """A batch for each that is asked for, in that order, or what is wrong with it.

        Args:
            processes: That make them; 0: a thread of this one.
            on_gpu: Whether a GPU takes them: small, from pinned memory. A CPU is given what the model takes.
        """
        ...

    def to_input(self, items: torch.Tensor) -> torch.Tensor:
        """Items, on the device already, as the model takes them; as they are when they are that already."""
        ...


class TrainingFeatures:
    """Features of a frozen backbone, for a model that begins behind it. A batch is one look into a table.

    Args:
        features_ND: float [N, D]; may be mapped from a file.
    """

    def __init__(self, features_ND: np.ndarray) -> None:
        self.features_ND = features_ND

    def __len__(self) -> int:
        return len(self.features_ND)

    def batches(self, asked: Iterable[AskedBatch], processes: int, on_gpu: bool) -> Iterator[Made]:
        for one in asked:
            yield one, Batch(torch.from_numpy(np.asarray(self.features_ND[one.places], np.float32)))

    def to_input(self, items: torch.Tensor) -> torch.Tensor:
        return items


class TrainingImages:
    """Augmented crops of images, which are decoded once as far as memory goes.

    What is kept is the image as it was decoded (and reduced, where it need not be exact), so that a crop's box is the
    same whether or not it was. Boxes are drawn by :meth:`raykd.images.transforms.RandomCrop.draws`; torch cuts and
    resizes them, on tensors, with pixels that are Pillow's up to rounding, by a level or two of 255.

    Args:
        ids, uris: Of the images, strings.
        preprocess: Of the student.
        crop_area, flip: See :meth:`raykd.models.preprocess.Preprocess.augmented`.
        exact: JPEGs are never decoded at a reduced size.
        cache_gib: Of decoded images, at most.
        teacher_size: Height and width that the teacher takes, where it is to see the crops.
        crops_NK5: int32 [N, K, 5], boxes to take instead of drawing (:class:`raykd.models.teacher_views.StoredViews`),
            in pixels of images that were decoded for ``teacher_size``; the seed chooses.
    """

    def __init__(
        self,
        ids: pa.ChunkedArray,
        uris: pa.ChunkedArray,
        preprocess: Preprocess,
        crop_area: tuple[float, float],
        flip: bool,
        exact: bool = False,
        *,
        cache_gib: float = 2.0,
        teacher_size: tuple[int, int] | None = None,
        crops_NK5: np.ndarray | None = None,
    ) -> None:
        self.ids, self.uris, self.preprocess = ids, uris, preprocess
        self.crop, self.crops_NK5, self.teacher_size = preprocess.augmented(crop_area, flip), crops_NK5, teacher_size
        sizes = [self.crop.size] if crops_NK5 is None else []  # stored boxes are of what was decoded for the teacher
        sizes += [] if teacher_size is None else [teacher_size]
        self.shrinks: Shrinks | None = None if exact else Least(tuple(replace(self.crop, size=size) for size in sizes))
        self.reader = ImageReader()
        self.decoded, self.kept_at_N = kept_images(uris, self.shrinks, int(cache_gib * GIB))
        # object store clients do not survive a fork
        self.start_method = "spawn" if len(uris) and "://" in uris[0].as_py() else "fork"

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, asked: Iterable[AskedBatch], processes: int, on_gpu: bool) -> Iterator[Made]:
        maker = Maker(self, ready=not on_gpu)
        if processes == 0:
            return made_ahead(maker, asked)
        return iter(
            torch.utils.data.DataLoader(
                maker,  # type: ignore[arg-type]
                batch_size=None,
                sampler=asked,
                num_workers=processes,
                multiprocessing_context=self.start_method,
                pin_memory=on_gpu,
            )
        )

    def batch(self, asked: AskedBatch) -> Batch:
        """The crops that are asked for. Raises UserError: an image can no longer be read."""
        count, (height, width), how = len(asked.places), height_width(self.crop.size), self.crop.interpolation
        images = [self.image(place) for place in asked.places.tolist()]
        crops_n5 = self.crops(asked, images)
        pixels = torch.empty((count, height, width, 3), dtype=torch.uint8)
        for_teacher = None
        if self.teacher_size is not None and self.crops_NK5 is None:
            for_teacher = torch.empty((count, *self.teacher_size, 3), dtype=torch.uint8)
        for i, (image, (*box, _)) in enumerate(zip(images, crops_n5.tolist(), strict=True)):
            pixels[i] = cut_tensor(image, box, (height, width), how)
            if for_teacher is not None:
                same = for_teacher.shape == pixels.shape
                for_teacher[i] = pixels[i] if same else cut_tensor(image, box, for_teacher.shape[1:3], how)
        flipped_n = torch.from_numpy(crops_n5[:, 4] > 0)
        for whole in (pixels, for_teacher):
            if whole is not None:
                whole[flipped_n] = whole[flipped_n].flip(2)
        return Batch(pixels, for_teacher)

    def crops(self, asked: AskedBatch, images: Sequence[np.ndarray]) -> np.ndarray:
        """Of each image left, top, right and bottom of its crop, and 1 if it is flipped: int [n, 5]."""
        if self.crops_NK5 is not None:
            return self.crops_NK5[asked.places, asked.seeds % self.crops_NK5.shape[1]]
        heights_n, widths_n, _ = np.array([image.shape for image in images]).reshape(-1, 3).T
        return self.crop.draws(widths_n, heights_n, asked.seeds)

    def image(self, place: int) -> np.ndarray:
        """uint8 [H, W, 3], decoded. Raises UserError."""
        uri = self.uris[place].as_py()

        def decode() -> np.ndarray:
            found = load_one(self.reader, uri, np.array, self.shrinks)
            if isinstance(found, str):
                raise UserError(
                    f"image {self.ids[place].as_py()!r} was readable and is no more: {found}. Put it back, or leave it "
                    "out: answer it with cannot_label, or, where teacher.rule is table, take its row out of that"
                )
            return found

        return self.decoded.get(int(self.kept_at_N[place]), decode)

    def to_input(self, items: torch.Tensor) -> torch.Tensor:
        return items if items.is_floating_point() else normalised(items, self.preprocess)


@dataclass(frozen=True)
class Least:
    """How much smaller an image is made by the crop that needs most of its detail."""

    crops: tuple[RandomCrop, ...]

    def __call__(self, width: int, height: int) -> float:
        return min(crop.shrinks(width, height) for crop in self.crops)


def cut_tensor(image: np.ndarray, box: Sequence[int], size: Sequence[int], interpolation: str) -> torch.Tensor:
    """A crop, resized with antialiasing: uint8 [H, W, 3]. The bits of torchvision's ``v2.functional.resized_crop``.

    That spends more time on what it is given than on small images; this is the call that it ends in.
    """
    left, top, right, bottom = box
    crop = torch.from_numpy(image[top:bottom, left:right]).permute(2, 0, 1)[None]
    return F.interpolate(crop, tuple(size), mode=interpolation, antialias=True)[0].permute(1, 2, 0)


@dataclass(frozen=True)
class Maker:
    """Makes batches, in a thread or a process beside the training.

    Args:
        data: Of these images.
        ready: Whether to make of few pixels what the model takes, too: four times as many bytes, and containers have
            little memory to share between processes.
    """

    data: TrainingImages
    ready: bool

    def __getitem__(self, asked: AskedBatch) -> Made:
        """A batch. What a user can mend comes back: raised in another process, its text would be a traceback."""
        try:
            batch = self.data.batch(asked)
        except UserError as error:
            return asked, error
        if self.ready and batch.items.nbytes <= SMALL_BYTES:
            batch = replace(batch, items=self.data.to_input(batch.items))
        return asked, batch


def made_ahead(maker: Maker, asked: Iterable[AskedBatch]) -> Generator[Made, None, None]:
    """Batches by a thread of this process, while those before are trained on."""
    asked = iter(asked)

    def make() -> Made | None:
        one = next(asked, None)
        return None if one is None else maker[one]

    pool = ThreadPoolExecutor(1, thread_name_prefix="raykd-batches")
    try:
        waiting = deque(pool.submit(make) for _ in range(AHEAD))
        while made := waiting.popleft().result():
            waiting.append(pool.submit(make))
            yield made if maker.ready else pinned(made)
    finally:
        pool.shutdown(cancel_futures=True)


def pinned(made: Made) -> Made:
    asked, batch = made
    return (asked, batch.pin_memory()) if isinstance(batch, Batch) else made


# ---------------------------------------------------------------- decoded images outlive a training


_KEPT: dict[Any, tuple[pa.ChunkedArray, DecodedImages]] = {}  # the last training's, for the next round of the same job


def kept_images(uris: pa.ChunkedArray, shrinks: Shrinks | None, most_bytes: int) -> tuple[DecodedImages, np.ndarray]:
    """Decoded images of this process, and the number of each uri among them, int64 [N].

    They are what an earlier training has decoded in the same way, if it had all these images; or none yet.
    """
    key = (shrinks, most_bytes)
    if (found := _KEPT.get(key)) is not None:
        before, images = found
        numbers = pc.index_in(uris, value_set=before)
        if not numbers.null_count:
            return images, numbers.to_numpy().astype(np.int64)
    _KEPT.clear()
    images = DecodedImages(len(uris), most_bytes)
    _KEPT[key] = uris, images
    return images, np.arange(len(uris))
