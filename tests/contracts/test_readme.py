"""The code blocks of README.md and docs/*.md run.

```python                  runs; the blocks of one page share one namespace and one empty folder, in their order
```bash run                runs if its first line is a `martes` command, as it stands
```bash run steps=2000     the same, with `--steps 2000` added to every `martes train`
```python no-run, ```bash no-run, and bash blocks of other commands (make, pip) are read by people alone
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
FENCED = re.compile(r"^```(python|bash)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    row: int
    language: str
    marks: list[str]
    code: str


def blocks(text: str) -> list[Block]:
    """A page's blocks that are to run, or that should say whether they are."""
    found = [Block(text.count("\n", 0, m.start()) + 2, m[1], m[2].split(), m[3]) for m in FENCED.finditer(text)]
    return [
        block
        for block in found
        if "no-run" not in block.marks and (block.language == "python" or block.code.startswith("martes "))
    ]


def as_script(page: str, block: Block) -> str:
    """Python that runs the block; its errors name the page's row."""
    if block.language == "python":
        code = "\n" * (block.row - 1) + block.code
        return f"exec(compile({code!r}, {page!r}, 'exec'))\n"
    assert "run" in block.marks, f"{page}:{block.row}: say ```bash run, ```bash run steps=N or ```bash no-run"
    steps = "".join(f" --steps {mark.removeprefix('steps=')}" for mark in block.marks if mark.startswith("steps="))
    code = re.sub(r"^(martes train\b[^\n#]*[^\n# ])", rf"\1{steps}", block.code, flags=re.MULTILINE)
    return f"import subprocess; subprocess.run(['bash', '-ec', {code!r}], check=True)\n"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.name)
def test_the_page_runs(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("".join(as_script(page.name, block) for block in blocks(page.read_text())))
    folder = tmp_path / "empty"
    folder.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=os.environ | {"PATH": path, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]


def test_marks_are_read():
    page = "```python\nx = 1\n```\n```bash run steps=5\nmartes train a/b  # why\nmartes list\n```\n"
    page += "```bash\nmake test\n```\n```python no-run\nboom\n```\n```bash\nmartes list\n```\n"
    python, bash, unmarked = blocks(page)
    assert python == Block(2, "python", [], "x = 1\n")
    assert "martes train a/b --steps 5  # why\\nmartes list" in as_script("README.md", bash)
    with pytest.raises(AssertionError, match=r"README.md:15: say"):
        as_script("README.md", unmarked)
