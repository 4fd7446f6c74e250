"""No block of six significant lines stands twice in martes: one piece of code serves both places."""

import ast
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = 6
NOT_CODE = {
    tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE,
    tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def rows_of_no_logic(tree: ast.AST) -> set[int]:
    """The rows of imports and of strings that are statements: docstrings and the documentation of fields."""
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str))
    ]
    return {row for node in nodes for row in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def significant_lines(path: Path) -> list[tuple[int, str]]:
    """(row, tokens joined by one blank) of each line that says something."""
    skipped = rows_of_no_logic(ast.parse(path.read_text()))
    rows: dict[int, list[str]] = defaultdict(list)
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in NOT_CODE and token.start[0] not in skipped:
                rows[token.start[0]].append(token.string)
    return [(row, " ".join(texts)) for row, texts in sorted(rows.items()) if any(c.isalnum() for c in "".join(texts))]


def repeated_blocks(paths: list[Path], block: int = BLOCK) -> list[str]:
    """`file:row = file:row …` for each place where a repeated block begins; of a longer run, its first block."""
    places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    lines = {path: significant_lines(path) for path in paths}
    for path, significant in lines.items():
        for first in range(len(significant) - block + 1):
            places[tuple(text for _, text in significant[first : first + block])].append((path, first))
    repeated = sorted(sorted(found) for found in places.values() if len(found) > 1)
    starts = [found for found in repeated if [(path, first - 1) for path, first in found] not in repeated]
    return [" = ".join(f"{path.name}:{lines[path][first][0]}" for path, first in found) for found in starts]


def test_no_block_stands_twice():
    repeated = repeated_blocks(sorted((ROOT / "martes").rglob("*.py")))
    assert not repeated, "the same six lines:\n" + "\n".join(repeated)


def test_a_repeated_block_is_found_and_what_says_nothing_is_not(tmp_path):
    logic = [f"    a{row} = f(a{row - 1})  # why" for row in range(1, BLOCK + 1)]
    (tmp_path / "one.py").write_text("\n".join(["import torch", "def f(a0):", '    """Doc."""', *logic]))
    respaced = [line.replace(" = ", "=").replace("# why", "") for line in logic]
    (tmp_path / "two.py").write_text("\n".join(["def g(a0):", *respaced[:3], "", "    # a comment", *respaced[3:]]))
    (tmp_path / "three.py").write_text("\n".join(["def h(a0):", *logic[:-1], "    return a0"]))
    paths = [tmp_path / name for name in ("one.py", "three.py", "two.py")]
    assert repeated_blocks(paths) == ["one.py:4 = two.py:2"]
