"""An object store in memory, for what must hold on a disk and on a bucket."""

import pyarrow.fs as pafs
import pytest

from raykd.store.place import Place


@pytest.fixture
def bucket(monkeypatch) -> Place:
    """A folder on an object store: every ``mock://`` place of the test is on the same one."""
    store, resolved = pafs._MockFileSystem(), Place._resolved.func

    def resolve(place):
        if place.uri.startswith("mock://"):
            return store, place.uri.removeprefix("mock://").partition("?")[0]
        return resolved(place)

    monkeypatch.setattr(Place, "_resolved", property(resolve))
    store.create_dir("bucket/folder", recursive=True)
    return Place("mock://bucket/folder?region=eu-west-1")
