"""What SMAC and SMACv2 need beside Python: the game, its version, the maps. `martes check starcraft` shows it.

Sources: Samvelyan et al. (2019), "The StarCraft Multi-Agent Challenge", and the READMEs of oxwhirl/smac, oxwhirl/smacv2
and Blizzard/s2client-proto.
"""

import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

BUILDS = {"75689": "4.10", "69232": "4.6.2"}
"""Build of the game -> version, of those that tables of SMAC were made with: today's, and the paper's."""
MAPS = (
    *("3m", "8m", "25m", "5m_vs_6m", "8m_vs_9m", "10m_vs_11m", "27m_vs_30m", "MMM", "MMM2", "2s3z", "3s5z"),
    *("3s5z_vs_3s6z", "3s_vs_3z", "3s_vs_4z", "3s_vs_5z", "1c3s5z", "2m_vs_1z", "corridor", "6h_vs_8z"),
    *("2s_vs_1sc", "so_many_baneling", "bane_vs_bane", "2c_vs_64zg"),
)
DRAWN = "32x32_flat"
"""The map on which SMACv2 draws its teams."""
_PLACES = {"win32": "C:/Program Files (x86)/StarCraft II", "darwin": "/Applications/StarCraft II"}
_GAME = (
    "unpack SC2.4.10 (https://github.com/Blizzard/s2client-proto#linux-packages; elsewhere than on Linux, Battle.net "
    "installs the game), then export SC2PATH=<its folder>"
)


class Check(NamedTuple):
    """One thing that is needed."""

    subject: str
    found: str
    cure: str = ""
    """What to do; empty where nothing is missing."""


def checks() -> list[Check]:
    """The game's folder, its version, its maps and the packages, as this process finds them. Nothing is imported."""
    told = os.environ.get("SC2PATH")
    game = Path(told or _PLACES.get(sys.platform, "~/StarCraftII")).expanduser()
    packages = [name for name, part in (("smac", "env/starcraft2"), ("smacv2", "env")) if _has(name, part)]
    tests: list[Callable[[Path], Check]] = [_version]
    tests += [_maps] if packages != ["smacv2"] else []
    tests += [_drawn_maps] if "smacv2" in packages else []
    return [_folder(game, told), *(test(game) for test in tests), _packages(packages)]


def _folder(game: Path, told: str | None) -> Check:
    if game.is_dir():
        return Check("SC2PATH", str(game) if told else f"not set; {game} is there")
    return Check("SC2PATH", f"{told}, which is no folder" if told else f"not set, and no folder {game}", _GAME)


def _version(game: Path) -> Check:
    programs = (each for pattern in ("SC2_x64*", "SC2.app") for each in game.glob(f"Versions/Base*/{pattern}"))
    builds = sorted({re.sub(r"\D", "", program.parent.name) for program in programs})
    if not builds:
        return Check("version", "no program Versions/Base*/SC2_x64", _GAME)
    found = ", ".join(f"{BUILDS.get(build, 'unknown')} (Base{build})" for build in builds)
    if BUILDS.keys() & set(builds):
        return Check("version", found)
    return Check("version", found, f"results compare within one version alone, and SMAC's are of 4.10: {_GAME}")


def _maps(game: Path) -> Check:
    there = _names(game)
    missing = [name for name in MAPS if name not in there]
    cure = "unzip SMAC_Maps.zip of https://github.com/oxwhirl/smac/releases into Maps/ below SC2PATH"
    if not missing:
        return Check("maps", f"all {len(MAPS)} of SMAC")
    if len(missing) == len(MAPS):
        return Check("maps", "no Maps/SMAC_Maps/*.SC2Map", cure)
    return Check("maps", f"{len(MAPS) - len(missing)} of {len(MAPS)}; missing: {', '.join(missing)}", cure)


def _drawn_maps(game: Path) -> Check:
    if DRAWN in _names(game):
        return Check("maps of SMACv2", DRAWN)
    cure = "put the maps of https://github.com/oxwhirl/smacv2/releases into Maps/SMAC_Maps/ below SC2PATH"
    return Check("maps of SMACv2", f"no {DRAWN}.SC2Map", cure)


def _names(game: Path) -> set[str]:
    return {path.stem for path in (game / "Maps").glob("**/*.SC2Map")}


def _packages(found: list[str]) -> Check:
    if found:
        return Check("package", ", ".join(found))
    cure = "pip install git+https://github.com/oxwhirl/smac.git (or smacv2.git)"
    if find_spec("smac") is None:
        return Check("package", "neither smac nor smacv2", cure)
    return Check("package", "smac, but PyPI's, which is a tuner", f"pip uninstall smac, then {cure}")


def _has(package: str, part: str) -> bool:
    """Is the package installed, with this folder in it? Only then is it the one that is meant."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return any((Path(place) / part).is_dir() for place in places or ())
