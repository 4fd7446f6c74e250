"""A file can be read in one sitting, and the ways around the type checker and the linter only become fewer."""

import json
import re
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNTED = ROOT / "tests/snapshots/escapes.json"
IN_COMMENTS = {"type: ignore": re.compile(r"\b(type|pyright): *ignore"), "noqa": re.compile(r"\bnoqa\b")}
IN_CODE = ("Any", "cast")


def escapes(path: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                counts.update(name for name, pattern in IN_COMMENTS.items() if pattern.search(token.string))
            elif token.type == tokenize.NAME and token.string in IN_CODE:
                counts[token.string] += 1
    return counts


def test_files_are_short():
    limits = {path: 400 for folder in ("martes", "tests") for path in (ROOT / folder).rglob("*.py")}
    limits |= {path: 300 for path in (ROOT / "martes/algorithms").rglob("*.py")}
    lengths = {path: len(path.read_text().splitlines()) for path in limits}
    long = [
        f"{path.relative_to(ROOT)}: {lengths[path]} > {limit}"
        for path, limit in limits.items()
        if lengths[path] > limit
    ]
    assert not long, "a limit is there to make you think: which part is a thing of its own?\n" + "\n".join(long)


def test_escapes_only_become_fewer(snapshot):
    by_file = {path.relative_to(ROOT): escapes(path) for path in sorted((ROOT / "martes").rglob("*.py"))}
    now = {name: sum(counts[name] for counts in by_file.values()) for name in (*IN_COMMENTS, *IN_CODE)}
    before = json.loads(COUNTED.read_text())
    more = {
        name: [f"{path} ({counts[name]})" for path, counts in by_file.items() if counts[name]]
        for name in now
        if now[name] > before[name]
    }
    assert not more, (
        f"{now} is more than {before}: find the type that makes the escape needless; where there is none, say why in\n"
        f"the commit and raise the number in {COUNTED.relative_to(ROOT)} by hand. They stand in: {more}"
    )
    snapshot(COUNTED.name, json.dumps(now, indent=2) + "\n")
