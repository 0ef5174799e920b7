"""Workers that share a training: together they do what one does, however the images fall to them."""

import copy
import io
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, SplitBatchNorm2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raykd.algo.dho import StudentNet
from raykd.errors import UserError
from raykd.models import training
from raykd.models.sync_batchnorm import synchronise
from raykd.models.training import Targets, TrainingSettings, Worker, reproducible, train_student
from raykd.models.training_data import TrainingFeatures

pytestmark = pytest.mark.ray
CPU, NUM, LABELED, WIDTH, NUM_CLASSES = torch.device("cpu"), 40, 9, 6, 3
WORLDS = (2, 3, 4)


# ---------------------------------------------------------------- what each worker does


def backbone(kind):
    """No bias in front of a BatchNorm: its gradient is rounding, which Adam enlarges."""
    if kind == "plain":
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
    if kind == "norm":
        return nn.Sequential(nn.Linear(WIDTH, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
    conv = nn.Conv2d(1, 8, 2, bias=False)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), conv, BatchNormAct2d(8), nn.Flatten(2), nn.AdaptiveAvgPool1d(1),
                         nn.Flatten())  # fmt: skip


def trained(worker, kind="plain", heads="dho", resume=None, **changes):
    """Lines, weights, and the states that were handed over, by step."""
    rng = np.random.default_rng(0)
    classes, features = rng.integers(0, NUM_CLASSES, NUM), rng.normal(size=(NUM, WIDTH)).astype(np.float32)
    targets = Targets(classes[:LABELED], rng.normal(size=(NUM, NUM_CLASSES)).astype(np.float16))
    settings = TrainingSettings(steps=4, key=(0, 1), batch_labeled=5, batch_unlabeled=7, checkpoints=1)
    torch.manual_seed(0)
    model, states = StudentNet(backbone(kind), 8, NUM_CLASSES, heads), {}

    def report(step, metrics, state):
        if state is not None:
            torch.save(state(), buffer := io.BytesIO())
            states[step] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)

    with reproducible(1, CPU):
        lines = train_student(
            model, TrainingFeatures(features), targets, replace(settings, **changes), report,
            resume=resume, worker=worker,
        )  # fmt: skip
    return {"lines": lines, "weights": model.state_dict(), "states": states}


FEW, OTHERS, EACH = ({"batch_labeled": num_l, "batch_unlabeled": num_u} for num_l, num_u in ((2, 7), (5, 1), (1, 3)))
SYNCED = {"kind": "norm", "sync_batchnorm": True}
TRAININGS = [  # how many workers, and how
    (2, {}),
    (2, {"heads": "kd"}),
    (2, SYNCED),
    (2, {"kind": "conv", "sync_batchnorm": True, "forward": "stacked"}),
    (3, {"forward": "stacked"}),
    (3, {"heads": "ce"}),
    (3, SYNCED),
    (3, FEW),
    (3, OTHERS | {"heads": "ce+kd"}),
    (4, FEW | {"forward": "stacked"}),
    (4, OTHERS),
    (4, EACH),
    (4, EACH | {"forward": "stacked"}),
    (4, {"accumulate": 2, "batch_labeled": 3, "batch_unlabeled": 5}),
]
APART = [{"kind": "norm"}, {"kind": "norm", "forward": "stacked"}]  # two workers, and nothing is synchronised


def late(worker):
    """The first worker's clock says that a checkpoint is due at every step, or another's does."""
    return [
        list(trained(worker, checkpoint_s=1e-9 if worker.rank == late_one else None)["states"]) for late_one in (0, 1)
    ]


def warned(worker):
    answers = iter([["a"], ["a"], ["a", "b"], ["b"]])
    training.WARNINGS_S = 0.0
    return list(trained(replace(worker, warned=lambda: next(answers)))["states"])


def normalised(worker):
    """Rows of unlike shares, through a BatchNorm of all workers: what comes out, and the gradients."""
    return [
        passed(norm, rows_of(shape).tensor_split([5, 6, 8][: worker.world - 1])[worker.rank], synced=True)
        for norm, shape in NORMS
    ]


NORMS = [
    (nn.BatchNorm1d(3), (9, 3)),
    (nn.BatchNorm2d(3, momentum=None), (9, 3, 2, 4)),
    (nn.BatchNorm2d(3, affine=False), (9, 3, 2, 4)),
    (nn.BatchNorm1d(3, track_running_stats=False), (9, 3, 5)),
    (BatchNormAct2d(3, inplace=False), (9, 3, 2, 4)),
]


def rows_of(shape):
    return torch.from_numpy(np.random.default_rng(0).normal(50, 1, shape)).float()


