"""What `make test-extras` installs is there under the names that martes imports."""

import pytest

from martes.errors import require


@pytest.mark.extras
@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("tensordict", "tensordict"),
        ("imageio", "video"),
        ("imageio_ffmpeg", "video"),
        ("minari", "offline"),
        ("h5py", "offline"),
        ("ray", "ray"),
        ("wandb", "wandb"),
        ("sacred", "sacred"),
        ("rware", "rware"),
        ("gymnasium_robotics", "mamujoco"),
        ("mujoco", "mamujoco"),
        ("magent2", "magent"),
        ("pymunk", "butterfly"),
        ("lle", "lle"),
        ("pyspiel", "hanabi"),
        ("shimmy", "hanabi"),
        ("vmas", "vmas"),
        ("jaxmarl", "jax"),
        ("jumanji", "jax"),
        ("brax", "mabrax"),
    ],
)
def test_an_extra_imports(module, extra):
    assert require(module, extra).__name__ == module
