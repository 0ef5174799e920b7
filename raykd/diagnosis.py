"""From what nodes say of themselves to what is to be mended: plain functions, no Ray. ``jobs/doctor.py`` prints it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raykd.errors import for_the_reader, one_line
from raykd.report.words import counted

OK, WARN, FAIL = "ok", "warn", "FAIL"
CLOCK_WARN_S, CLOCK_FAIL_S = 5.0, 60.0  # the lease on an object store is given up after 60 s (store/lock.py)
FREE_WARN_BYTES, FREE_FAIL_BYTES = 10 * 2**30, 2**30
FULL_SHARE = 0.95  # of a disk, from which on Ray makes no more files there (local_fs_capacity_threshold)
DOCKER_SHM_BYTES = 64 * 2**20  # what a container has for shared memory, unless it is told otherwise
STORE_WARN_BYTES = 500 * 2**20  # of object store: Ray Data keeps the blocks in flight in it
UPLOAD_BYTES = 100 * 2**20  # of a job's working dir, zipped (ray#55877); Ray's zip does not compress
NEEDED_EVERYWHERE = ("ray", "python", "raykd", "torch", "pyarrow", "numpy")
SHOWN = 4  # names of nodes in a line
RIGHTS = {"list": "s3:ListBucket", "read": "s3:GetObject", "write": "s3:PutObject", "delete": "s3:DeleteObject"}


@dataclass(frozen=True)
class Finding:
    """One check: how it ended, its name, what was found, and what to do (empty: nothing)."""

    state: Literal["ok", "warn", "FAIL"]
    name: str
    found: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5} {self.name:<14} {self.found}" + (f"; {self.todo}" if self.todo else "")


def ok(name: str, found: str) -> Finding:
    return Finding("ok", name, found)


def warn(name: str, found: str, todo: str) -> Finding:
    return Finding("warn", name, found, todo)


def fail(name: str, found: str, todo: str) -> Finding:
    return Finding("FAIL", name, found, todo)


def attempt(name: str, check: Callable[[], Any]) -> Finding:
    """A check that raises, as a finding; what it returns is said."""
    try:
        return ok(name, str(check() or "nothing is in its way"))
    except Exception as error:
        return failed(name, error)


def failed(name: str, error: Exception) -> Finding:
    """What a check has raised, as a finding."""
    if words := for_the_reader(error):
        what, _, todo = words.partition("; ")
        return fail(name, what, todo)
    return fail(name, one_line(error), "RAYKD_DEBUG=1 and the campaign's own job show more")


def first_line(findings: Sequence[Finding]) -> str:
    """The first line: ``ready: ...``, or ``not ready: N things to mend, first: ...``."""
    to_mend = [each for each in findings if each.state == FAIL]
    warned = sum(each.state == WARN for each in findings)
    if not to_mend:
        return f"ready: {len(findings)} checks" + (f", {warned} to look at" if warned else "")
    first, count = to_mend[0], len(to_mend)
    things = "1 thing" if count == 1 else f"{count} things"
    return f"not ready: {things} to mend, first: {first.todo or first.found} ({first.name})"


@dataclass(frozen=True)
class NodeReport:
    """What one node, or the driver, says of itself.

    Args:
        name: ``10.0.0.4 (3f2a91)``, or ``driver``.
        versions: Of :data:`NEEDED_EVERYWHERE`; None: it is not there.
        raykd_error: Why raykd cannot be imported there.
        clock_s: Seconds that its clock is ahead (negative: behind) at least, given when question and answer were sent.
        disk: The temporary folder: ``path``, ``free`` and ``total``, bytes.
        shm_bytes: Of /dev/shm; None: there is none.
        store_bytes: Of Ray's object store.
        gpus: As Ray counts them.
        storage: What ``node_looks.write_probe`` and ``read_probes`` say; empty: not asked.
        images: uri -> why it cannot be read, or None.
        gpu: What ``node_looks.GPU_CODE`` says; empty: not asked.
    """

    name: str
    versions: Mapping[str, str | None] = field(default_factory=dict)
    raykd_error: str | None = None
    clock_s: float = 0.0
    disk: Mapping[str, Any] = field(default_factory=dict)
    shm_bytes: int | None = None
    store_bytes: float = 0.0
    gpus: float = 0.0
    storage: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, str | None] = field(default_factory=dict)
    gpu: Mapping[str, Any] = field(default_factory=dict)


def some_names(nodes: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    names = list(nodes)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def gib(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


# ---------------------------------------------------------------- nodes


def judge_answers(asked: Sequence[str], silent: Mapping[str, str], wait_s: float) -> list[Finding]:
    """Whether all nodes answered.

    Args:
        asked: Names of all.
        silent: Those that did not, and why.
    """
    if not silent:
        return [ok("nodes", f"{len(asked)} answered")]
    return [
        fail("nodes", f"{name}: {reason or f'no answer within {wait_s:.0f} s'}", "restart Ray there, or take it away")
        for name, reason in silent.items()
    ]


def judge_versions(driver: NodeReport, nodes: Sequence[NodeReport]) -> list[Finding]:
    """Whether all nodes have what the driver has: Ray pickles code, and picks hang on the bits of numpy and torch."""
    findings = []
    for each in (driver, *nodes):
        if each.raykd_error:
            what = f"raykd cannot be imported on {each.name}: {each.raykd_error}"
            findings.append(fail("versions", what, "install it there, or submit with --working-dir ."))
    others: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for package in NEEDED_EVERYWHERE:
        for each in nodes:
            theirs = each.versions.get(package)
            if theirs != driver.versions.get(package) and not (package == "raykd" and each.raykd_error):
                others[package, theirs].append(each.name)
    for (package, theirs), names in others.items():
        mine = driver.versions.get(package)
        what = f"{package} is {theirs or 'missing'} on {some_names(names)}, {mine} on the driver"
        bad = theirs is None or package in ("ray", "raykd")
        findings.append((fail if bad else warn)("versions", what, f"install {package}=={mine} there (constraints.txt)"))
    if not findings:
        said = ", ".join(f"{package} {driver.versions.get(package)}" for package in NEEDED_EVERYWHERE)
        findings.append(ok("versions", f"{said}, on the driver and {counted(len(nodes), 'node')}"))
    return findings


def judge_clocks(nodes: Sequence[NodeReport]) -> list[Finding]:
    """Whether clocks agree: a lease on an object store is judged by its age."""
    findings = []
    for each in nodes:
        if (off := abs(each.clock_s)) > CLOCK_WARN_S:
            way = "ahead of" if each.clock_s > 0 else "behind"
            what = f"{each.name} is {off:,.0f} s {way} the driver"
            findings.append((fail if off > CLOCK_FAIL_S else warn)("clocks", what, "start chrony or ntpd there"))
    most = max((abs(each.clock_s) for each in nodes), default=0.0)
    return findings or [ok("clocks", f"none is off by more than {max(most, 0.1):.1f} s, as far as answers tell")]


def judge_disks(nodes: Sequence[NodeReport]) -> list[Finding]:
    """Whether there is room for Ray's files, what it spills, and objects in shared memory."""
    findings = []
    for each in nodes:
        if each.disk:
            free, total, path = (each.disk[key] for key in ("free", "total", "path"))
            if free < FREE_FAIL_BYTES or free < (1 - FULL_SHARE) * total:
                what = f"{gib(free)} of {gib(total)} free in {path} on {each.name}, too little for Ray to spill objects"
                state = fail if free < FREE_FAIL_BYTES else warn
                findings.append(state("disk", what, "free some, or start Ray with --temp-dir on another disk"))
            elif free < FREE_WARN_BYTES:
                what = f"{gib(free)} free in {path} on {each.name}, where Ray spills objects"
                findings.append(warn("disk", what, "free some, or start Ray with --temp-dir on another disk"))
        if each.shm_bytes is not None and each.shm_bytes <= max(DOCKER_SHM_BYTES, 0.9 * each.store_bytes):
            what = f"/dev/shm has {gib(each.shm_bytes)} on {each.name}, for an object store of {gib(each.store_bytes)}"
            size = math.ceil(max(each.store_bytes, 2**30) / 2**30 * 1.25)
            findings.append(warn("shared memory", what, f"docker run --shm-size={size}g, or objects lie on the disk"))
        if 0 < each.store_bytes < STORE_WARN_BYTES:
            what = f"the object store has {gib(each.store_bytes)} on {each.name}"
            findings.append(warn("object store", what, "start Ray with a larger --object-store-memory"))
    if not findings:
        disk = min((each.disk["free"] for each in nodes if each.disk), default=0)
        shm = min((each.shm_bytes for each in nodes if each.shm_bytes is not None), default=0)
        store = min((each.store_bytes for each in nodes), default=0)
        what = f"at least {gib(disk)} of disk free, /dev/shm {gib(shm)}, object store {gib(store)} a node"
        findings.append(ok("disk", what))
    return findings


