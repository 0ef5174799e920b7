"""What the driver alone can tell of a config: its names and weights, and the folder's history."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from raykd.algo.mixture_search import imported_optuna
from raykd.config import Config
from raykd.diagnosis import FAIL, Finding, attempt, fail, failed, ok
from raykd.errors import one_line
from raykd.images.decoding import LARGE_BYTES
from raykd.images.pixel_batches import CACHE_BYTES, PROCESS_BYTES
from raykd.models.saved import MODEL_BYTES
from raykd.models.teacher import own_files
from raykd.stages.campaign import Campaign, check_unchanged, read_history
from raykd.stages.checks import check_answers, check_the_student, check_the_teacher
from raykd.stages.node_looks import STORE_S, given_up_after
from raykd.stages.progress import Progress
from raykd.stages.session import Session
from raykd.stages.weights import fetched_as, names_of_teacher
from raykd.store.place import Place

HUB_S = 4.0
READER_BYTES = PROCESS_BYTES + CACHE_BYTES + LARGE_BYTES  # of a process that reads, without its batches


def look_at_config(config: Config) -> list[Finding]:
    """The folder's history, names, weights; a student is built and trained for a step. Cost: torch's import."""
    session = Session(config.local_cpus)  # never started: only a campaign has to have one
    place = Place.of(config.storage_path)
    campaign = Campaign(config=config, place=place, progress=Progress("none"), session=session)
    try:
        history = given_up_after(STORE_S, read_history, place)
    except TimeoutError as error:  # whatever else looks into the folder would wait for minutes
        todo = "check its name and region, your credentials and the network"
        return [fail("storage", f"{place}: {error}", todo)]
    except Exception as error:
        findings = [failed("campaign", error)]
    else:
        findings = [attempt("campaign", lambda: check_unchanged(place, config, history))]
    if config.cache_path:
        findings.append(attempt("cache", (campaign.cache / "encode").check_writable))
    if config.labels.answers:
        findings.append(attempt("answers", lambda: check_answers(config.labels.answers or "")))
    if config.mixture.search == "optuna":
        findings.append(attempt("optuna", imported_optuna))
    models = [
        attempt("teacher", lambda: check_the_teacher(campaign)),
        attempt("student", lambda: check_the_student(campaign)),
    ]
    legible = findings[0].state != FAIL  # the folder, which may have the weights already
    hub = look_at_hub(campaign) if legible and all(each.state != FAIL for each in models) else []
    return findings + models + hub


# ---------------------------------------------------------------- weights that are to be downloaded


def look_at_hub(campaign: Campaign) -> list[Finding]:
    """Whether weights that come from a hub can be had: the driver fetches them, and no worker."""
    findings = []
    for name, url in hub_urls(campaign).items():
        request = urllib.request.Request(url, method="HEAD", headers=token_header(url))
        try:
            with urllib.request.urlopen(request, timeout=HUB_S):
                findings.append(ok("weights", f"{name}: {url} can be fetched"))
        except urllib.error.HTTPError as error:
            todo = "check the name, and set HF_TOKEN where the model is gated"
            findings.append(fail("weights", f"{name}: {url} answers {error.code} {error.reason}", todo))
        except OSError as error:
            todo = "fetch them where there is a network, and give local-dir:... or a checkpoint file"
            findings.append(fail("weights", f"{name}: {url} is out of reach: {one_line(error)}", todo))
    return findings


def hub_urls(campaign: Campaign) -> dict[str, str]:
    """teacher and student -> where their weights are, if not on a disk or in the campaign's folder."""
    import open_clip
    import timm

    teacher, student, found = campaign.config.teacher, campaign.config.student, dict[str, str]()
    if teacher.rule != "table" and not fetched_as(campaign, "teacher_model", names_of_teacher(teacher)):
        if (name := teacher.open_clip_name).startswith("hf-hub:"):
            found["teacher"] = repo_url(name.removeprefix("hf-hub:"))
        elif teacher.pretrained and not os.path.exists(teacher.pretrained):
            cfg = open_clip.get_pretrained_cfg(name, teacher.pretrained)
            found["teacher"] = repo_url(cfg["hf_hub"].rstrip("/")) if cfg.get("hf_hub") else cfg.get("url", "")
    if student.network and student.pretrained is True and not student.tower:
        timm_cfg = timm.get_pretrained_cfg(student.network)
        if timm_cfg and timm_cfg.hf_hub_id:
            repo = timm_cfg.hf_hub_id
            found["student"] = repo_url(repo if repo.count("/") else f"{repo}/{student.network}")
    return {name: url for name, url in found.items() if url and not is_cached(url)}


def repo_url(repo: str) -> str:
    return f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/api/models/{'/'.join(repo.split('/')[:2])}"


def token_header(url: str) -> dict[str, str]:
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and "/api/models/" in url else {}


def is_cached(url: str) -> bool:
    """Whether a hub's repo is in this machine's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repo = url.partition("/api/models/")[2]
    return bool(repo) and any(Path(HF_HUB_CACHE, f"models--{repo.replace('/', '--')}").glob("snapshots/*/*"))


# ---------------------------------------------------------------- memory


def memory_of(config: Config) -> dict[str, int]:
    """Bytes that one process of a stage declares, at least: weights that are not here are not counted."""
    teacher = 2 * sum(Path(path).stat().st_size for path in local_weights(config))
    return {"teacher": max(READER_BYTES, MODEL_BYTES + teacher), "predict": max(READER_BYTES, MODEL_BYTES)}


def local_weights(config: Config) -> list[str]:
    if config.teacher.rule == "table":
        return []
    return [path for path in own_files(config.teacher) if os.path.isfile(path)]
