"""A saved student as files, without torch: what it takes to deploy one with another mixture.

Of a frozen student there are two files of weights: :data:`WEIGHTS` has its heads, and :data:`NETWORK` the network under
them, the same in all rounds of a campaign. Without the second it takes stored features in the place of images.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict

from raykd.algo.heads import Mixture
from raykd.models.preprocess import ABOUT
from raykd.store.place import Place

WEIGHTS = "model.safetensors"
NETWORK = "network.safetensors"
MODEL_BYTES = 2**30  # of a process with torch, without a model's weights


def deploy(student: Place, folder: Place, mixture: Mixture, network: Place | None = None) -> None:
    """Copy a saved student into a folder, with this mixture; ``network``: the file of that under a frozen one."""
    (folder / WEIGHTS).write_bytes((student / WEIGHTS).read_bytes())
    if network is not None:
        same_file(network, folder / NETWORK)
    (folder / ABOUT).write_json((student / ABOUT).read_json() | {"mixture": asdict(mixture)})


def same_file(source: Place, target: Place) -> None:
    """A file under another name: on one local disk a link, which takes no room, else a copy made by the storage.

    For files that nobody ever writes to again. Whoever copies the folder has the file, and deleting one name leaves the
    other.
    """
    if source.is_local:
        with suppress(OSError):  # another disk, or one without links
            os.link(source.path, target.path)
            return
    source.fs.copy_file(source.path, target.path)
