"""What dies, when, and what a campaign must be afterwards: the cells of jobs/results/faults.md.

A cell begins with what an undisturbed campaign has left just before a stage, starts the job, and lets the fault strike
when ``status.json`` names that stage. Then the job must go on, or end in a line and go on when it is run again; and all
that it leaves must be equal, to the bit, to what the undisturbed one has left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import s3_server
from nodes import Nodes, kill, until
from proxy import Proxy

from raykd.store.place import Place

ROUND = "round_000"
LEFT_BEFORE = {  # what a campaign has left when a stage begins, besides all that is above
    "encode": (),
    "select": ("campaign.json", "pool", "teacher_model", "encode", "teacher"),
    "label": (f"{ROUND}/select", f"{ROUND}/ask"),
    "train": (f"{ROUND}/label", "ledger", f"{ROUND}/teacher"),
    "predict": (f"{ROUND}/train",),
    "mix": (f"{ROUND}/predict",),
    "report": (f"{ROUND}/student",),
}
COLUMNS = tuple(LEFT_BEFORE)
STAGE = {"encode": "encode", "mix": "round 0 student", "report": "round 0 evaluate"}  # as status.json calls it
PROCESSES = {  # that are killed, by how their command line begins, and in which stages there are any
    "teacher or student replica": ("ray::MapWorker(MapBatches(Counted", ("encode", "predict")),
    "fetch task": ("ray::MapBatches(Fetch", ("encode", "predict")),
    "shard actor": ("ray::ShardActor", ("select", "report")),
    "train worker": ("ray::RayTrainWorker", ("train",)),
    "train controller": ("ray::TrainController", ("train",)),
    "Tune trial": ("ray::Block", ("mix",)),
}
ON_NODES = ("encode", "select", "train", "predict", "mix")
ROWS: dict[str, tuple[str, ...]] = {
    "driver": COLUMNS,
    **{name: columns for name, (_, columns) in PROCESSES.items()},
    "raylet": ON_NODES,
    "node, another joins": ON_NODES,
    "node, none joins": ON_NODES,
    "link cut for 10 s": COLUMNS,
    "S3 answers 503 for 30 s": COLUMNS,
    "S3 hangs for 30 s": COLUMNS,
    "disk full": COLUMNS,
}
VICTIM = 2  # a node that is lost where it does not matter which
OVERRIDES = (
    *("rounds=1", "labels.start=none", "progress=lines", "stall_s=120", "selection.shards=4"),
    *("teacher.replicas=2", "student.predict_replicas=2", "student.num_workers=2"),
    *("student.steps=12", "student.checkpoints=3", "teacher.batch_size=32", "student.predict_batch_size=32"),
)
NUM_IMAGES = 450
GOES_ON_S = 240.0


class WentWrong(AssertionError):
    """A cell of which something else is true than may be."""


@dataclass
class World:
    """The cluster, the store, and the undisturbed campaign.

    A campaign is on the disk, on a small disk, or in the bucket: ``kind``.
    """

    nodes: Nodes
    folder: Path
    server: int | None = None
    proxy: Proxy | None = None
    undisturbed: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    victim: int = VICTIM

    # ------------------------------------------------------------ where campaigns are

    def place(self, kind: str, name: str) -> Place:
        """The folder of a campaign, as this process reaches it."""
        if kind != "s3":
            return Place.of(self.folder / kind / name)
        return Place.of(s3_server.uri(name, f"127.0.0.1:{self.server}"))

    def path(self, kind: str, name: str) -> str:
        """The same as nodes reach it: the bucket through the proxy."""
        if kind != "s3":
            return str(self.folder / kind / name)
        assert self.proxy is not None
        return s3_server.uri(name, f"{self.nodes.here}:{self.proxy.port}")

    def pool(self, kind: str) -> str:
        """A quarter of the demo's digits, as one file, made when missing."""
        if not (place := self.place(kind, "digits.parquet")).exists():
            from raykd.demo.digits import pool_table

            place.write_table(pool_table().slice(0, NUM_IMAGES), row_group_rows=64)
        return self.path(kind, "digits.parquet")

    # ------------------------------------------------------------ jobs

    def start(self, kind: str, name: str, pool: str = "disk", *more: str, **environment: str) -> Job:
        log = self.folder / f"{kind}-{name}.log"
        command = [sys.executable, "jobs/active_round.py", "--preset", "demo", "--set", *OVERRIDES]
        command += [f"storage_path={self.path(kind, name)}", f"pool.path={self.pool(pool)}", *more]
        process = self.nodes.popen(0, command, log, RAY_ADDRESS=self.nodes.ray_address, **environment)
        return Job(process, log, log.stat().st_size if log.exists() else 0, time.monotonic())

    def base(self) -> None:
        """Run the undisturbed campaign, once."""
        if not self.undisturbed:
            self.start("disk", "base").ends_well(300)
            self.undisturbed = outcome(self.place("disk", "base"))

    def begin(self, kind: str, name: str, column: str) -> None:
        """Leave what the undisturbed campaign had left when the stage began."""
        self.base()
        source, target = self.place("disk", "base"), self.place(kind, name)
        for left in [each for some in COLUMNS[: COLUMNS.index(column) + 1] for each in LEFT_BEFORE[some]]:
            if (source / left).is_dir():
                target.fs.create_dir((target / left).path)
                pafs.copy_files((source / left).path, (target / left).path, source.fs, target.fs)
            elif (source / left).exists():
                (target / left).write_bytes((source / left).read_bytes())
            # else the stage leaves nothing in this campaign

    def alone_s(self, column: str) -> float:
        """Seconds that the campaign takes from there on, on the disk, when nothing is wrong."""
        if column not in self.seconds:
            name = f"alone-{column}"
            self.begin("disk", name, column)
            job = self.start("disk", name)
            job.ends_well(GOES_ON_S)
            self.seconds[column] = time.monotonic() - job.started
            self.same("disk", name)
        return self.seconds[column]

    def same(self, kind: str, name: str) -> None:
        expected, found = self.undisturbed, outcome(self.place(kind, name))
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if wrong:
            raise WentWrong(f"{name}: not as undisturbed: {wrong}")

    def stage_of(self, kind: str, name: str) -> str | None:
        return stage_of(self.place(kind, name))

    def has_begun(self, kind: str, name: str, column: str) -> bool:
        """Whether a stage is at work. Labels are settled in milliseconds, so theirs begins when the ledger has some."""
        if column == "label":
            return (self.place(kind, name) / "ledger").exists()
        return self.stage_of(kind, name) == STAGE.get(column, f"round 0 {column}")

    # ------------------------------------------------------------ a cell

    def cell(self, row: str, column: str) -> tuple[str, float]:
        """Let it happen. Gives how it went on, and the seconds that it took.

        Raises:
            WentWrong: Anything else.
        """
        kind = "s3" if row.startswith("S3") else "small" if row == "disk full" else "disk"
        name = f"{row}-{column}".replace(" ", "-").replace(",", "")
        pool = "s3" if (kind, column) == ("s3", "encode") else "disk"
        self.begin(kind, name, column)
        started, job, again = time.monotonic(), self.start(kind, name, pool), 0
        until(lambda: self.has_begun(kind, name, column) or job.ended, GOES_ON_S, f"{name}: {column} begins")
        if job.ended:
            raise WentWrong(f"{name}: it ended before {column} was seen\n{job.said[-1500:]}")
        fault = self.strike(row, column, kind, name, job)
        with suppress(subprocess.TimeoutExpired):
            job.process.wait(GOES_ON_S)
        fault()
        if not job.ended:
            job.kill()
            raise WentWrong(f"{name}: still at it after {GOES_ON_S:g} s\n{job.said[-1500:]}")
        how = "went on"
        if job.process.returncode:
            if row != "driver":
                job.ended_in_a_line()
            how = "run again, went on" if row == "driver" else "in a line; run again, went on"
        while job.process.returncode:
            again += 1
            if again > 2:
                raise WentWrong(f"{name}: exit code {job.process.returncode} again\n{job.said[-1500:]}")
            job = self.start(kind, name, pool)
            job.process.wait(GOES_ON_S)
        self.same(kind, name)
        seconds = time.monotonic() - started
        if kind != "s3":
            shutil.rmtree(self.place(kind, name).path)
        if row == "raylet" or row.startswith(("node", "link")):
            self.heal()
        return how, seconds

    def heal(self) -> None:
        """All nodes alive again."""
        self.nodes.mend(self.victim)
        if not self.nodes.find("ray::", [self.victim]) or self.nodes.alive() < self.nodes.count:
            self.nodes.kill(self.victim)
            self.nodes.join(self.victim)
            until(lambda: self.nodes.alive() == self.nodes.count, 60, "the lost node is back")

    def host(self, column: str) -> int:
        """A node that has a part in the stage: with an actor of it, where it has any."""
        begins = [begin for begin, columns in PROCESSES.values() if column in columns]
        with suppress(AssertionError):
            until(lambda: any(self.nodes.find(each, [1, 2]) for each in begins), 30 if begins else 0, "an actor")
        count = {node: sum(len(self.nodes.find(each, [node])) for each in begins) for node in (2, 1)}
        return max(count, key=lambda node: count[node])

    def strike(self, row: str, column: str, kind: str, name: str, job: Job) -> Callable[[], None]:
        """Let the fault happen now; what it returns takes it back, as far as it has not been."""
        nodes = self.nodes
        if row == "raylet" or row.startswith(("node", "link")):
            self.victim = self.host(column)
        if row == "driver":
            job.kill()
        elif row in PROCESSES:
            begins = PROCESSES[row][0]
            until(lambda: nodes.find(begins) or job.ended, GOES_ON_S, f"{name}: a process {begins}")
            if not (found := nodes.find(begins)):
                raise WentWrong(f"{name}: it ended before there was a {begins}\n{job.said[-1500:]}")
            kill(found[0])
        elif row == "raylet":
            kill(nodes.raylet(self.victim))
        elif row.startswith("node"):
            nodes.kill(self.victim)
            if row == "node, another joins":
                time.sleep(3)
                nodes.join(self.victim)
        elif row.startswith("link"):
            nodes.cut(self.victim)
            time.sleep(10)
            nodes.mend(self.victim)
        elif row.startswith("S3"):
            assert self.proxy is not None
            self.proxy.mode = "503" if "503" in row else "hang"
            time.sleep(30)
            self.proxy.mode = "pass"
        elif row == "disk full":
            filler = self.folder / kind / "filler"
            fill(filler)
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(GOES_ON_S)
            return lambda: filler.unlink()
        return lambda: None


