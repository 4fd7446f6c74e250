"""What StarCraft needs, tested on folders that have it or lack it."""

from pathlib import Path

import pytest

from martes.cli import main
from martes.envs.adapters.starcraft import MAPS, checks
from martes.errors import EnvError


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as Blizzard's and SMAC's archives make it, the package beside it."""
    folder = tmp_path / "StarCraftII"
    program = folder / "Versions/Base75689/SC2_x64"
    program.parent.mkdir(parents=True)
    program.touch()
    maps = folder / "Maps/SMAC_Maps"
    maps.mkdir(parents=True)
    for name in MAPS:
        (maps / f"{name}.SC2Map").touch()
    monkeypatch.setenv("SC2PATH", str(folder))
    install(tmp_path, monkeypatch, "smac/env/starcraft2")
    return folder


def install(place: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    folder = place / "packages" / package
    folder.mkdir(parents=True)
    (place / "packages" / package.partition("/")[0] / "__init__.py").touch()
    monkeypatch.syspath_prepend(place / "packages")


def missing() -> dict[str, str]:
    """What is wrong -> what was found and the cure."""
    return {each.subject: f"{each.found}: {each.cure}" for each in checks() if each.cure}


def test_nothing_is_missing(game, capsys):
    assert missing() == {}
    assert [each.found for each in checks()] == [str(game), "4.10 (Base75689)", f"all {len(MAPS)} of SMAC", "smac"]
    assert main(["check", "starcraft"]) == 0
    assert "all is there" in capsys.readouterr().out


@pytest.mark.parametrize(("place", "told"), [("nowhere", "which is no folder"), (None, "not set, and no folder")])
def test_without_the_game_nothing_but_the_package_is_found(game, tmp_path, monkeypatch, capsys, place, told):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SC2PATH")
    if place is None:
        game.rename(game.with_name("elsewhere"))
    else:
        monkeypatch.setenv("SC2PATH", str(game / place))
    wrong = missing()
    assert set(wrong) == {"SC2PATH", "version", "maps"}
    assert told in wrong["SC2PATH"] and "export SC2PATH=" in wrong["SC2PATH"] and "SC2.4.10" in wrong["version"]
    assert main(["check", "starcraft"]) == EnvError.exit_code
    assert "martes train qmix/smax-3m" in capsys.readouterr().out


def test_the_game_s_own_place_needs_no_variable(game, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SC2PATH")
    assert missing() == {}


def test_another_version_is_told(game):
    program = game / "Versions/Base75689/SC2_x64"
    program.parent.rename(program.parent.with_name("Base93333"))
    assert list(missing()) == ["version"] and "unknown (Base93333): results compare" in missing()["version"]
    (game / "Versions/Base69232").mkdir()
    assert list(missing()) == ["version"], "a folder without the program is no version"
    (game / "Versions/Base69232/SC2_x64").touch()
    assert missing() == {}


def test_maps_that_lack_are_named(game):
    (game / "Maps/SMAC_Maps/corridor.SC2Map").unlink()
    assert list(missing()) == ["maps"]
    assert f"{len(MAPS) - 1} of {len(MAPS)}; missing: corridor: unzip SMAC_Maps.zip" in missing()["maps"]


def test_another_project_of_that_name_is_told(game, tmp_path):
    (tmp_path / "packages/smac/env/starcraft2").rmdir()
    assert list(missing()) == ["package"]
    assert "PyPI's, which is a tuner: pip uninstall smac, then pip install git+" in missing()["package"]


def test_smacv2_needs_its_own_map(game, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "smacv2/env")
    assert list(missing()) == ["maps of SMACv2"] and "no 32x32_flat.SC2Map" in missing()["maps of SMACv2"]
    (game / "Maps/SMAC_Maps/32x32_flat.SC2Map").touch()
    assert missing() == {}
