"""Whether this cluster and this storage can run a campaign, told in seconds: looks at all nodes at once, then judges.

What is found is judged in ``raykd/diagnosis.py`` and ``raykd/demands.py``, without Ray.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from raykd.config import Config
from raykd.demands import NodeType, demands_of, judge_demands, judge_package, judge_token, stages_with_gpus
from raykd.diagnosis import (
    NEEDED_EVERYWHERE,
    Finding,
    NodeReport,
    fail,
    judge_answers,
    judge_clocks,
    judge_disks,
    judge_gpus,
    judge_images,
    judge_storage,
    judge_versions,
    ok,
)
from raykd.errors import UserError
from raykd.stages.all_nodes import Answer, Node, alive_nodes, ask_all
from raykd.stages.node_looks import Looked, clean, first_look, given_up_after, gpu_look, read_probes, take_lock
from raykd.stages.samples import Listings, packed_sizes
from raykd.stages.session import Session
from raykd.store.place import Place

LOOK_S = 15.0  # that a node has to start a worker, which imports raykd; on a busy one that took 8
ANSWER_S = 10.0  # that this worker has to answer again
GPU_S = 30.0  # torch with CUDA, read from a cold disk
PACKAGES = {name: name for name in NEEDED_EVERYWHERE if name not in ("python", "raykd")}
DRIVER = "driver"


def examine(config: Config | None) -> list[Finding]:
    """All checks; without a config those of the cluster alone. Leaves nothing behind but what caches hold.

    Cost: about 10 s on a small cluster, of which Ray's start is 4 where none is up. A node that does not answer costs
    :data:`LOOK_S`.
    """
    findings: list[Finding] = []
    images: dict[str, tuple[str, ...]] = {}
    with Session(config.local_cpus if config else None) as session:
        try:
            session.begin()
            if config:
                findings, images = look_from_here(config, session)
            session.ensure()
        except UserError as error:
            return [fail("cluster", *said_by_ray(error)), *findings]
        reachable = not any(each.name == "storage" for each in findings)  # it is told when it does not answer
        told = look_at_cluster(config, session.is_local, images, reachable)
        return [*told, *findings, *look_at_upload(session.is_local)]


def look_from_here(config: Config, session: Session) -> tuple[list[Finding], dict[str, tuple[str, ...]]]:
    """What the driver tells of a config, beside Ray's start; and images to be read by all."""
    listings = Listings(config, on_one_machine=session.is_at_home(Place.of(config.storage_path)))
    from raykd.stages.config_looks import look_at_config  # here: it imports torch, which takes as long as Ray does

    findings = look_at_config(config)
    images, told = listings.samples()
    return [*findings, *told], images


def said_by_ray(error: UserError) -> tuple[str, str]:
    """What is wrong with the Ray, and what to do."""
    text = " ".join(str(error.__cause__ or "").split())
    if "Version mismatch" in text:
        versions = re.findall(r"Ray: (\S+) Python: (\S+)", text)
        if len(versions) == 2:
            (ray, python), (my_ray, my_python) = versions
            what = f"the cluster has Ray {ray} and Python {python}, this machine Ray {my_ray} and Python {my_python}"
            return what, "install the same here, or submit with ray job submit"
    what, _, todo = str(error).partition("; ")
    if re.search("Failed to connect|[Aa]uthenticat", text) and os.environ.get("RAY_AUTH_MODE") != "token":
        todo = "if it wants a token: RAY_AUTH_MODE=token, and the cluster's ~/.ray/auth_token here; else see its logs"
    return what, todo


# ---------------------------------------------------------------- all nodes at once


def clock_off(answer: Answer, told: float) -> float:
    """Seconds that a clock is ahead (negative: behind) at least: it was read between question and answer."""
    return max(0.0, told - answer.received) or min(0.0, told - answer.sent)


def look_at_cluster(
    config: Config | None, is_local: bool, images: Mapping[str, tuple[str, ...]], reachable: bool
) -> list[Finding]:
    """What nodes say of themselves, judged; Ray must be up.

    Args:
        images: URIs to be read by all, by source.
        reachable: The storage has answered here; else nodes need not wait for it.
    """
    storage = Place.of(config.storage_path) if config and reachable else None
    asked = Looked(
        storage.uri if storage else None, uuid.uuid4().hex[:8], tuple(uri for some in images.values() for uri in some)
    )
    nodes = alive_nodes()
    driver = report_of(first_look(PACKAGES)(vars(asked), DRIVER), DRIVER)
    silent = ask_and_note(nodes, asked)
    living = [node for node in nodes if node.name not in silent]
    able = [node for node in living if not node.said["raykd_error"]]
    if storage and driver.storage:
        driver = look_at_storage(able, asked, driver)
    stages = stages_with_gpus(config) if config else []
    look_at_gpus([node for node in able if node.resources.get("GPU")])
    reports = [report_of(node.said, node.name, node.resources) for node in living]
    types = types_of(living)
    findings = judge_answers([node.name for node in nodes], silent, LOOK_S)
    if reports:
        findings += judge_versions(driver, reports) + judge_clocks(reports) + judge_disks(reports)
        findings += judge_gpus(reports, stages, any(each.resources.get("GPU") for each in types or ()))
    findings.append(judge_token(is_local, os.environ.get("RAY_AUTH_MODE"), has_token()))
    if storage:
        findings += judge_storage(str(storage), [driver, *(each for each in reports if each.storage)], storage.is_local)
    if config:
        for source, uris in images.items():
            some = [only(each, uris) for each in (driver, *reports)]
            findings += judge_images(source, some[0], some[1:])
        from raykd.stages.config_looks import memory_of

        has = {node.name: node.resources for node in nodes}
        findings += judge_demands(demands_of(config, memory_of(config)), has, types, is_local)
    return findings


