"""What a task finds on its node: versions, clock, disks, GPUs, and whether it reaches storage and images.

:func:`first_look` travels by value, so that a node without raykd can say so; the others are imported there.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import yaml

from raykd.errors import UserError, one_line
from raykd.images.reading import load_many
from raykd.images.stored import ImageReader
from raykd.images.transforms import Thumbnail
from raykd.store.conditional import conditional
from raykd.store.lock import NO_FLOCK
from raykd.store.place import Place

STORE_S = 6.0  # that a storage has to answer
READ_BACK_S = 3.0  # until what others wrote must be seen: NFS looks again after some seconds
GPU_CODE = """
import json, torch
said = {"torch": torch.__version__, "cuda": torch.version.cuda}
try:
    said |= {"available": torch.cuda.is_available(), "count": torch.cuda.device_count()}
    if said["available"]:
        said["name"] = torch.cuda.get_device_name(0)
        torch.zeros(8, device="cuda").sum().item()
    else:
        torch.zeros(1).cuda()
except Exception as error:
    said |= {"available": False, "error": " ".join(str(error).split())[:200]}
try:
    import faiss
    said["faiss"] = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
except Exception as error:
    said["faiss"] = 0
print(json.dumps(said))
"""  # in a process of its own: a worker's may have no GPU to see, and this one is not to hold memory of it


@dataclass(frozen=True)
class Looked:
    """What nodes are to look at.

    Args:
        storage: URI of the campaign's folder; None: none.
        token: What makes this look's files its own.
        images: URIs of some.
    """

    storage: str | None = None
    token: str = ""
    images: tuple[str, ...] = ()

    @property
    def folder(self) -> Place:
        assert self.storage is not None
        return Place.of(self.storage) / f".doctor-{self.token}"  # hidden: no campaign minds it


def first_look(packages: Mapping[str, str]) -> Callable[..., dict[str, Any]]:
    """A function for any node: versions of packages (name -> distribution), disks, and what :func:`look` finds."""

    def here(asked: Any, me: str) -> dict[str, Any]:
        import os
        import platform
        import shutil
        import time
        from importlib.metadata import PackageNotFoundError, version

        found: dict[str, Any] = {"versions": {"python": platform.python_version()}, "raykd_error": None}
        for name, distribution in packages.items():
            try:
                found["versions"][name] = version(distribution)
            except PackageNotFoundError:
                found["versions"][name] = None
        try:
            import ray

            node: Any = ray._private.worker._global_node
            folder = node.get_session_dir_path()
        except Exception:
            folder = os.environ.get("RAY_TMPDIR", "/tmp")
        disk = shutil.disk_usage(folder)
        found["disk"] = {"path": folder, "free": disk.free, "total": disk.total}
        found["shm_bytes"] = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None
        try:
            import raykd
            from raykd.stages.node_looks import Looked, look

            found["versions"]["raykd"] = raykd.__version__
            found |= look(Looked(**asked), me)
        except Exception as error:
            found["raykd_error"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        found["time"] = time.time()
        return found

    return here


def given_up_after(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives; TimeoutError when it takes longer: a store that is out of reach is tried for minutes."""
    result: Future[Any] = Future()

    def do() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    if not wait([result], seconds).done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return result.result()


def look(asked: Looked, me: str) -> dict[str, Any]:
    """Storage, images, and the autoscaler's config where this is the head. Raises nothing for what they lack."""
    try:
        storage = given_up_after(STORE_S, write_probe, asked, me) if asked.storage else {}
    except TimeoutError as error:
        storage = {"errors": {"write": one_line(error)}, "made": []}
    try:
        images = given_up_after(STORE_S, read_images, asked.images)
    except TimeoutError as error:
        images = dict.fromkeys(asked.images, one_line(error))
    return {
        "storage": storage,
        "images": images,
        "types": node_types(),
    }


# ---------------------------------------------------------------- storage


def write_probe(asked: Looked, me: str) -> dict[str, Any]:
    """Write a file of one's own and list it.

    Returns:
        ``errors``: right -> why it is lacking; ``made``: folders that were not there before, deepest first.
    """
    errors: dict[str, str] = {}
    made: list[str] = []
    try:
        folder = asked.folder
        made = missing_folders(folder) if folder.is_local else []
        (folder / me).write_bytes(me.encode())
    except (OSError, UserError) as error:
        return {"errors": {"write": one_line(error)}, "made": made}
    try:
        names = [info.base_name for info in folder.fs.get_file_info(pafs.FileSelector(folder.path))]
        if me not in names:
            errors["list"] = "what was just written is not in the listing"
    except OSError as error:
        errors["list"] = one_line(error)
    return {"errors": errors, "made": made}


def missing_folders(folder: Place) -> list[str]:
    """The folder and those above it that are not there, deepest first."""
    path, missing = Path(folder.path), []
    while not path.exists():
        missing.append(str(path))
        path = path.parent
    return missing


