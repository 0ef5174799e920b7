"""What the README says is there, is there: its commands, its config, its tables and its tree."""

import importlib
import re
import shlex
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import yaml

from raykd import cli, presets
from raykd.algo.batches import BatchPlan
from raykd.algo.selection import strategies
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.strategies import STRATEGIES
from raykd.store import status

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
JOBS = [shlex.split(line[line.index("python jobs/") :]) for line in COMMANDS if "python jobs/" in line]


def section(title: str) -> str:
    return README.split(f"## {title}")[1].split("\n## ")[0]


def test_every_make_target_named_is_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^|: )make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "check", "setup"} <= named <= targets


@pytest.mark.parametrize("command", [job for job in JOBS if job[1] == "jobs/active_round.py"], ids=" ".join)
def test_every_campaign_command_is_understood(command, tmp_path, monkeypatch):
    (birds,) = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "birds.yaml").write_text(birds)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (ROOT / command[1]).is_file()
    assert cli.campaign_config(command[2:])[0].rounds == 3


def test_what_is_said_of_the_environment_is_said_before_the_first_command_that_needs_it():
    first = next(number for number, line in enumerate(COMMANDS) if line.startswith("python jobs/"))
    assert "source .venv/bin/activate" in COMMANDS[:first]
    assert "source .venv/bin/activate" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("command", JOBS, ids=" ".join)
def test_every_command_names_a_job_and_flags_that_it_has(command):
    job = ROOT / command[1]
    assert job.is_file()
    options = ("cli.py", "config.py", "pool_options.py")
    parsers = "".join(file.read_text("utf-8") for file in (job, *(ROOT / "raykd" / name for name in options)))
    for flag in (word.partition("=")[0] for word in command[2:] if word.startswith("--")):
        assert f'"{flag}"' in parsers or f"    {flag[2:].replace('-', '_')}: " in parsers, flag


