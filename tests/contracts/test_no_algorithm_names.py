"""What serves every algorithm names none: a special case there is a missing interface."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALGORITHMS = {
    "a2c", "coma", "ddpg", "dqn", "facmac", "happo", "ia2c", "iddpg", "ippo",
    "iql", "isac", "maa2c", "maddpg", "mappo", "masac", "mat", "matd3", "ppo",
    "qmix", "qplex", "qtran", "reinforce", "sable", "sac", "td3", "vdn", "wqmix",
}  # fmt: skip
OWN = {"networks": {"sable", "mat"}}  # architectures that carry their algorithm's name
WORDS = re.compile(r"[A-Z]+[0-9]*(?![a-z])|[A-Z]?[a-z]+[0-9]*[a-z]*")


def algorithms_named(path: Path) -> set[str]:
    """Algorithms named by identifiers and by strings in one line; documentation may name its source."""
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type in (tokenize.NAME, tokenize.STRING)]
    texts = [token.string for token in tokens if not token.string.startswith(('"""', 'r"""', "'''"))]
    return {word.lower() for text in texts for word in WORDS.findall(text)} & ALGORITHMS


@pytest.mark.parametrize("folder", ["training", "data", "networks"])
def test_no_algorithm_is_named(folder):
    named = {path: algorithms_named(path) - OWN.get(folder, set()) for path in (ROOT / "martes" / folder).rglob("*.py")}
    assert not any(named.values()), {str(path.relative_to(ROOT)): names for path, names in named.items() if names}


def test_names_are_found_inside_identifiers(tmp_path):
    file = tmp_path / "loop.py"
    file.write_text(
        '"""Sable."""\nformat = PPOLearner  # qmix\nmy_vdn_mixer = "IPPO"\nQMixer = matrix\nreinforced = MAT\n'
    )
    assert algorithms_named(file) == {"ppo", "vdn", "ippo", "mat"}
