"""What a simulation is: a YAML of arms, seeds, sets and an oracle, on top of an ordinary campaign's config.

``python -m raykd.simulation.definition`` prints every field. Relative paths begin at the folder of the file that they
stand in.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from raykd.config import (
    Config,
    Count,
    Section,
    Share,
    checked_section,
    describe,
    load,
    put,
    read_config_file,
    with_paths,
)
from raykd.errors import UserError, did_you_mean
from raykd.paths import IsPath
from raykd.store.stage_folder import flatten

GREEDY = "greedy oracle"  # the arm that knows what comes of a batch
SAME_OF_ALL = (  # fields that no arm may change: what is compared stands on them
    *("storage_path", "cache_path", "seed", "split_seed", "rounds", "classes"),
    *("pool", "test", "val", "test_share", "val_share"),
)
FROM_TABLES = ("pool", "test", "val", "test_share", "val_share", "classes")  # what tables stand in the place of


class OracleConfig(Section):
    """Who answers, and for how much. The same image gets the same answer in every arm of a seed."""

    kind: Literal["perfect", "noisy", "abstaining", "people"] = Field(
        "perfect",
        description="perfect: the known labels; noisy: wrong ones among them, by rate or confusion; abstaining: "
        "unsure, by rate; people: drawn from what people answered to each image (human_probs)",
    )
    rate: Share | None = Field(
        None, description="noisy: share of answers that name another class, each equally often; abstaining: of none"
    )
    confusion: Annotated[list[list[float]] | str | None, IsPath()] = Field(
        None,
        description="noisy: how often each class (row) is answered as each (column), rows that sum to 1, in the order "
        "of the classes; or a CSV file of these numbers",
    )
    human_probs: Annotated[str | None, IsPath()] = Field(
        None, description="people: a Parquet table with a row an image and a vector of the classes' shares of answers"
    )
    id_column: str = Field("sample_id", description="people: the table's column of sample_ids")
    probs_column: str = Field("human_probs", description="people: the table's column of vectors")
    price: float = Field(1.0, ge=0, description="Of an answer, also of one that names no class")
    price_per_class: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="Instead of price, by the class that the image is really of"
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> OracleConfig:
        looked_at = {"noisy": ("rate", "confusion"), "abstaining": ("rate",), "people": ("human_probs",)}
        mine = looked_at.get(self.kind, ())
        for name in ("rate", "confusion", "human_probs"):
            if getattr(self, name) is not None and name not in mine:
                others = " or ".join(kind for kind, names in looked_at.items() if name in names)
                raise UserError(f"{name} is for kind: {others}; kind: {self.kind} would not look at it")
        given = [name for name in mine if getattr(self, name) is not None]
        if mine and len(given) != 1:
            raise UserError(f"kind: {self.kind} needs exactly one of {', '.join(mine)}; given: {given or 'none'}")
        return self


class SetConfig(Section):
    """A variant of the pool. Classes and test images stay as they are."""

    long_tailed: float | None = Field(
        None,
        ge=1,
        description="So many times as many images of the first class as of the last, falling geometrically in the "
        "order of the classes; which ones is drawn by key",
    )
    missing: list[str] = Field([], description="Classes of which the pool has no image")


class GreedyConfig(Section):
    """An upper bound: of many candidate batches, the one whose student is the most accurate on test."""

    candidates: Count = Field(20, description="Batches that are tried, a training each, every round")
    rounds: Count | None = Field(None, description="Only so many rounds, the first included; null: all")
    arm: str | None = Field(
        None, description="Whose settings it has; null: those of the first arm with a frozen student"
    )


class SimulationConfig(Section):
    """A whole simulation."""

    results_path: Annotated[str, IsPath(lasting=True, holds="simulation.json")] = Field(
        description="Folder of the results: local, shared disk, s3:// or gs://"
    )
    campaign: Annotated[dict[str, Any] | str, IsPath()] = Field(
        description="The config that all arms begin with: its values, or the path of its YAML"
    )
    tables: Annotated[str | None, IsPath()] = Field(
        None,
        description="A folder of tables in the place of images: pool.parquet, test.parquet, val.parquet (sample_id, "
        "label, features, logits), classes.json, texts.npz (directions_CD, scale); the campaign then names no pool",
    )
    arms: dict[str, dict[str, Any]] = Field(
        {}, description="By name, what differs: {selection.strategy: pcoreset, student.heads: dho}"
    )
    grid: dict[str, list[Any]] = Field(
        {}, description="Fields and their values: an arm for each combination, called by its values"
    )
    seeds: Count = Field(8, description="Repetitions of each arm: seed, seed + 1, ... of the campaign")
    sets: dict[str, SetConfig] = Field({}, description="Variants of the pool by name; none: the pool as it is")
    oracle: OracleConfig = OracleConfig()
    greedy_oracle: GreedyConfig | None = Field(None, description="One more arm, an upper bound; null: none")

    @model_validator(mode="after")
    def _there_are_arms(self) -> SimulationConfig:
        if not self.arms and not self.grid:
            raise UserError("give arms, or grid, or both: what is to be compared")
        if empty := next((key for key, values in self.grid.items() if not values), None):
            raise UserError(f"grid.{empty} is an empty list; give one value or more, or leave it out")
        return self


@dataclass(frozen=True)
class Arm:
    """What is compared with others.

    Args:
        name: As it is shown.
        overrides: Dotted fields of the config and their values; of the greedy oracle how it is bounded, too.
        config: The campaign's config with these; with the seed of the first repetition.
        greedy: The greedy oracle's; None: an arm that picks by its strategy.
    """

    name: str
    overrides: dict[str, Any]
    config: Config
    greedy: GreedyConfig | None = None

    @property
    def num_rounds(self) -> int:
        most = self.greedy.rounds if self.greedy else None
        return self.config.rounds if most is None else min(most, self.config.rounds)


@dataclass(frozen=True)
class Simulation:
    """A simulation that is known to be possible, as far as its definition tells.

    Args:
        config: The definition.
        base: What all arms begin with.
        arms: By name; the greedy oracle last.
    """

    config: SimulationConfig
    base: Config
    arms: dict[str, Arm]

    @property
    def sets(self) -> dict[str, SetConfig]:
        """Variants of the pool; the pool as it is, named after where it lies, where none are given."""
        return dict(self.config.sets) or {self.default_set: SetConfig()}

    @property
    def default_set(self) -> str:
        path = self.config.tables or self.base.pool.path
        name = re.split(r"[/:]", path.rstrip("/"))[-1]
        return name.rsplit(".", 1)[0] or "pool"

    def seeds(self) -> range:
        return range(self.base.seed, self.base.seed + self.config.seeds)

    def identity(self) -> dict[str, Any]:
        """All that its results hang on, as plain data."""
        return {
            "campaign": campaign_identity(self.base),
            "tables": self.config.tables,
            "sets": {name: each.model_dump(mode="json") for name, each in self.sets.items()},
            "oracle": self.config.oracle.model_dump(mode="json"),
            "seeds": self.config.seeds,
            "arms": {name: arm.overrides for name, arm in self.arms.items()},
        }


def slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("._") or "_"


def campaign_identity(config: Config) -> dict[str, Any]:
    """All values of a config that figures hang on."""
    return {"rounds": config.rounds, **config.identity()}


# ---------------------------------------------------------------- from YAML


def load_simulation(values: Mapping[str, Any], overrides: Sequence[str] = (), folder: str = "") -> Simulation:
    """A checked simulation from plain values and ``key.sub=value`` overrides of it (values are read as YAML).

    Args:
        values: As a YAML file has them.
        overrides: Of single fields; relative paths in them begin at the current folder.
        folder: Where relative paths in the values begin.

    Raises:
        UserError: One line for each thing that is wrong; names the arm.
    """
    given: dict[str, Any] = copy.deepcopy(dict(values))
    inner = folder
    if isinstance(path := given.get("campaign"), str):
        given["campaign"], inner = read_config_file(IsPath().absolute(path, "campaign", folder))
    changed = [put(given, override, SimulationConfig) for override in overrides]

    def place(mark: IsPath, text: str, field: str) -> str:
        return mark.checked(text, field, "" if field in changed else folder)

    config = checked_section(SimulationConfig, with_paths(given, place, SimulationConfig))
    assert isinstance(config.campaign, dict)
    usual = {"storage_path": config.results_path, "labels": {"oracle": "simulated"}}
    values = overlaid(usual, absolute(config.campaign, inner))
    if config.tables:
        values = with_tables(values, config.tables)
    base = load(values)
    if base.labels.oracle != "simulated":
        raise UserError("campaign: labels.oracle: people; a simulation answers itself: give simulated, or leave it out")
    arms: dict[str, Arm] = {}
    for name, dotted in {**dict(config.arms), **grid_arms(config)}.items():
        arms[name] = make_arm(name, dotted, values, folder)
    if config.greedy_oracle:
        arms[GREEDY] = greedy_arm(config.greedy_oracle, arms)
    for what, names in (("arms", arms), ("sets", config.sets)):
        folders: dict[str, str] = {}
        for name in names:
            if other := folders.get(slug(name).lower()):
                raise UserError(f"{what}: {other!r} and {name!r} would have one folder, {slug(name)}; rename one")
            folders[slug(name).lower()] = name
    return Simulation(config, base, arms)


def load_simulation_file(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Simulation:
    """A checked simulation from a YAML file; relative paths in it begin at its folder.

    Raises:
        UserError: The file is missing, not YAML, not a mapping, or anything in it is wrong.
    """
    values, folder = read_config_file(path)
    return load_simulation(values, overrides, folder)


def grid_arms(config: SimulationConfig) -> dict[str, dict[str, Any]]:
    """An arm for each combination of the grid's values, called by them."""
    if not config.grid:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*config.grid.values()):
        name = " · ".join(value if isinstance(value, str) else json.dumps(value) for value in values)
        if name in found or name in config.arms:
            raise UserError(f"grid: there are two arms {name!r}; give each value once, and arms other names")
        found[name] = dict(zip(config.grid, values, strict=True))
    return found


