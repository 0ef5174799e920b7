"""Several nodes, a real S3 server and a proxy: see nodes.py, s3_server.py and proxy.py."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nodes as several
import pytest
import s3_server
from faults import World
from nodes import Nodes
from proxy import Proxy

HERE = Path(__file__).parent
SMALL_DISK_MIB = 160


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path, for Ray's sockets; ``small`` in it is a disk that can be filled, where root may mount one.

    It is there before any node is, as a node sees no mount that is made later.
    """
    with tempfile.TemporaryDirectory(prefix="rk", dir="/tmp", ignore_cleanup_errors=True) as path:
        small = Path(path) / "small"
        small.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m", "raykd", str(small)]
        mounted = not subprocess.run(command, capture_output=True, check=False).returncode
        try:
            yield Path(path)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", small], check=False)


@pytest.fixture(scope="session")
def three_nodes(folder: Path) -> Iterator[Nodes]:
    """A head without CPUs and two nodes with three each."""
    if why := several.missing():
        pytest.skip(why)
    with several.nodes_of(folder, 3) as nodes:
        nodes.environment |= s3_server.environment()  # credentials are those of each machine
        nodes.head(jobs=True)
        nodes.join(1)
        nodes.join(2)
        yield nodes


@pytest.fixture(scope="session")
def store() -> Iterator[int]:
    """The port of an S3 server with an empty bucket."""
    if why := s3_server.missing():
        pytest.skip(why)
    with (
        tempfile.TemporaryDirectory(prefix="rs", dir="/tmp", ignore_cleanup_errors=True) as path,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        with s3_server.s3_server(Path(path)) as port:
            yield port


@pytest.fixture
def proxy(store: int) -> Iterator[Proxy]:
    proxy = Proxy(store)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def world(three_nodes: Nodes, folder: Path) -> World:
    return World(three_nodes, folder)


@pytest.fixture
def world_with_store(world: World, store: int) -> World:
    if world.proxy is None:
        world.server, world.proxy = store, Proxy(store)
    return world
