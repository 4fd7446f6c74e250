"""Every key, preset and component that the page for PyMARL's users names as ours exists."""

import re
from importlib.util import find_spec
from pathlib import Path

from martes.experiment import settings_of
from martes.presets import PRESETS

PAGE = (Path(__file__).parents[2] / "docs/coming-from-pymarl.md").read_text()


def ours(title: str) -> list[str]:
    """Code in the second column of a section's tables."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\|.* \| (.*) \|$", section, re.MULTILINE)
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def test_every_key_is_a_setting():
    named = {code for code in ours("Configuration") if "." in code and "/" not in code}
    known = {each.path for name in ("qmix", "coma", "mappo") for each in settings_of(PRESETS[f"{name}/two-step"])}
    sections = {path.rpartition(".")[0] for path in known}
    assert len(named) > 40
    assert not named - known - sections


def test_every_preset_is_one():
    presets = set(re.findall(r"martes train ([a-z-]+/[\w:.-]+)", PAGE))
    assert len(presets) > 5
    assert not [name for name in presets if name not in PRESETS]


def test_every_module_is_there():
    places = [code for code in ours("Components") if re.fullmatch(r"[a-z]+(\.[\w]+)+", code)]
    modules = [re.sub(r"\.[A-Z]\w*$|\.train$|^algorithm\..*", "", code) for code in places]
    assert len(places) > 7
    assert not [name for name in modules if name and find_spec(f"martes.{name}") is None]