def passed(norm, rows, synced=False):
    """What a norm makes of rows in two passes, the gradients of a loss of both, and its state."""
    if synced:
        synchronise(norm)
    norm.zero_grad()
    rows = rows.clone().requires_grad_()
    out = [norm(rows), norm(2 * rows)]
    sum((each.sigmoid() * torch.arange(3).view(1, 3, *[1] * (rows.ndim - 2))).sum() for each in out).backward()
    gradients = {name: value.grad for name, value in norm.named_parameters()}
    return {"out": torch.cat(out, 1).detach(), "rows": rows.grad, "gradients": gradients, "state": norm.state_dict(),
            "at rest": norm.eval()(rows).detach()}  # fmt: skip


def work(rank, world, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=world)
    worker = Worker(rank, world, CPU, DistributedDataParallel)
    found = {number: trained(worker, **how) for number, (of, how) in enumerate(TRAININGS) if of == world}
    before = trained(Worker(), checkpoints=2)["states"][2]
    found["resumed"] = trained(worker, resume=before)
    found["apart"] = [trained(worker, **how) for how in APART if world == 2]
    found |= {"late": late(worker), "warned": warned(worker), "normalised": normalised(worker)}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_workers(tmp_path_factory):
    """What each worker found, by how many they are."""
    context = multiprocessing.get_context("forkserver")  # torch cannot differentiate in forks of a process that did
    context.set_forkserver_preload(["raykd.models.training"])
    found = {}
    for world in WORLDS:
        folder = tmp_path_factory.mktemp("workers")
        processes = [context.Process(target=work, args=(rank, world, folder)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * world
        found[world] = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
    return found


# ---------------------------------------------------------------- what must come of it


def losses(lines):
    return [[line[name] for name in ("loss", "ce", "kl_labeled", "kl_unlabeled") if line[name] is not None]
            for line in lines]  # fmt: skip


def assert_same(found, alone):
    np.testing.assert_allclose(losses(found["lines"]), losses(alone["lines"]), rtol=1e-4)
    assert [line["step"] for line in found["lines"]] == [line["step"] for line in alone["lines"]]
    for name, value in alone["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("number", range(len(TRAININGS)))
def test_any_number_of_workers_learn_what_one_does_also_where_some_have_no_image_of_a_kind(of_workers, number):
    world, how = TRAININGS[number]
    alone = trained(Worker(), **how)
    assert np.ptp(losses(alone["lines"])) > 0.01  # something is learned
    for found in of_workers[world]:
        assert_same(found[number], alone)


@pytest.mark.parametrize("number", range(len(APART)))
def test_batchnorm_of_each_workers_share_is_another_than_that_of_the_batch(of_workers, number):
    first = losses(trained(Worker(), **APART[number])["lines"])[0]
    assert losses(of_workers[2][0]["apart"][number]["lines"])[0] != pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("world", WORLDS)
def test_another_number_of_workers_goes_on_from_a_checkpoint(of_workers, world):
    alone = trained(Worker(), checkpoints=2)
    for found in of_workers[world]:
        assert_same(found["resumed"], alone)
        assert [line["loss"] for line in found["resumed"]["lines"][:2]] == [line["loss"] for line in alone["lines"][:2]]


@pytest.mark.parametrize("world", WORLDS)
def test_all_workers_write_down_where_they_are_at_the_same_step_by_the_clock_of_the_first(of_workers, world):
    every_step, only_the_last = [1, 2, 3, 4], [4]
    assert [found["late"] for found in of_workers[world]] == [[every_step, only_the_last]] * world


@pytest.mark.parametrize("world", WORLDS)
def test_each_machine_that_is_to_go_is_answered_with_one_checkpoint(of_workers, world):
    assert [found["warned"] for found in of_workers[world]] == [[1, 3, 4]] * world


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("number", range(len(NORMS)))
def test_a_synchronised_batchnorm_is_a_batchnorm_of_all_rows(of_workers, world, number):
    norm, shape = NORMS[number]
    alone = passed(copy.deepcopy(norm), rows_of(shape))
    parts = [found["normalised"][number] for found in of_workers[world]]
    for what in ("out", "rows", "at rest") if norm.track_running_stats else ("out", "rows"):
        torch.testing.assert_close(torch.cat([part[what] for part in parts]), alone[what], rtol=1e-3, atol=1e-3)
    for name, value in alone["gradients"].items():
        torch.testing.assert_close(sum(part["gradients"][name] for part in parts), value, rtol=1e-3, atol=1e-3)
    for part in parts:
        assert list(part["state"]) == list(alone["state"])
        for name, value in alone["state"].items():
            torch.testing.assert_close(part["state"][name], value, rtol=1e-4, atol=1e-4)


def test_a_module_that_normalises_in_its_own_way_cannot_be_synchronised():
    with pytest.raises(UserError, match=r"student\.sync_batchnorm: SplitBatchNorm2d normalises in its own way"):
        synchronise(nn.Sequential(nn.BatchNorm1d(2), SplitBatchNorm2d(4)))
