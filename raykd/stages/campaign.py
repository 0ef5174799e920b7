"""A campaign under way: its config, its folder and its history, and where each stage of it lies.

::

    <storage_path>/
      campaign.json            every config it has had: what changed before which round, versions, commit
      status.json              where it stands, for scripts (raykd/store/status.py); python jobs/status.py prints it
      demo/                    the demo's own pool, on a cluster
      pool/part_000 ...        manifest of every image; a part more whenever the pool has grown
      teacher_model/           the teacher's weights, fetched once
      audit/                   which images are set aside to measure students by, once any are
      encode/ teacher/         its features and logits, by parts (encode/ under cache_path, when that is given)
      student_model/           the student's pretrained backbone, fetched once
      student_texts/           what its own text tower says of the classes, where its heads begin as that
      ledger/ answers/         every answer ever given, append-only; where people put their label files
      round_000/
        select/ ask/ label/ teacher/ train/ predict/ student/ evaluate/      each complete or absent
        tasks.csv              what to label
      ray_train/ ray_tune/     of trainings and searches under way
      metrics.jsonl report.html quarantine.parquet                  views, written anew
      tracking/                what trackers keep here (raykd/tracking.py)
      .lock or .lease.json     while a job is at work here (raykd/store/lock.py)
"""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

import raykd
from raykd.config import Config, at_current_folder
from raykd.errors import StorageError, UserError, WaitingForLabels, for_the_reader, one_line
from raykd.labels.ledger import Ledger
from raykd.report.outlook import bound_in_words, words_of
from raykd.report.words import plain
from raykd.stages.progress import Progress
from raykd.stages.resources import check_seen
from raykd.stages.session import Session
from raykd.stages.work import Work
from raykd.store.lock import gone, only_job
from raykd.store.outputs import Labels, RoundFigures, count_done, read_labels, read_metrics, round_place
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder, differences, read_done
from raykd.store.status import CAMPAIGN_FILE, StatusFile
from raykd.tracking import Tracking, check_tracking, make_tracker, tracked_run

PACKAGES = ("ray", "torch", "open_clip_torch", "timm", "numpy", "pyarrow", "faiss-gpu", "faiss-cpu")


@dataclass(kw_only=True)
class Campaign(Work):
    """What every stage of a campaign is given.

    Args:
        config: The configuration, as it is now; ``place`` is its ``storage_path``.
        status: Of the job that holds the folder.
        tracking: Its trackers, which are told of each round.
        may_write: False: it is finished, in a folder that another user has, and only shown.
    """

    config: Config
    status: StatusFile | None = None
    tracking: Tracking | None = None
    may_write: bool = True
    open_shards: ExitStack = field(default_factory=ExitStack, repr=False)
    space: Any = None  # the pool's shards, while they are open (probability_space.py)
    _num_done: int = field(default=0, init=False, repr=False)

    @property
    def rounds(self) -> range:
        """All that are asked for; those that are done are looked at even when fewer are asked for now."""
        return range(max(self.config.rounds, self.num_done))

    @property
    def num_done(self) -> int:
        """Rounds that are evaluated. They only become more, so only the next one's marker is looked for."""
        self._num_done = count_done(self.place, self._num_done)
        return self._num_done

    @property
    def cache(self) -> Place:
        """Where outputs that do not depend on a campaign are found by fingerprint."""
        return Place.of(self.config.cache_path) if self.config.cache_path else self.place

    def folder(
        self,
        name: str,
        number: int | None = None,
        *,
        version: int,
        made_from: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        at: Place | None = None,
    ) -> StageFolder:
        """The folder of a stage, of the whole campaign or of one round."""
        place = at or (self.place if number is None else self.round_place(number)) / name
        said = name if number is None else f"round {number} {name}"
        return self.stage_folder(place, said, version=version, made_from=made_from or {}, settings=settings)

    def done(self, folder: StageFolder, number: int) -> Done | None:
        """What a round's folder holds when it is complete; it keeps its settings, and that is said."""
        found = folder.done()
        if found and number >= self.num_done and (changed := folder.settings_changed(found)):
            lines = [line.partition(":")[0] + " is another now" if is_fingerprint(line) else line for line in changed]
            self.say(folder.name, f"is done, and keeps what was set then; from the next round on: {'; '.join(lines)}")
        return found

    @property
    def labels_before(self) -> Labels | None:
        """What the last round that is done was trained on."""
        return read_labels(self.round_place(self.num_done - 1)) if self.num_done else None

    def ledger(self, renamed: Mapping[str, str] | None = None, asked: pa.Table | None = None) -> Ledger:
        """Every answer ever given, read under today's class names; ``asked`` for answers that are appended."""
        return Ledger(self.place / "ledger", renamed or {}, asked)

    @property
    def new_given(self) -> str | None:
        """Where labels from elsewhere lie (``labels.given``), unless they were taken already."""
        given = self.config.labels.given
        taken = {Place.of(path) for path in self.ledger().taken}  # in older ledgers relative, to the current folder
        return None if given is None or Place.of(given) in taken else given

    def figures(self) -> list[RoundFigures]:
        """Of every round that has been evaluated, in order."""
        found = (read_metrics(self.round_place(number)) for number in range(self.num_done))
        return [values for values in found if values is not None]

    def round_place(self, number: int) -> Place:
        return round_place(self.place, number)

    def write_status(self, state: str, **more: Any) -> None:
        """Where the campaign stands now, in ``status.json``, if this job holds the folder."""
        if self.status is None:
            return
        self.still_ours()
        if (done := self.num_done) != self.status.values["rounds_done"]:
            last = read_metrics(self.round_place(done - 1)) if done else None
            self.status.values |= {"rounds_done": done, "figures": last and status_figures(last, self.config.goal)}
        number = None if state == "finished" else done
        self.status.write(state=state, round=number, rounds=len(self.rounds), **more)

    def write_stage(self, name: str | None) -> None:
        """Note that a stage begins, or that it is complete (None); the latter only where a write is quick."""
        if name is None:
            if self.place.is_local:
                self.write_status("running")
        elif self.status is not None and name != self.status.values["stage"]:  # it may be made in parts
            self.write_status("running", stage=name)


