"""What stages ask for against machines that are there, and such as an autoscaler may bring."""

import pytest

from raykd.demands import Demand, NodeType, demands_of, judge_demands, judge_package, judge_token
from raykd.presets import load_preset

GIB = 2**30
LAPTOP = {"127.0.0.1": {"CPU": 4.0, "memory": 10.0 * GIB}}
CPU_HEAD = {"10.0.0.1": {"CPU": 8.0, "memory": 30.0 * GIB}}
GPU_TYPE = NodeType("gpu_spot", {"CPU": 8, "GPU": 1}, 6)


def demand(count=1, cpus=1.0, gpus=0.0, gib=0, stage="train", beside=0) -> list[Demand]:
    return [Demand(stage, count, {"CPU": cpus, "GPU": gpus, "memory": gib * GIB}, beside)]


def test_the_demo_fits_a_laptop():
    demands = demands_of(load_preset("demo", []), {"teacher": GIB})
    assert [each.stage for each in demands] == ["teacher", "train", "predict", "selection"]
    (finding,) = judge_demands(demands, LAPTOP, None, is_local=True)
    assert finding.state == "ok"


def test_a_process_that_no_machine_holds_names_stage_need_and_the_biggest():
    (finding,) = judge_demands(demand(gpus=2, cpus=4), CPU_HEAD, [GPU_TYPE], is_local=False)
    assert finding.state == "FAIL"
    assert "train asks for 4 CPUs, 2 GPUs for one process" in finding.found
    assert "type gpu_spot, has 8 CPUs, 1 GPUs" in finding.found
    (finding,) = judge_demands(demand(gib=64), CPU_HEAD, None, is_local=False)
    assert "64.0 GiB" in finding.found
    assert "30.0 GiB" in finding.found


def test_a_machine_must_hold_all_that_one_process_asks_for():
    nodes = {"a": {"CPU": 16.0}, "b": {"CPU": 1.0, "GPU": 1.0}}
    (finding,) = judge_demands(demand(cpus=4, gpus=1), nodes, None, is_local=False)
    assert finding.state == "FAIL"


@pytest.mark.parametrize(("count", "state"), [(1, "warn"), (6, "warn"), (7, "FAIL")])
def test_what_the_autoscaler_may_bring_counts_up_to_its_most(count, state):
    (finding,) = judge_demands(demand(count, gpus=1), CPU_HEAD, [GPU_TYPE], is_local=False)
    assert finding.state == state, finding


def test_a_type_that_may_not_come_is_no_room():
    (finding,) = judge_demands(demand(gpus=1), CPU_HEAD, [NodeType("gpu", {"CPU": 8, "GPU": 1}, 0)], is_local=False)
    assert finding.state == "FAIL"


def test_too_many_actors_wait_for_ever():
    (finding,) = judge_demands(demand(5), LAPTOP, None, is_local=True)
    assert finding.state == "FAIL"
    assert "local_cpus" in finding.todo
    (finding,) = judge_demands(demand(4, beside=1, stage="teacher"), LAPTOP, None, is_local=True)
    assert "5 CPUs with those that read, and there are 4" in finding.found


def test_memory_that_a_node_type_does_not_tell_is_no_limit():
    (finding,) = judge_demands(demand(gpus=1, gib=500), CPU_HEAD, [GPU_TYPE], is_local=False)
    assert finding.state == "warn"


def test_it_is_said_when_node_types_cannot_be_read():
    (finding,) = judge_demands(demand(), CPU_HEAD, None, is_local=False)
    assert "cannot be read" in finding.found


def test_a_working_dir_that_ray_would_not_take_names_its_largest_files():
    small = judge_package(".", {"a.py": 1000}, is_local=False)
    assert small.state == "ok"
    sizes = {f"{number}.bin": number * 2**20 for number in range(20)}
    assert judge_package(".", sizes, is_local=True).state == "warn"
    large = judge_package(".", sizes, is_local=False)
    assert large.state == "FAIL"
    assert "19.bin 19.0, 18.bin 18.0, 17.bin 17.0, 16.bin 16.0, 15.bin 15.0" in large.found
    assert "14.bin" not in large.found
    assert ".rayignore" in large.todo


@pytest.mark.parametrize(
    ("is_local", "mode", "token", "state"),
    [
        (True, None, False, "ok"),
        (False, "token", True, "ok"),
        (False, None, True, "warn"),
        (False, "disabled", False, "warn"),
        (False, "token", False, "FAIL"),
    ],
)
def test_a_cluster_without_a_token_is_told(is_local, mode, token, state):
    assert judge_token(is_local, mode, token).state == state
