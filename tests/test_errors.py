import pickle
import sys

import pytest

import martes
from martes import errors
from martes.errors import MartesError, MissingExtra, nearest, require


def kinds() -> list[type[MartesError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MartesError)]


def test_each_error_has_its_own_exit_code_which_is_no_success():
    codes = [kind.exit_code for kind in kinds()]
    assert len(codes) == 7
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


def test_require_gives_the_module_itself():
    assert require("xml.dom", "none") is sys.modules["xml.dom"]


def test_a_missing_package_is_one_line_with_the_install_command():
    with pytest.raises(MissingExtra) as caught:
        require("a_package_that_is_not.there", "vmas")
    assert str(caught.value) == "a_package_that_is_not is not installed: pip install 'martes[vmas]'"
    assert (caught.value.package, caught.value.extra) == ("a_package_that_is_not", "vmas")


def test_an_installed_package_that_lacks_something_says_what(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import its_missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_missing_dependency"):
        require("half_installed", "vmas")


def test_a_missing_extra_crosses_process_borders():
    error = pickle.loads(pickle.dumps(MissingExtra("vmas", "vmas")))
    assert (str(error), error.extra) == (str(MissingExtra("vmas", "vmas")), "vmas")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qmx", "; did you mean 'QMIX'? known: QMIX, vdn"),
        ("something else", "; known: QMIX, vdn"),
    ],
)
def test_nearest_name(name, text):
    assert nearest(name, ["vdn", "QMIX"]) == text


def test_nearest_of_nothing():
    assert nearest("a", ()) == "; known: none"


def test_version_is_the_packages():
    from importlib.metadata import version

    assert martes.__version__ == version("martes")