def ask_and_note(nodes: list[Node], asked: Looked) -> dict[str, str]:
    """Have all nodes look at themselves; the names of those that did not answer, and why (empty: in time)."""
    answers = ask_all(nodes, first_look(PACKAGES), lambda node: (vars(asked), node.id), LOOK_S)
    for node in nodes:
        if (answer := answers.get(node.name)) and answer.error is None:
            node.said = {**answer.value, "clock_s": clock_off(answer, answer.value["time"])}
    return {
        node.name: (answers[node.name].error or "") if node.name in answers else "" for node in nodes if not node.said
    }


def look_at_storage(nodes: list[Node], asked: Looked, driver: NodeReport) -> NodeReport:
    """Have all read what the others wrote, try for the driver's lock, and delete their own; the driver's report."""
    names = {node.id: node.name for node in nodes if not node.said["storage"]["errors"].get("write")}
    names |= {} if driver.storage["errors"].get("write") else {DRIVER: DRIVER}
    held = take_lock(asked.folder) if DRIVER in names else None
    answers = ask_all(nodes if names else [], read_probes, lambda node: (asked, list(names), node.id), ANSWER_S)
    mine: dict[str, Any] = {"unseen": []}
    with suppress(TimeoutError):
        mine = given_up_after(ANSWER_S, read_probes, asked, list(names), DRIVER)
    if held is not None:
        os.close(held)
    for node in nodes:
        if (answer := answers.get(node.name)) and answer.error is None:
            unseen = [names[each] for each in answer.value["unseen"]]
            node.said["storage"] |= {**answer.value, "unseen": unseen}
            sure = clock_off(answer, answer.value["time"])  # a worker that is there answers sooner
            node.said["clock_s"] = max(node.said["clock_s"], sure, key=abs)
    driver_said = {**driver.storage, **mine, "unseen": [names[each] for each in mine["unseen"]]}
    wrote = [node for node in nodes if node.id in names]
    gone = ask_all(wrote, clean, lambda node: (asked, node.id, node.said["storage"]["made"]), ANSWER_S)
    why = {name: answer.error or answer.value for name, answer in gone.items()}
    if DRIVER in names:
        why[DRIVER] = given_up_after(ANSWER_S, clean, asked, DRIVER, driver.storage["made"])
    for said, name in [*((node.said["storage"], node.name) for node in nodes), (driver_said, DRIVER)]:
        if why.get(name):
            said["errors"] = {**said["errors"], "delete": why[name]}
    return replace(driver, storage=driver_said)


def look_at_gpus(nodes: list[Node]) -> None:
    for name, answer in ask_all(nodes, gpu_look, lambda _: (GPU_S - 5,), GPU_S).items() if nodes else ():
        node = next(node for node in nodes if node.name == name)
        node.said["gpu"] = answer.value or {"error": answer.error}


# ---------------------------------------------------------------- what was found, as reports


def report_of(said: Mapping[str, Any], name: str, resources: Mapping[str, float] | None = None) -> NodeReport:
    names = ("versions", "raykd_error", "clock_s", "disk", "shm_bytes", "storage", "images", "gpu")
    has = resources or {}
    return NodeReport(
        name=name, store_bytes=has.get("object_store_memory", 0.0), gpus=has.get("GPU", 0.0),
        **{key: said[key] for key in names if key in said},
    )  # fmt: skip


def only(report: NodeReport, uris: tuple[str, ...]) -> NodeReport:
    return replace(report, images={uri: report.images[uri] for uri in uris if uri in report.images})


def types_of(nodes: list[Node]) -> list[NodeType] | None:
    """What the autoscaler may bring, as its config on the head says; None: none is found."""
    said = next((node.said["types"] for node in nodes if node.said.get("types")), None)
    if said is None:
        return None
    return [
        NodeType(name, kind.get("resources", {}), int(kind.get("max_workers", 0)))
        for name, kind in said.items()
        if not kind["is_head"]
    ]


def has_token() -> bool:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(path).expanduser().is_file()


def look_at_upload(is_local: bool) -> list[Finding]:
    """What ``ray job submit --working-dir .`` would send, from here or from raykd's own checkout."""
    folder = next((each for each in (Path.cwd(), Path(__file__).parents[2]) if (each / "raykd").is_dir()), None)
    if folder is None or "site-packages" in folder.parts:
        return [ok("working dir", "raykd is installed, not sent")]
    found: list[dict[str, int]] = []
    looking = threading.Thread(target=lambda: found.append(packed_sizes(folder)), daemon=True)
    looking.start()
    looking.join(5)
    if not found:
        what = f"the files of {folder} cannot be counted within 5 s"
        return [fail("working dir", what, "name what is not code in .rayignore")]
    return [judge_package(str(folder), found[0], is_local)]
