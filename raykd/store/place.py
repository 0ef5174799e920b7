"""One small view of a place on any pyarrow filesystem: a local folder, NFS, ``s3://`` or ``gs://``.

Everything raykd reads or writes goes through a :class:`Place`, so that a campaign on a laptop and one on a
bucket are the same code. Writes are atomic: on a local disk written aside and renamed, on an object store
by its own atomic put.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raykd.errors import StorageError, UserError, is_passing, of_store, why
from raykd.store.filesystems import QUICK, open_uri

PIECE_BYTES = 2**24


@dataclass(frozen=True)
class Place:
    """A file or folder, by path or URI.

    Args:
        uri: Absolute local path, or a URI that ``pyarrow.fs.FileSystem.from_uri`` knows
            (``s3://bucket/folder?region=eu-west-1``, ``gs://bucket/folder``, ``file:///folder``).

    Example:
        >>> Place.of("/tmp") / "raykd" / "a.json"
        Place('/tmp/raykd/a.json')
    """

    uri: str

    @classmethod
    def of(cls, uri: str | os.PathLike[str] | Place) -> Place:
        """A place from anything a user may write; relative local paths are made absolute."""
        if isinstance(uri, Place):
            return uri
        text = os.fspath(uri)
        return cls(text if "://" in text else str(Path(text).expanduser().absolute()))

    @cached_property
    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), self.uri
        return open_uri(self.uri)

    @property
    def fs(self) -> pafs.FileSystem:
        return self._resolved[0]

    @property
    def path(self) -> str:
        """The path inside :attr:`fs`."""
        return self._resolved[1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        path = unquote(self.uri.split("?")[0]) if "://" in self.uri else self.uri
        return path.rstrip("/").rsplit("/", 1)[-1]

    def __truediv__(self, name: str) -> Place:
        if "://" not in self.uri:
            return Place(f"{self.uri.rstrip('/')}/{name}")
        base, mark, query = self.uri.partition("?")
        return Place(f"{base.rstrip('/')}/{quote(name)}{mark}{query}")

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"Place({self.uri!r})"

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri}  # filesystems are made anew in each process

    def exists(self) -> bool:
        return self.fs.get_file_info(self.path).type != pafs.FileType.NotFound

    def is_dir(self) -> bool:
        return self.fs.get_file_info(self.path).type == pafs.FileType.Directory

    def files(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """The files below this folder, by path; empty when there is no such folder."""
        infos = self.fs.get_file_info(pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True))
        return sorted((info for info in infos if info.is_file), key=lambda info: info.path)

    def sibling(self, path: str) -> Place:
        """The place of another path on this filesystem, as :meth:`files` gives them."""
        if "://" not in self.uri:
            return Place(path)
        scheme, _, rest = self.uri.partition("://")
        rest, mark, query = rest.partition("?")
        user, at, _ = rest.partition("/")[0].rpartition("@")
        return Place(f"{scheme}://{user}{at}{quote(path)}{mark}{query}")

    def read_bytes(self) -> bytes:
        with self.fs.open_input_stream(self.path) as stream:
            return stream.read()

    def sha256(self) -> str:
        """Names the file's content; read in pieces. Weights of the same shape have the same size."""
        digest = hashlib.sha256()
        with self.fs.open_input_stream(self.path) as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def write_bytes(self, data: bytes) -> None:
        """Write a whole file, atomically; the folder is made when missing."""
        folder = self.path.rsplit("/", 1)[0]
        aside = self.path
        if self.is_local:
            self.fs.create_dir(folder, recursive=True)
            aside = f"{folder}/.{self.name}.{uuid.uuid4().hex[:8]}"
        try:
            with self.fs.open_output_stream(aside) as stream:
                stream.write(data)
            if aside != self.path:
                os.replace(aside, self.path)
        except OSError as error:
            if error.errno:
                error.filename = error.filename or self.uri  # Arrow does not say which file a full disk was to hold
            if aside != self.path:
                with suppress(OSError):
                    os.unlink(aside)
            raise

    def check_reachable(self) -> None:
        """Whether an object store answers, told within seconds, as nobody has waited for anything yet.

        One that is merely overloaded is waited for later.

        Raises:
            StorageError: Nobody listens there, there is no such bucket, or the credentials are none.
        """
        if not isinstance(self.fs, (pafs.S3FileSystem, pafs.GcsFileSystem)):
            return
        fs, path = open_uri(self.uri, QUICK)
        bucket = path.partition("/")[0]
        try:
            if fs.get_file_info(bucket).type == pafs.FileType.NotFound:
                raise StorageError(f"cannot reach {self}: there is no such bucket as {bucket!r}; check its name")
        except OSError as error:
            if not is_passing(error):
                raise StorageError(f"cannot reach {self}: {of_store(error) or why(error)}") from error

    def check_writable(self) -> None:
        """Whether a file could be written here; leaves none behind. Raises StorageError that says why not."""
        attempt = self.sibling(f"{self.path}.{uuid.uuid4().hex[:8]}.try")
        try:
            self.check_reachable()
            attempt.write_bytes(b"raykd")
            self.fs.delete_file(attempt.path)
        except OSError as error:
            in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
            what = "a file is where its folder should be" if in_the_way else of_store(error) or why(error)
            raise StorageError(f"cannot write {self}: {what}; give another, or make this one writable") from error

    def read_json(self) -> Any:
        """What a JSON file holds.

        Raises:
            UserError: It is cut off, or something else; names the file.
        """
        data = self.read_bytes()
        try:
            return json.loads(data)
        except ValueError as error:
            what = f"is not JSON ({error})" if data else "is empty; expected JSON"
            raise UserError(
                f"{self} {what}: it was cut off or changed after it was written. Put a whole copy back, or move its "
                "folder away: what is not there is made anew"
            ) from error

    def write_json(self, value: Any) -> None:
        self.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def parquet(self) -> pads.Dataset:
        """The Parquet file, or all Parquet files of the folder, as one dataset (lazy)."""
        if self.is_dir():
            paths = [info.path for info in self.files(recursive=True) if info.path.endswith(".parquet")]
            if not paths:
                raise UserError(f"no Parquet file (*.parquet) in {self.uri}")
            return pads.dataset(paths, filesystem=self.fs, format="parquet")
        return pads.dataset(self.path, filesystem=self.fs, format="parquet")

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        return self.parquet().to_table(columns=columns)

    def write_table(self, table: pa.Table, *, row_group_rows: int | None = None) -> None:
        """Write one Parquet file, atomically. Numbers of vectors hardly repeat, so no dictionary is made of them."""
        sink = pa.BufferOutputStream()
        texts = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
        pq.write_table(table, sink, row_group_size=row_group_rows, use_dictionary=texts)
        self.write_bytes(sink.getvalue().to_pybytes())