def read_probes(asked: Looked, names: Sequence[str], me: str) -> dict[str, Any]:
    """Read what the others wrote, and try for a lock that is held: on a disk nodes for the driver's.

    Returns:
        ``unseen``: names of those whose file is not here; ``error`` of the first; ``lock``: as :func:`try_lock` says;
        ``time``.
    """
    until, unseen, why = time.monotonic() + READ_BACK_S, list(names), ""
    while unseen:
        for name in list(unseen):
            try:
                if (asked.folder / name).read_bytes() == name.encode():
                    unseen.remove(name)
            except OSError as error:
                why = why or one_line(error)
        if unseen and time.monotonic() > until:
            break
        time.sleep(0.2 if unseen else 0)
    mine = (me == "driver") != asked.folder.is_local  # an object store's lease is the driver's alone, to take and renew
    lock = try_lock(asked.folder) if mine and "driver" not in unseen else None
    return {"unseen": unseen, "error": why if unseen else "", "lock": lock, "time": time.time()}


def take_lock(folder: Place) -> Any:
    """Take the lock that others then try for; None where there is none to be had. Close it with ``os.close``."""
    if not folder.is_local:
        if lock := conditional(folder / "lock"):
            with suppress(OSError):  # said by those who try
                lock.create(b"driver")
        return None
    descriptor = None
    with suppress(OSError):
        descriptor = os.open((folder / "lock").path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def try_lock(folder: Place) -> str | None:
    """Whether the lock that the driver holds is refused here: refused, given, none (there are no locks), None: unknown.

    On a disk it is the kernel's; on an object store a conditional write.
    """
    file = folder / "lock"
    if not folder.is_local:
        if (lock := conditional(file)) is None:
            return "none"
        with suppress(OSError):
            return "refused" if lock.create(b"other") is None else "given"
        return None
    try:
        descriptor = os.open(file.path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "given"
    except BlockingIOError:
        return "refused"
    except OSError as error:
        return "none" if error.errno in NO_FLOCK else None
    finally:
        os.close(descriptor)


def clean(asked: Looked, me: str, made: Sequence[str]) -> str | None:
    """Delete one's own file, and the folders that were not there; why that fails, or None."""
    why = None
    try:
        asked.folder.fs.delete_file((asked.folder / me).path)
    except FileNotFoundError:
        pass
    except OSError as error:
        why = one_line(error)
    if me == "driver":
        with suppress(OSError):  # it is the last one; on a bucket something stands for an empty folder
            if asked.folder.is_local:
                asked.folder.fs.delete_file((asked.folder / "lock").path)
            else:
                asked.folder.fs.delete_dir(asked.folder.path)
    for path in made:
        with suppress(OSError):  # others have files there still
            os.rmdir(path)
    return why


# ---------------------------------------------------------------- images, GPUs, the autoscaler


def read_images(uris: Sequence[str]) -> dict[str, str | None]:
    """uri -> why the image cannot be read, or None."""
    found: dict[str, str | None] = {}
    reader = ImageReader(waits_s=())  # once: a storage that is out of reach is what is looked for
    for uri in uris:
        try:
            (made,) = load_many(reader, [uri], lambda image: image.size, Thumbnail(1).shrinks)
            found[uri] = made if isinstance(made, str) else None
        except Exception as error:
            found[uri] = one_line(error)
    return found


def gpu_look(timeout_s: float) -> dict[str, Any]:
    """What torch, faiss and the driver say of this node's GPUs, by :data:`GPU_CODE`."""
    said: dict[str, Any] = {}
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with suppress(OSError, subprocess.TimeoutExpired):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        drivers = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s / 2).stdout.split()
        said["driver"] = drivers[0] if drivers else None
    try:
        done = subprocess.run(
            [sys.executable, "-c", GPU_CODE], capture_output=True, text=True, timeout=timeout_s, env=environment
        )
        said |= json.loads(done.stdout) if done.stdout else {"error": done.stderr.strip().rpartition("\n")[2][:200]}
    except subprocess.TimeoutExpired:
        said["error"] = f"no answer of torch within {timeout_s:.0f} s"
    return said


def node_types() -> dict[str, Any] | None:
    """``available_node_types`` of the config of the autoscaler that runs on this node; None: there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, yaml.YAMLError, AttributeError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not any(word.endswith("monitor.py") for word in words):
                continue
            for word in words:
                if word.startswith("--autoscaling-config=") and (path := word.partition("=")[2]):
                    config = yaml.safe_load(Path(path).expanduser().read_text())
                    types: dict[str, Any] = config.get("available_node_types")
                    head = config.get("head_node_type")
                    return {name: {**kind, "is_head": name == head} for name, kind in types.items()}
    return None