def judge_gpus(nodes: Sequence[NodeReport], stages: Sequence[str], may_come: bool = False) -> list[Finding]:
    """Whether torch can use the GPUs that Ray gives out.

    Args:
        stages: Those that ask for GPUs.
        may_come: An autoscaler knows machines that have some.
    """
    findings, good = [], []
    having = [each for each in nodes if each.gpus]
    for each in having:
        driver = each.gpu.get("driver") or "none"
        if not each.gpu:
            continue
        if not each.gpu.get("available"):
            torch = f"torch {each.gpu.get('torch')} (CUDA {each.gpu.get('cuda')})"
            why = f": {each.gpu['error']}" if each.gpu.get("error") else ""
            todo = "install a newer driver (CUDA 13 needs 580, CUDA 12 525), or a torch for this one"
            findings.append(fail("GPUs", f"{torch} cannot use the GPUs of {each.name}, driver {driver}{why}", todo))
        elif each.gpu.get("count", 0) < each.gpus:
            what = f"{each.name}: Ray gives out {each.gpus:g} GPUs, torch sees {each.gpu['count']}"
            findings.append(fail("GPUs", what, "start Ray there with the right --num-gpus"))
        else:
            faiss = each.gpu.get("faiss")
            if not faiss and "selection" in stages:
                todo = "install faiss-gpu there, or set selection.num_gpus=0"
                findings.append(fail("GPUs", f"faiss sees no GPU on {each.name}", todo))
            good.append(f"{each.name}: {each.gpu['count']} x {each.gpu.get('name')}, driver {driver}, faiss {faiss}")
    if stages and not having:
        todo = "run this again when one has come" if may_come else "add GPU nodes, or set num_gpus=0"
        return [warn("GPUs", f"{', '.join(stages)} ask for GPUs, and no node has one now", todo)]
    return findings or ([ok("GPUs", "; ".join(good))] if good else [])