def make_arm(name: str, dotted: Mapping[str, Any], base: Mapping[str, Any], folder: str) -> Arm:
    """An arm from the values of the campaign, and what differs. Raises UserError that names it."""
    try:
        if name == GREEDY:
            raise UserError("this name is that of the upper bound (greedy_oracle); call it otherwise")
        if fixed := next((key for key in dotted if key.split(".")[0] in SAME_OF_ALL), None):
            raise UserError(f"{fixed} is the same of all arms; change it in campaign")
        changed = absolute(nested(dotted), folder)
        return Arm(name, flatten(changed), load(overlaid(base, changed)))
    except UserError as error:
        raise UserError("\n".join(f"arm {name!r}: {line}" for line in str(error).splitlines())) from None


def greedy_arm(config: GreedyConfig, arms: Mapping[str, Arm]) -> Arm:
    """The upper bound, with the settings of one of the arms."""
    name = config.arm or next((name for name, arm in arms.items() if arm.config.student.is_frozen), None)
    if name is None:
        raise UserError("greedy_oracle trains a student a candidate, so it needs an arm with student.backbone: frozen")
    if name not in arms:
        raise UserError(f"greedy_oracle.arm: there is no arm {name!r}; {did_you_mean(name, arms)}")
    if not arms[name].config.student.is_frozen:
        raise UserError(f"greedy_oracle.arm: {name!r} has no frozen student (student.backbone: frozen)")
    bounds = {f"greedy_oracle.{key}": value for key, value in config.model_dump().items()}
    return Arm(GREEDY, arms[name].overrides | bounds, arms[name].config, config)