def is_fingerprint(line: str) -> bool:
    """Whether a difference is one of names that mean nothing to people."""
    return bool(re.search(r"'[0-9a-f]{16}'", line))


def status_figures(last: RoundFigures, goal: float | None) -> dict[str, Any]:
    """What ``status.json`` says of the last round that is done; an older raykd has not measured all of it."""
    more = {name: last.get(name) for name in ("measured_on", "interval", "at_least", "forecast", "price")}
    return {
        "round": last["round"],
        "accuracy": last["accuracy"] and last["accuracy"]["mixture"],
        "labels": last["num_labeled"],
        "labels_spent": last.get("labels_spent"),
        **more,
        "words": [plain(line) for line in (bound_in_words(last), words_of(last, goal)) if line],
    }


def answers_folder(campaign: Campaign) -> Place:
    """Where people put files with their answers."""
    given = campaign.config.labels.answers
    return Place.of(given) if given else campaign.place / "answers"


@contextmanager
def open_campaign(config: Config) -> Iterator[Campaign]:
    """Hold the folder, check what can be checked, and note the config in the campaign's history.

    Raises:
        UserError: Another job is at work in the folder, something that can't change has
            changed, or something the config names does not exist or cannot work.
    """
    place = Place.of(config.storage_path)
    progress = Progress(config.progress)
    place.check_reachable()
    before = read_history(place)
    check_unchanged(place, config, before)
    finished = bool(before) and count_done(place) >= config.rounds
    if finished:  # a change counts when there are rounds to come: only what is shown, and where, is as it is now
        settings = {**config.identity(), "rounds": before[-1]["settings"]["rounds"]}  # rounds may be fewer
        if changed := differences(at_current_folder(before[-1]["settings"]), settings):
            progress.say("campaign", f"all rounds are done, raise rounds for a change to count: {'; '.join(changed)}")
        names = ("storage_path", "progress", "rounds", "tracking")
        shown = {name: getattr(config, name) for name in names}
        config = Config.model_validate(before[-1]["config"] | shown)
    check_tracking(config.trackers, place)  # here: those of a finished campaign may be new
    with ExitStack() as stack:
        session = stack.enter_context(Session(config.local_cpus, config.stall_s, progress))
        shards = stack.enter_context(ExitStack())
        campaign = Campaign(config=config, place=place, progress=progress, session=session, open_shards=shards)
        if not finished:
            if read_done(round_place(place, 0) / "select") is None:
                session.begin()  # images will be read, and imports take as long as a Ray's start
            from raykd.stages.checks import check_everything_cheap  # here: a finished campaign needs no torch

            check_everything_cheap(campaign)
        try:
            campaign.still_ours = stack.enter_context(only_job(place))
        except StorageError:
            if not finished:
                raise
            campaign.may_write = False
            campaign.say("campaign", f"{place} cannot be written to, so its figures are shown and nothing else is done")
        if not finished:
            note_config(campaign, before)
            check_seen(campaign, {"storage_path": place, **places_of_sources(config)})
        if is_started(place):
            campaign.say(
                "campaign", f"goes on in {place}: {campaign.num_done} of {len(campaign.rounds)} rounds are done"
            )
        if campaign.may_write:
            campaign.tracking = open_tracking(campaign)
            campaign.status = StatusFile(place)
        campaign.write_status("running")
        try:
            yield campaign
        except WaitingForLabels as wait:
            campaign.write_status("waiting", stage=None, waiting_for=wait.about)
            raise
        except BaseException as error:
            with suppress(UserError, OSError):  # another job's folder by now, or a full disk: the first error counts
                if isinstance(error, Exception):
                    ours = f"a mistake of raykd's own, whose traceback the job printed: {one_line(error)}"
                    campaign.write_status("failed", message=for_the_reader(error) or ours)
                else:
                    campaign.write_status("stopped")
            if isinstance(error, Exception) and for_the_reader(error) is None and place.is_local and not place.exists():
                raise gone(place) from error
            raise
        campaign.write_status("finished", stage=None)