# ---------------------------------------------------------------- storage and images


def judge_storage(place: str, reports: Sequence[NodeReport], is_local: bool) -> list[Finding]:
    """Whether what one writes all others read, whether all may do all, and whether only one can hold the lock."""
    findings = []
    asked = [each for each in reports if each.storage]
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in asked:
        for right, error in each.storage.get("errors", {}).items():
            wrong[right, error].append(each.name)
    for (right, error), names in wrong.items():
        todo = "make it writable for all nodes" if is_local else f"grant {RIGHTS[right]} (or its like) on it"
        findings.append(fail("storage", f"{place}: {some_names(names)} cannot {right}: {error}", todo))
    unseen = {each.name: each.storage["unseen"] for each in asked if each.storage.get("unseen")}
    if unseen and not wrong:
        first = next(iter(unseen))  # the driver, if it is among them: what it does not see is apart
        what = f"{place} is not the same for all: {first} does not see what {some_names(unseen[first])} wrote there"
        todo = "give a storage_path that all nodes share: s3://, gs:// or a mounted disk"
        findings.append(fail("storage", what, todo))
    if findings:
        return findings
    said = f"{place}: written, listed and read back by {len(asked)}, and deleted again"
    return [ok("storage", said), *judge_lock(asked, is_local)]


def judge_lock(asked: Sequence[NodeReport], is_local: bool) -> list[Finding]:
    """Whether only one job can hold the folder. ``lock`` is what ``node_looks.try_lock`` says."""
    held = {each.name: each.storage.get("lock") for each in asked}
    if twice := [name for name, lock in held.items() if lock == "given"]:
        how = "flock is not seen by" if is_local else "a second put with If-None-Match is taken, as seen by"
        todo = "two jobs could work in it at once: take care to start one, or mount it with locks"
        return [warn("lock", f"{how} {some_names(twice)}", todo)]
    if none := [name for name, lock in held.items() if lock == "none"]:
        how = "flock" if is_local else "conditional writes"
        todo = "start one job at a time" + ("" if is_local else "; on S3: pip install raykd[s3]")
        return [warn("lock", f"no {how} on {some_names(none)}: a lease that goes by time is taken instead", todo)]
    if "refused" in held.values():
        how = "flock holds between all" if is_local else "a second put with If-None-Match is refused"
        return [ok("lock", how)]
    return []


def judge_images(source: str, driver: NodeReport, nodes: Sequence[NodeReport]) -> list[Finding]:
    """Whether each node reads what the driver reads; of the same images."""
    if not driver.images:
        return []
    here = [uri for uri, error in driver.images.items() if error is None]
    blind = {
        each.name: (uri, each.images.get(uri))
        for each in nodes
        for uri in here
        if each.images and each.images.get(uri, "") is not None
    }
    if blind:
        uri, error = next(iter(blind.values()))
        what = f"{some_names(blind)} cannot read {source} images that the driver reads, such as {uri}: {error}"
        return [fail("images", what, "put them where all nodes read: s3://, gs:// or a mounted disk")]
    bad = {uri: error for uri, error in driver.images.items() if error is not None}
    if len(bad) == len(driver.images):
        uri, error = next(iter(bad.items()))
        return [fail("images", f"none of {len(bad)} {source} images can be read, such as {uri}: {error}", "mend them")]
    if bad:
        uri, error = next(iter(bad.items()))
        what = f"{len(bad)} of {len(driver.images)} {source} images cannot be read, such as {uri}: {error}"
        return [warn("images", what, "mend them, or see max_bad_share")]
    return [ok("images", f"{len(here)} {source} images read by the driver and {counted(len(nodes), 'node')}")]
