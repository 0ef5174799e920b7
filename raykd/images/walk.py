"""What lies below a folder, on a disk or an object store: every file once, links followed, nothing left out unsaid."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from raykd.errors import StorageError, why
from raykd.images.manifest import Say
from raykd.store.place import Place

OF_SYSTEMS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}  # not the user's own


@dataclass
class Files:
    """Files and folders below a folder, by their paths relative to it; and what is not listed."""

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes
    times: list[int] = field(default_factory=list)  # of the last change, nanoseconds
    folders: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)  # links to what is listed, and loops
    unnamed: list[bytes] = field(default_factory=list)  # names that are not UTF-8, so that no table can hold them
    endless: list[str] = field(default_factory=list)  # pipes, sockets, devices, and links to them


def files_below(place: Place, split: str, say: Say) -> Files:
    """All files below a folder, sorted, each real one once: links are followed, but not into loops."""
    files = LocalWalk(place.path, split).files if place.is_local else stored_files(place, split)
    order = sorted(range(len(files.names)), key=files.names.__getitem__)
    files.names = [files.names[i] for i in order]
    files.sizes, files.times = [files.sizes[i] for i in order], [files.times[i] for i in order]
    for what, left_out in (
        ("links lead nowhere", files.dangling),
        ("links lead to what is listed already", files.repeated),
        ("names are not UTF-8; rename them", files.unnamed),
        ("are neither files nor folders (pipes, sockets, devices)", files.endless),
    ):
        if left_out:
            say(split, f"{len(left_out):,} {what}, such as {min(left_out)!r} in {place}; left out")
    return files


def hidden(name: str) -> bool:
    return name.startswith(".") or name in OF_SYSTEMS


def stored_files(place: Place, split: str) -> Files:
    """Of an object store, which has no links."""
    files, root = Files(), place.path.rstrip("/") + "/"
    try:
        infos = place.fs.get_file_info(pafs.FileSelector(place.path, recursive=True))
    except OSError as error:
        raise StorageError(f"{split}: cannot list {place}: {why(error)}") from error
    for info in infos:
        name = info.path.removeprefix(root)
        if any(map(hidden, name.split("/"))):
            continue
        if info.type == pafs.FileType.Directory:
            files.folders.append(name)
        elif info.is_file:
            files.names.append(name)
            files.sizes.append(info.size)
            files.times.append(info.mtime_ns)
    return files


class LocalWalk:
    """Lists a folder on a disk: first what is there itself, then what links lead to, in the order of their names."""

    def __init__(self, root: str, split: str) -> None:
        self.root, self.split, self.files = root, split, Files()
        self.real_root = os.path.realpath(root)
        self.links: list[str] = []  # still to be followed
        self.real_folders: set[str] = set()
        self.real_files: set[str] = set()  # kept when there are links: without, no file can be there twice
        self.keep = False
        self.add_folder("", self.real_root)
        if self.links:
            self.keep = True
            self.real_files = {f"{self.real_root}/{name}" for name in self.files.names}
        while self.links:
            links, self.links = sorted(self.links), []
            for name in links:
                self.follow(name)

    def follow(self, name: str) -> None:
        real = os.path.realpath(f"{self.root}/{name}")
        if not os.path.exists(real):
            self.files.dangling.append(name)
        elif real in self.real_folders or real in self.real_files or self.real_root.startswith(real.rstrip("/") + "/"):
            self.files.repeated.append(name)
        elif os.path.isdir(real):
            self.files.folders.append(name)
            self.add_folder(name, real)
        elif os.path.isfile(real):
            self.add_file(name, real, os.stat(real))
        else:
            self.files.endless.append(name)

    def add_file(self, name: str, real: str, about: os.stat_result) -> None:
        if real in self.real_files:
            self.files.repeated.append(name)
            return
        if self.keep:
            self.real_files.add(real)
        self.files.names.append(name)
        self.files.sizes.append(about.st_size)
        self.files.times.append(about.st_mtime_ns)

    def add_folder(self, top: str, real_top: str) -> None:
        """Add what lies below the folder ``top``, which really is ``real_top``; links are only noted."""
        todo = [(top, real_top)]
        while todo:
            folder, real = todo.pop()
            if real in self.real_folders:
                self.files.repeated.append(folder)
                continue
            self.real_folders.add(real)
            prefix = f"{folder}/" if folder else ""
            try:
                with os.scandir(real) as entries:
                    for entry in entries:
                        name, real_name = prefix + entry.name, f"{real}/{entry.name}"
                        if hidden(entry.name):
                            continue
                        if not name.isascii() and not is_utf8(name):
                            self.files.unnamed.append(os.fsencode(name))
                        elif entry.is_symlink():
                            self.links.append(name)
                        elif entry.is_dir():
                            self.files.folders.append(name)
                            todo.append((name, real_name))
                        elif entry.is_file():
                            self.add_file(name, real_name, entry.stat())
                        else:
                            self.files.endless.append(name)
            except OSError as error:
                raise StorageError(
                    f"{self.split}: cannot list {real}: {why(error)}; make it readable, or move it away"
                ) from error


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