def open_tracking(campaign: Campaign) -> Tracking | None:
    """What is told of each round besides ``metrics.jsonl``; None when nothing is."""
    config, place = campaign.config, campaign.place
    if not config.trackers:
        return None
    entry = read_history(place)[-1]
    run = tracked_run(place.name, config, entry["raykd"], entry["commit"])
    return Tracking(place, {word: make_tracker(word, place) for word in config.trackers}, run, campaign.say)


def places_of_sources(config: Config) -> dict[str, Place]:
    """Where images are read from, by the field that says so."""
    given = {f"{name}.path": source.path for name, source in config.sources.items()}
    return {field: Place.of(path) for field, path in given.items() if not path.startswith("demo:") and "{" not in path}


# ---------------------------------------------------------------- the history of its configs


def is_started(place: Place) -> bool:
    """Whether the pool is listed: from then on what cannot change is fixed."""
    return read_done(place / "pool" / "part_000") is not None


def read_history(place: Place) -> list[dict[str, Any]]:
    """Every config that a campaign has had, oldest first; empty where there is no campaign yet.

    Raises:
        UserError: The folder holds something else.
    """
    file = place / CAMPAIGN_FILE
    if file.exists():
        try:
            history: list[dict[str, Any]] = file.read_json()["history"]
            whole = bool(history) and all({"fixed", "settings", "config"} <= entry.keys() for entry in history)
        except (AttributeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(
                f"{file} is damaged, or not of this raykd: put it back from a copy, or give a new storage_path"
            )
        return history
    if place.is_local and any(Path(place.path).glob("[!.]*")):  # hidden: .lock, leftovers
        raise UserError(f"storage_path {place} is not empty and holds no campaign; give a new folder")
    return []


def check_unchanged(place: Place, config: Config, history: list[dict[str, Any]]) -> None:
    """Refuse a change of what a whole campaign stands on, once the pool is listed. Raises UserError with the fields."""
    if not history or not is_started(place):
        return  # nothing is done yet, so a config with a mistake may be mended
    if changed := differences(at_current_folder(history[-1]["fixed"]), config.fixed()):
        raise UserError(
            f"{place} holds a campaign with another config: {'; '.join(changed)}. These decide which images there are, "
            "which are test, and every draw, so all its figures hang on them: put them back, or begin anew and keep "
            f"the labels: give another storage_path, and labels.start: given with labels.given: {place}"
        )


def note_config(campaign: Campaign, history: list[dict[str, Any]]) -> None:
    """Add the config to the history, when it or the code has changed; and say what counts from now on."""
    config = campaign.config
    entry: dict[str, Any] = {
        "before_round": campaign.num_done,
        "fixed": config.fixed(),
        "settings": {"rounds": config.rounds, **config.identity()},
        "config": config.model_dump(mode="json"),
        "raykd": raykd.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions(),
    }
    last = history[-1] if history and is_started(campaign.place) else None
    history = history if last else []
    if last:
        if changed := differences(at_current_folder(last["settings"]), entry["settings"]):
            campaign.say("campaign", f"config changed before round {campaign.num_done}: {'; '.join(changed)}")
        elif all(last[key] == entry[key] for key in ("fixed", "settings", "raykd", "commit", "python", "versions")):
            return
        entry["changed"] = changed
    entry["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (campaign.place / CAMPAIGN_FILE).write_json({"history": [*history, entry]})


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of raykd's own checkout, with ``+`` when it has uncommitted changes; None elsewhere."""
    root = Path(raykd.__file__).parents[1]
    if not (root / "pyproject.toml").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout else "") if head.returncode == 0 else None