def with_tables(values: dict[str, Any], tables: str) -> dict[str, Any]:
    """A campaign's values where features come from tables: what names images stands for them."""
    if given := [key for key in FROM_TABLES if values.get(key)]:
        raise UserError(f"campaign: {', '.join(given)} and tables; the tables are the images, so give one of them")
    teacher = {"model": f"local-dir:{tables}"}
    if extra := set(values.get("teacher") or {}) - {"rule", "stat_a", "clap"}:
        raise UserError(
            f"campaign: teacher.{min(extra)} and tables, which have the teacher's logits already; leave it out"
        )
    pool = {"path": tables, "format": "parquet", "label_column": "label"}
    return overlaid(values, {"pool": pool, "teacher": teacher})


# ---------------------------------------------------------------- nested values


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings.

    Example:
        >>> nested({"student.heads": "ce", "student.steps": 3})
        {'student': {'heads': 'ce', 'steps': 3}}
    """
    found: dict[str, Any] = {}
    for key, value in dotted.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        found = overlaid(found, value)
    return found


def overlaid(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; where both have a value, that of the second."""
    found = dict(values)
    for key, value in others.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = overlaid(found[key], value) if both else value
    return found


def absolute(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The values of a campaign, its paths absolute."""
    found: dict[str, Any] = with_paths(values, lambda mark, text, field: mark.absolute(text, field, folder), Config)
    return found


def when_it_may_change(_: type[Section], spec: FieldInfo) -> str:
    """In words, until when a field may have another value; ``results.py`` holds to it."""
    fields = SimulationConfig.model_fields
    if spec is fields["results_path"]:
        return "free"
    grows = any(spec is fields[name] for name in ("arms", "grid", "seeds", "greedy_oracle"))
    return "may grow" if grows else "fixed once there are results"


if __name__ == "__main__":
    print("\n".join(describe(SimulationConfig, when=when_it_may_change)))
