"""Public names are a promise: each change of one is seen in the diff of a snapshot."""

import ast
from collections.abc import Iterator
from pathlib import Path

import martes

ROOT = Path(__file__).parents[2]


def statements(block: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What stands at the top of a module, also under an `if`: some types have a form of their own for checkers."""
    for node in block:
        yield node
        if isinstance(node, ast.If):
            yield from statements([*node.body, *node.orelse])


def public_names(tree: ast.Module) -> list[str]:
    """`__all__` where a module has one; else what it defines at its top without a leading underscore."""
    names: list[str] = []
    for node in statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [target.id for target in targets if isinstance(target, ast.Name)]
            if found == ["__all__"] and node.value is not None:
                return sorted(ast.literal_eval(node.value))
            names += found
    return sorted({name for name in names if not name.startswith("_")})


def test_public_names(snapshot):
    paths = sorted((ROOT / "martes").rglob("*.py"))
    names = {path.relative_to(ROOT).as_posix(): public_names(ast.parse(path.read_text())) for path in paths}
    snapshot("public_names.txt", "".join(f"{path}: {', '.join(found)}\n" for path, found in names.items() if found))


def test_names_are_found_under_an_if_and_private_ones_are_not():
    code = (
        "import a\nif a.b:\n    A = 1\nelif a.c:\n    A = 2\nelse:\n    def f(): x = 1\n_p: int = 3\nclass K: y = 1\n"
    )
    assert public_names(ast.parse(code)) == ["A", "K", "f"]
    assert public_names(ast.parse(code + "__all__ = ['K']")) == ["K"]


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    tree = ast.parse((ROOT / "martes/__init__.py").read_text())
    for_checkers = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_checkers == martes._home
    assert set(martes.__all__) == {*for_checkers, "__version__"}
