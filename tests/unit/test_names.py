"""Names, read from the syntax trees of every module that is there: one public name, one thing."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
TREES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text("utf-8"))
    for file in sorted((ROOT / "raykd").rglob("*.py"))
}


def test_no_public_name_is_defined_in_two_modules():
    homes = defaultdict(list)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
                "_"
            ):
                homes[node.name].append(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def is_typed_dict(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "TypedDict" for b in node.bases)


def named_round(tree: ast.Module) -> list[int]:
    """Lines where a parameter, a field or a variable is called ``round``; the keys of a TypedDict are JSON's."""
    keys = {
        id(line.target)
        for node in ast.walk(tree)
        if is_typed_dict(node)
        for line in node.body
        if hasattr(line, "target")
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.arg) and node.arg == "round")
        or (
            isinstance(node, ast.Name)
            and node.id == "round"
            and isinstance(node.ctx, ast.Store)
            and id(node) not in keys
        )
    ]


def test_nothing_is_named_round_as_that_is_a_builtin():
    assert {file: lines for file, tree in TREES.items() if (lines := named_round(tree))} == {}


def test_the_check_sees_a_round_wherever_it_may_stand():
    code = """
def f(round): ...
def g(*, round=0): ...
lambda round: 0
class A:
    round: int
for round in (): ...
[0 for round in ()]
class B(TypedDict):
    round: int
round(1.5), {"round": 1}, f(round=1)
"""
    assert sorted(named_round(ast.parse(code))) == [2, 3, 4, 6, 7, 8]
