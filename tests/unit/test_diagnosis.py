"""From made-up reports of nodes to what is to be mended."""

from dataclasses import replace

import pytest

from raykd.diagnosis import (
    NodeReport,
    attempt,
    fail,
    first_line,
    judge_answers,
    judge_clocks,
    judge_disks,
    judge_gpus,
    judge_images,
    judge_storage,
    judge_versions,
    ok,
    warn,
)
from raykd.errors import UserError

VERSIONS = {"ray": "2.60.0", "python": "3.11.7", "raykd": "0.1.0", "torch": "2.15.0", "pyarrow": "26.0", "numpy": "2.4"}
GIB = 2**30
HEAD = NodeReport(
    name="10.0.0.1 (aaaaaa)",
    versions=VERSIONS,
    disk={"path": "/tmp/ray", "free": 100 * GIB, "total": 200 * GIB},
    shm_bytes=20 * GIB,
    store_bytes=8 * GIB,
    storage={"errors": {}, "unseen": [], "lock": "refused"},
    images={"/pool/a.png": None, "/pool/b.png": None},
)
DRIVER = replace(HEAD, name="driver", storage={"errors": {}, "unseen": [], "lock": None})
WORKER = replace(HEAD, name="10.0.0.2 (bbbbbb)")


def states(findings) -> list[str]:
    return [each.state for each in findings]


def the_one(findings, state: str) -> str:
    """The only finding, of this state, as it is printed."""
    assert states(findings) == [state], list(map(str, findings))
    return str(findings[0])


# ---------------------------------------------------------------- the first line


def test_the_first_line_says_what_to_do_first():
    findings = [
        ok("nodes", "2 answered"),
        warn("clocks", "9 s", "ntp"),
        fail("storage", "alone", "share it"),
        fail("a", "b", "c"),
    ]
    assert first_line(findings) == "not ready: 2 things to mend, first: share it (storage)"
    assert first_line(findings[2:3]).startswith("not ready: 1 thing to mend")
    assert first_line(findings[:2]) == "ready: 2 checks, 1 to look at"


def test_a_check_that_raises_is_a_finding_in_its_own_words():
    def refuse():
        raise UserError("no such model; give another")

    assert str(attempt("teacher", refuse)) == "FAIL  teacher        no such model; give another"
    assert attempt("teacher", lambda: "ViT").found == "ViT"
    assert "ZeroDivisionError" in attempt("teacher", lambda: 1 / 0).found


# ---------------------------------------------------------------- nodes


def test_all_is_well_where_all_are_alike():
    nodes = [HEAD, WORKER]
    for findings in (
        judge_versions(DRIVER, nodes),
        judge_clocks(nodes),
        judge_disks(nodes),
        judge_images("pool", DRIVER, nodes),
    ):
        the_one(findings, "ok")
    assert states(judge_storage("/shared", [DRIVER, *nodes], True)) == ["ok", "ok"]
    assert judge_gpus(nodes, []) == []


def test_a_node_that_does_not_answer_is_named():
    said = the_one(judge_answers([HEAD.name, WORKER.name], {WORKER.name: ""}, 10), "FAIL")
    assert WORKER.name in said
    assert "no answer within 10 s" in said
    assert HEAD.name not in said


@pytest.mark.parametrize(
    ("package", "state"), [("ray", "FAIL"), ("raykd", "FAIL"), ("numpy", "warn"), ("torch", "warn")]
)
def test_another_version_names_the_node_and_both_versions(package, state):
    other = replace(WORKER, versions={**VERSIONS, package: "0.0.1"})
    said = the_one(judge_versions(DRIVER, [HEAD, other]), state)
    assert WORKER.name in said
    assert HEAD.name not in said
    assert "0.0.1" in said
    assert VERSIONS[package] in said


def test_what_is_missing_on_a_node_is_to_be_mended():
    assert "missing" in the_one(judge_versions(DRIVER, [replace(WORKER, versions={**VERSIONS, "torch": None})]), "FAIL")
    lost = replace(
        WORKER, versions={**VERSIONS, "raykd": None}, raykd_error="ModuleNotFoundError: No module named 'raykd'"
    )
    assert "cannot be imported" in the_one(judge_versions(DRIVER, [HEAD, lost]), "FAIL")


@pytest.mark.parametrize(
    ("off", "state"), [(4.9, "ok"), (-4.9, "ok"), (6, "warn"), (-59, "warn"), (61, "FAIL"), (-90, "FAIL")]
)
def test_clocks_are_judged_by_what_a_lease_bears(off, state):
    said = the_one(judge_clocks([replace(WORKER, clock_s=off)]), state)
    assert state == "ok" or ("behind" in said) == (off < 0)