def test_the_config_of_own_images_is_written_by_the_command_that_stands_there(tmp_path, monkeypatch):
    from fakes import CLASSES, write_images

    (command,) = [job for job in JOBS if job[1] == "jobs/new.py"]
    write_images(tmp_path / "data", 4)
    (tmp_path / "birds.txt").write_text("\n".join([*CLASSES, "none of these"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(ROOT))
    written = importlib.import_module("jobs.new").main(["data", *command[3:]])
    assert cli.campaign_config([written.name])[0].classes == str(tmp_path / "birds.txt")


def test_the_codes_of_the_status_are_those_there_are():
    (said,) = re.findall(r"ends with a code for scripts: ([^(]*)", " ".join(README.split()))
    told = {
        name: int(code) for code, names in re.findall(r"(\d) ([a-z, ]+)", said) for name in re.split(", | or ", names)
    }
    for state, code in status.CODES.items():
        assert told[state.replace("waiting", "waiting for labels")] == code
    assert told["never started"] == status.NEVER


def test_the_selection_command_is_the_fixed_interface():
    (command,) = [job for job in JOBS if job[1] == "jobs/pick.py" and "--labeled" in job]
    assert command[2::2] == ["--pool", "--labeled", "--strategy", "--budget", "--shards", "--seed", "--out"]


def test_the_config_of_own_images_names_only_what_there_is():
    (birds,) = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    import timm
    from open_clip import list_pretrained_tags_by_model

    assert birds["teacher"]["pretrained"] in list_pretrained_tags_by_model(birds["teacher"]["model"])
    assert birds["student"]["backbone"] in timm.list_pretrained()


def test_the_tables_list_every_preset_and_strategy():
    assert {name for name in presets.PRESETS if f"| `{name}` |" in section("Your own images")} == set(presets.PRESETS)
    rows = [line.split("|")[1] for line in section("Selection alone").splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == set(STRATEGIES)


def test_the_presets_of_the_papers_depart_from_them_as_the_departures_say():
    said = section("Departures from the papers")
    for field in ("`teacher.precision`", "`sample_id`", "`mixture.search`", "`imagenet`", "`badge`"):
        assert field in said
    for name in ("caltech101", "imagenet"):
        given = presets.load_preset(name)
        assert given.teacher.precision == "fp32"
        assert given.labels.start == "one_per_class"
        assert not given.mixture.search
    draws = BatchPlan(8, 8, 256, 8, (0, 0)).labeled(0)
    assert np.bincount(draws, minlength=8).std() > 1  # with replacement: in turn, it would be 0


def files_in(tree: str, root: Path) -> set[str]:
    """The Python files that an annotated tree names, by their paths from the root.

    A line begins with a file or with a folder; what follows a folder, there and on indented lines, is in it.
    """
    found, folder = set(), ""
    for line in tree.splitlines():
        if head := re.match(r"([\w./]+)", line):
            folder = head[1] if head[1].endswith("/") else ""
        elif head := re.match(r" +([\w./]+/)(?= |$)", line):  # a folder inside the one before
            outer = next(outer for outer in (folder, *parents(folder)) if (root / outer / head[1]).is_dir())
            folder = outer + head[1]
        for name in re.findall(r"[\w/]+\.py\b", line):
            places = [place for place in (folder + name, name) if (root / place).is_file()]
            assert places, f"{name} is not in {folder or 'the root'}"
            found.add(places[0])
    return found


def parents(folder: str) -> list[str]:
    parts = folder.rstrip("/").split("/")
    return ["/".join(parts[:count]) + "/" for count in range(len(parts) - 1, 0, -1)] + [""]


def test_the_tree_lists_every_module_that_there_is():
    (tree,) = [text for kind, text in BLOCKS if "raykd/" in text and not kind and "jobs/active_round.py " in text]
    modules = [file for room in ("raykd", "jobs") for file in (ROOT / room).rglob("*.py") if file.name != "__init__.py"]
    assert files_in(tree, ROOT) == {file.relative_to(ROOT).as_posix() for file in modules}
    for path in re.findall(r"^([\w./]+)  ", tree, re.MULTILINE):
        assert (ROOT / path).exists(), path


def test_a_tree_is_read_as_it_is_meant(tmp_path):
    for name in (
        "jobs/a.py",
        "raykd/b.py",
        "raykd/algo/c.py",
        "raykd/algo/d.py",
        "raykd/algo/deep/e.py",
        "raykd/store/f.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tree = """
jobs/a.py      what it does
raykd/         b.py the first
  algo/        the mathematics: c.py,
               d.py (d)
    deep/      e.py
  store/       f.py
"""
    everything = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.py")}
    assert files_in(tree, tmp_path) == everything
    assert files_in(tree.replace("d.py (d)", ""), tmp_path) == everything - {"raykd/algo/d.py"}
    with pytest.raises(AssertionError, match=r"x\.py is not in raykd/algo/deep/"):
        files_in(tree.replace("e.py", "x.py"), tmp_path)


def test_the_table_of_steps_names_files_that_exist():
    rows = [line.split("|") for line in section("How it is cut").splitlines() if line.startswith("| ")][1:]
    algo = {file.stem for file in (ROOT / "raykd" / "algo").rglob("*.py")}
    for row in rows:
        for name in re.findall(r"`([\w./]+\.py)`", row[2]):
            assert (ROOT / (name if "/" in name else f"raykd/stages/{name}")).is_file(), name
        assert set(re.findall(r"`(\w+)`", row[4])) <= algo, row[1]


def test_the_strategy_of_ones_own_works_as_it_stands(tmp_path, monkeypatch):
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "my_strategies.py" in text]
    (tmp_path / "my_strategies.py").write_text(code)
    (entry,) = [line for kind, text in BLOCKS if kind == "toml" for line in text.splitlines() if "=" in line]
    name, value = (part.strip().strip('"') for part in entry.split("="))
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(name, value, strategies.PLUG_INS)]
    monkeypatch.setattr(strategies, "entry_points", lambda group, name=None: points)
    pool = Rows(list("abcd"), [[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8]])
    assert strategies.pick(name, LocalShards.split(pool, 2), None, 2, 0).ids == ["c", "b"]
    assert len(code.splitlines()) < 30
