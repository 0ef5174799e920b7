"""What Ray Train and Ray Tune keep while they are at work, by round: gone when the round's stage is complete."""

from __future__ import annotations

import pyarrow.fs as pafs

from raykd.store.place import Place


def of_round(number: int) -> str:
    """What the names of a round's folders begin with."""
    return f"round-{number:03d}-"


def clear_scratch(scratch: Place, number: int) -> None:
    """Delete what a round has left, attempts that were killed and those of other settings too."""
    selector = pafs.FileSelector(scratch.path, allow_not_found=True)
    for info in scratch.fs.get_file_info(selector):
        if info.type == pafs.FileType.Directory and info.base_name.startswith(of_round(number)):
            scratch.fs.delete_dir(info.path)
