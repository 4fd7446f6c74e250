"""What the page for users of SaLinA and BBRL names as ours is there: in the code, in a workspace, as a setting."""

import re
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

from martes.cli.commands import COMMANDS
from martes.envs.catalogue import make_env
from martes.envs.process import Hosting
from martes.experiment import settings_of
from martes.networks import Network, Policy
from martes.presets import PRESETS
from martes.training.workers import Role, Workers
from tests.contracts import test_coming_from_pymarl as other_page

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from-salina.md").read_text()
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()


@pytest.fixture
def ours(monkeypatch):
    """Code in the second columns of all tables of this page."""
    monkeypatch.setattr(other_page, "PAGE", PAGE)
    titles = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    return {code for title in titles for code in other_page.ours(title)}


def unknown(codes: set[str]) -> list[str]:
    """Those that are neither settings nor places in martes: modules, classes, what these have."""
    settings = {each.path for name in ("a2c", "bc") for each in settings_of(PRESETS[f"{name}/two-step"])}
    missing: list[str] = []
    for code in codes - settings:
        try:
            resolve_name(f"martes.{code}")
        except (ImportError, AttributeError):
            missing.append(code)
    return missing


def test_every_place_and_setting_is_there(ours):
    dotted = (re.fullmatch(r"([a-z_]+(?:\.\w+)+)(=\w+)?", code) for code in ours)
    named = {match[1] for match in dotted if match and not match[1].startswith("workspace.")} - {"config.yaml"}
    assert len(named) > 50
    assert not unknown(named)


def test_what_is_not_there_is_found():
    wrong = {"networks.acts", "data.Workspace.row", "algorithm.nonsense"}
    assert {*unknown(wrong | {"networks.act", "data.Workspace.rows", "algorithm.network.memory"})} == wrong


def test_every_part_of_a_workspace_is_there(ours):
    make = partial(make_env, "two-step", 1)
    policy = Policy(make().team, Network(hidden=(4,)), "shared", torch.Generator().manual_seed(0))
    with Workers(make, Role.of_policy(policy, steps=2), lanes=1, hosting=Hosting(workers=0)) as workers:
        workspace = workers.collected()
        attributes = {code.partition(".")[2] for code in ours if code.startswith("workspace.")}
        fields = {name for code in ours if code.startswith("workspace[") for name in re.findall(r'"(\w+)"', code)}
        assert len(attributes) > 15
        assert not [name for name in attributes if not hasattr(workspace, name)]
        assert {"reward", "cut", "discount", "start", "version"} <= fields <= set(workspace.names)


def test_every_command_preset_and_file_is_there(ours):
    commands = {code.split()[1] for code in ours if code.startswith("martes ")}
    presets = set(re.findall(r"\b([a-z][a-z0-9-]*/(?:gymnasium:|memory-)[\w-]+)", PAGE + TUTORIAL))
    files = {code for code in ours if code.startswith("examples/")}
    pages = {f"docs/{name}" for name in re.findall(r"\]\(([\w-]+\.md)", PAGE + TUTORIAL)}
    assert {"train", "report", "play", "sweep"} <= commands <= COMMANDS.keys()
    assert len(presets) >= 9
    assert not [name for name in presets if name not in PRESETS]
    assert not [name for name in files | pages if not (ROOT / name).exists()]