def test_little_disk_and_dockers_shared_memory_are_told():
    def with_free(free, total=1000):
        return replace(WORKER, disk={"path": "/tmp", "free": free * GIB, "total": total * GIB})

    assert "spill" in the_one(judge_disks([with_free(5, 50)]), "warn")
    assert "too little" in the_one(judge_disks([with_free(20)]), "warn")  # 2 % of it: Ray makes no more files
    assert "too little" in the_one(judge_disks([with_free(0.5)]), "FAIL")
    assert "--shm-size=10g" in the_one(judge_disks([HEAD, replace(WORKER, shm_bytes=64 * 2**20)]), "warn")
    assert "--object-store-memory" in the_one(judge_disks([replace(WORKER, store_bytes=80 * 2**20)]), "warn")


def test_a_gpu_that_torch_cannot_use_is_to_be_mended():
    good = {
        "available": True,
        "count": 1,
        "name": "H100",
        "torch": "2.15",
        "cuda": "13.0",
        "driver": "580.1",
        "faiss": 1,
    }
    gpu = replace(WORKER, gpus=1.0, gpu=good)
    assert "driver 580.1" in the_one(judge_gpus([HEAD, gpu], ["train"]), "ok")
    old = replace(gpu, gpu={**good, "available": False, "driver": "550.2", "error": "driver is too old"})
    said = the_one(judge_gpus([HEAD, old], ["train"]), "FAIL")
    assert WORKER.name in said
    assert "550.2" in said
    assert "580" in said.split("550.2")[1]
    assert "torch sees 1" in the_one(judge_gpus([replace(gpu, gpus=2.0)], ["train"]), "FAIL")
    no_faiss = replace(gpu, gpu={**good, "faiss": 0})
    assert "faiss" in the_one(judge_gpus([no_faiss], ["selection"]), "FAIL")
    the_one(judge_gpus([no_faiss], ["train"]), "ok")
    assert "no node has one now" in the_one(judge_gpus([HEAD], ["train"]), "warn")


# ---------------------------------------------------------------- storage and images


def test_a_storage_that_only_the_head_sees_is_to_be_mended():
    alone = replace(WORKER, storage={"errors": {}, "unseen": ["driver", HEAD.name], "lock": None})
    here = replace(HEAD, storage={"errors": {}, "unseen": [WORKER.name], "lock": "refused"})
    said = str(judge_storage("/root/run", [DRIVER, here, alone], True)[0])
    assert said.startswith("FAIL")
    assert WORKER.name in said
    assert "s3://" in said


@pytest.mark.parametrize(
    ("right", "named"),
    [("list", "s3:ListBucket"), ("write", "s3:PutObject"), ("read", "s3:GetObject"), ("delete", "s3:DeleteObject")],
)
def test_a_bucket_says_which_right_is_missing(right, named):
    denied = {"errors": {right: "OSError: AWS Error ACCESS_DENIED"}, "unseen": [], "lock": None}
    said = the_one(judge_storage("s3://b/run", [replace(DRIVER, storage=denied)], False), "FAIL")
    assert named in said
    assert f"driver cannot {right}" in said


def test_two_that_hold_one_lock_are_told():
    both = replace(WORKER, storage={"errors": {}, "unseen": [], "lock": "given"})
    assert states(judge_storage("/nfs/run", [DRIVER, HEAD, both], True)) == ["ok", "warn"]
    said = str(judge_storage("s3://b/run", [DRIVER, both], False)[1])
    assert "If-None-Match" in said
    none = replace(WORKER, storage={"errors": {}, "unseen": [], "lock": "none"})
    assert "lease" in str(judge_storage("/nfs/run", [DRIVER, none], True)[1])


def test_a_pool_that_only_the_driver_sees_is_to_be_mended():
    blind = replace(WORKER, images={"/pool/a.png": "unreachable: not found", "/pool/b.png": "unreachable: not found"})
    said = the_one(judge_images("pool", DRIVER, [HEAD, blind]), "FAIL")
    assert WORKER.name in said
    assert HEAD.name not in said


def test_an_image_that_nobody_reads_is_no_nodes_fault():
    broken = {"/pool/a.png": "truncated", "/pool/b.png": None}
    nodes = [replace(each, images=broken) for each in (DRIVER, HEAD, WORKER)]
    assert "1 of 2" in the_one(judge_images("pool", nodes[0], nodes[1:]), "warn")
    gone = [replace(each, images=dict.fromkeys(broken, "unreachable: not found")) for each in nodes]
    assert "none of 2" in the_one(judge_images("pool", gone[0], gone[1:]), "FAIL")
