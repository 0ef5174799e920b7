"""What Ray Train and Ray Tune keep while they are at work, by round: gone when the round's stage is complete."""

from __future__ import annotations

import pyarrow.fs as pafs

from raykd.store.place import Place


def of_round(number: int) -> str:
    """What the names of a round's folders begin with."""
    return f"round-{number:03d}-"


def folders_of(place: Place) -> list[str]:
    """The names of a place's folders, in order; none where there is no such place."""
    infos = place.fs.get_file_info(pafs.FileSelector(place.path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def clear_scratch(scratch: Place, number: int) -> None:
    """Delete what a round has left, attempts that were killed and those of other settings too."""
    for name in folders_of(scratch):
        if name.startswith(of_round(number)):
            scratch.fs.delete_dir((scratch / name).path)
