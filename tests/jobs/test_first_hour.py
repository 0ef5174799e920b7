"""The first hour: a folder of photos and a text file of class names, to the first picks."""

import csv
import json
from pathlib import Path

from fakes import CLASSES

from raykd.config import load_file
from raykd.new import Machine, write_config


def test_the_config_that_is_written_leads_to_first_picks_as_it_stands(image_folder, teacher_folder, run_job, tmp_path):
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(sorted(image_folder.rglob("*.png"))):
        (tmp_path / "photos" / f"{number:03d}.png").write_bytes(image.read_bytes())
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    given = (str(tmp_path / "names.txt"), f"local-dir:{teacher_folder}", Machine(2, 16, 0, hub=False))
    out = write_config(str(tmp_path / "photos"), tmp_path / "photos.yaml", *given, ask=None, say=lambda line: None)
    ended = run_job(load_file(out).model_dump(mode="json"))
    assert ended.code == 0, ended.err
    assert ended.out.startswith("8 of 8 images of round 0 wait for a label: fill the label column of ")
    place = tmp_path / "runs" / "photos"
    status = json.loads((place / "status.json").read_text())
    assert (status["state"], status["waiting_for"]["count"]) == ("waiting", 8)
    with open(Path(status["waiting_for"]["where"]["tasks"]), newline="", encoding="utf-8-sig") as stream:
        assert len(list(csv.DictReader(stream))) == 8
