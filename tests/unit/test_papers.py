"""PAPERS.md: what the code cites is there, and what it says of numbers and prompts is what the code does."""

import math
import re
from importlib.resources import files
from pathlib import Path

import pytest

from raykd.algo.prompts import TEMPLATE_SETS

ROOT = Path(__file__).parents[2]
PAPERS = files("raykd.algo").joinpath("PAPERS.md").read_text("utf-8")
HEADINGS = set(re.findall(r"^#+ ([\d.]+) ", PAPERS, re.MULTILINE))
SOURCES = [file for room in ("raykd", "jobs", "tests") for file in sorted((ROOT / room).rglob("*.py"))]
CITED = {
    (file.relative_to(ROOT).as_posix(), number)
    for file in [*SOURCES, ROOT / "README.md"]
    if file != Path(__file__)
    for number in re.findall(r"PAPERS\.md (\d+(?:\.\d+)?)", file.read_text("utf-8"))
}
NAMES = {"Flowers102": "oxford_flowers"}


def table(section: str) -> list[list[str]]:
    """The cells of a section's table, without its heading."""
    text = re.split(rf"^#+ {re.escape(section)} .*$", PAPERS, flags=re.MULTILINE)[1].split("\n#")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("| ")
    ][1:]


def test_every_section_that_is_cited_is_there():
    assert {where for where, _ in CITED} >= {
        "raykd/algo/dho.py",
        "raykd/algo/prompts.py",
        "tests/algo/test_zeroshot.py",
    }
    assert {(where, number) for where, number in CITED if number not in HEADINGS} == set()


def test_no_text_cites_a_page_that_is_not_in_the_package():
    for file in SOURCES:
        assert file == Path(__file__) or not re.search(r"\b(papers|design|methods)\.md", file.read_text("utf-8")), file


@pytest.mark.parametrize("row", table("2.2"), ids=lambda row: row[0])
def test_the_prompts_are_those_of_the_code(row):
    name, prompt = row[0], row[-1]
    if name == "ImageNet":
        assert tuple(prompt.removeprefix("seven, averaged: ").split(" / ")) == TEMPLATE_SETS["imagenet_7"]
    else:
        assert TEMPLATE_SETS[NAMES.get(name, name.lower().replace(" ", "_"))] == (prompt,)


@pytest.mark.parametrize("row", table("5.5"), ids=lambda row: row[0])
def test_the_steps_are_200_times_the_batches_of_each_training(row):
    num_classes, *said = (int(cell.replace(",", "")) for cell in row[1:])
    steps = [200 * math.ceil(number * num_classes / 64) for number in range(1, 17)]
    assert said == [steps[0], steps[-1], sum(steps)]
