"""The rules of the cut, read from the syntax trees of every module that is there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERBS = {
    "pool",
    "encode",
    "teacher",
    "score",
    "classify",
    "select",
    "label",
    "train",
    "predict",
    "mix",
    "evaluate",
    "report",
    "simulate",
}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function (``from a import b``: ``a``, ``a.b``)."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{name.name}" for name in node.names}
    return found


FILES = {module_of(file): file for file in sorted((ROOT / "raykd").rglob("*.py"))}


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def test_the_modules_are_found():
    assert len(FILES) > 40
    assert {f"raykd.stages.{verb}" for verb in VERBS} <= FILES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("module", FILES)
def test_only_stages_import_ray(module):
    if not is_in(module, "raykd.stages"):
        found = {name for name in imported(FILES[module]) if is_in(name, "ray") or is_in(name, "raykd.stages")}
        assert not found


@pytest.mark.parametrize("module", [name for name in FILES if is_in(name, "raykd.algo")])
def test_algo_imports_nothing_of_ours_outside_it(module):
    assert not {name for name in imported(FILES[module]) if is_in(name, "raykd") and not is_in(name, "raykd.algo")} - {
        "raykd"
    }


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_stage_verb_imports_another(verb):
    others = {f"raykd.stages.{other}" for other in VERBS - {verb}}
    assert not imported(FILES[f"raykd.stages.{verb}"]) & others