@dataclass
class Job:
    """A driver at work."""

    process: subprocess.Popen[bytes]
    log: Path
    begins: int
    started: float

    @property
    def said(self) -> str:
        return self.log.read_bytes()[self.begins :].decode(errors="replace")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def ends_well(self, seconds: float) -> None:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise WentWrong(f"not done after {seconds:g} s\n{self.said[-2000:]}") from None
        if code:
            raise WentWrong(f"exit code {code}\n{self.said[-2000:]}")

    def ended_in_a_line(self) -> None:
        said = self.said
        if self.process.returncode != 2 or "Traceback" in said or "\nerror: " not in f"\n{said}":
            raise WentWrong(f"exit code {self.process.returncode}, expected 2 and one line\n{said[-3000:]}")

    def kill(self) -> None:
        """``kill -9`` of the driver and of what the shell around it left; Ray's processes are not its children."""
        for pid in subprocess.run(
            ["pgrep", "-g", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split():
            kill(int(pid))
        self.process.wait(10)


def stage_of(place: Place) -> str | None:
    """The stage that a campaign is in, as ``status.json`` says; None: in none, or nothing can be read yet."""
    with suppress(OSError, ValueError):
        stage: str | None = json.loads((place / "status.json").read_bytes())["stage"]
        return stage
    return None


def fill(filler: Path) -> None:
    """Take all that is left on a disk."""
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 65536)
    with suppress(OSError), filler.open("ab", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 512)


# ---------------------------------------------------------------- what a campaign has left


def outcome(place: Place) -> dict[str, Any]:
    """Everything of a finished campaign that must not depend on what happened: by name, as hashes and plain values."""
    found: dict[str, Any] = {
        "picks": content((place / ROUND / "select" / "picks.parquet").read_table()),
        "labels": content((place / ROUND / "label" / "labels.parquet").read_table(), without=("time",)),
        "ledger": content((place / "ledger").read_table(), without=("time",)),
        "features": of_parts(place / "encode"),
        "predictions": of_parts(place / ROUND / "predict"),
        "student": digest((place / ROUND / "train" / "model.safetensors").read_bytes()),
        "deployed": digest((place / ROUND / "student" / "model.safetensors").read_bytes()),
    }
    figures = (place / ROUND / "evaluate" / "metrics.json").read_json()
    for name in ("seconds", "images_per_s", "data_wait_share"):
        figures.pop(name, None)
    found["metrics"] = json.dumps(figures, sort_keys=True)
    found["metrics.jsonl"] = len((place / "metrics.jsonl").read_bytes().splitlines())
    found["left over"] = sorted(
        info.path for info in place.files(recursive=True) if ".aside" in info.path or "/ray_t" in info.path
    )
    return found


def of_parts(folder: Place) -> str:
    paths = [info.path for info in folder.files(recursive=True) if info.path.endswith(".parquet")]
    return content(pa.concat_tables([folder.sibling(path).read_table() for path in paths]))


def content(table: pa.Table, without: tuple[str, ...] = ()) -> str:
    """Names a table's rows, in the order of their ids."""
    found = hashlib.sha256()
    table = table.sort_by([("sample_id", "ascending")])
    for name in sorted(set(table.column_names) - set(without)):
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
            found.update(np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False)).tobytes())
        else:
            found.update(json.dumps(column.to_pylist(), default=str).encode())
    return found.hexdigest()[:16]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# ---------------------------------------------------------------- the table


def from_markdown(text: str) -> dict[tuple[str, str], str]:
    """The cells of a table that :func:`as_markdown` has made."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    return {(row[0], column): cell for row in rows[1:] for column, cell in zip(COLUMNS, row[1:], strict=True)}


def as_markdown(cells: dict[tuple[str, str], str]) -> str:
    lines = [f"| what dies | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row, columns in ROWS.items():
        texts = [
            cells.get((row, column), "not run") if column in columns else "nothing of it there" for column in COLUMNS
        ]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines)
