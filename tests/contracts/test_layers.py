"""Imports point down only, the core needs nothing that an extra installs, and mathematics needs torch alone."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
MATHS = {"torch", "jaxtyping"}


def core() -> set[str]:
    """The packages that `dependencies` of pyproject.toml installs, by the names that one imports."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    named = {match[0].lower() for each in wanted if (match := re.match(r"[\w-]+", each))}
    installs = packages_distributions()
    return {name for name, by in installs.items() if named & {each.lower().replace("_", "-") for each in by}}


def packages_imported_on_import(path: Path) -> set[str]:
    """Third-party packages that importing this file imports: functions and TYPE_CHECKING blocks are not entered."""
    found: set[str] = set()
    open_nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            open_nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "martes").partition(".")[0])
        open_nodes += ast.iter_child_nodes(node)
    return found - set(sys.stdlib_module_names) - {"martes"}


def foreign(folder: str, allowed: set[str]) -> list[str]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"no code in {folder}"
    packages = {path.relative_to(ROOT): packages_imported_on_import(path) - allowed for path in paths}
    return [f"{path}: {', '.join(sorted(names))}" for path, names in packages.items() if names]


def test_imports_point_down():
    ran = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"docs/design.md, section 2 says who may import whom\n{ran.stdout}{ran.stderr}"


def test_importing_martes_needs_the_core_alone():
    assert {"torch", "yaml", "PIL"} <= core()
    assert not foreign("martes", core()), "import an extra's package where it is used, by martes.errors.require"


def test_maths_imports_torch_and_jaxtyping_alone():
    assert not foreign("martes/maths", MATHS)


def test_no_script_hides_a_package():
    """A script's own folder comes first where Python looks: examples/gym.py would be taken for the package."""
    scripts = {path.stem for path in [*(ROOT / "examples").glob("*.py"), *ROOT.glob("*.py")]}
    known = {*sys.stdlib_module_names, *packages_distributions()}
    assert scripts and not scripts & known
    assert {"gymnasium", "statistics"} <= known
