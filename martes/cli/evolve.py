"""The command `martes evolve`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, Suppress, arg

from martes.cli.words import INTERRUPTED, Overrides, typed
from martes.errors import ConfigError
from martes.presets import DEFAULT

if TYPE_CHECKING:
    from martes.evolving import Evolving


Count = Annotated[str | None, arg(metavar="N", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")]


@dataclass(frozen=True)
class Evolve:
    """Train a population that tunes itself: `evolution.space.algorithm.lr=1e-4,1e-2` says what is searched."""

    preset: Annotated[Positional[str | None], arg(metavar="[PRESET]", help_behavior_hint=f"(default: {DEFAULT})")] = (
        None
    )
    """<algorithm>/<task>, as `martes list presets` shows."""
    population: Annotated[str | None, arg(metavar="N", help_behavior_hint="(default: 4)")] = None
    """Members; short for --evolution.population."""
    steps: Count = None
    """Environment steps of each member; short for --training.steps."""
    seed: Count = None
    """The one seed; short for --training.seed."""
    run_dir: Folder = None
    """New folder of the population; else runs/evolved-<algorithm>-<task>-s<seed>-<time>."""
    resume: Folder = None
    """Go on with this population, in place of a preset."""
    file: Annotated[Path | None, arg(metavar="YAML", help_behavior_hint="")] = None
    """Values that are taken before those of the command line; config.yaml of a population repeats it."""
    overrides: Suppress[Overrides] = ()

    def __call__(self) -> int:
        """Evolves, and says where the results lie."""
        from martes import evolving

        changes = typed(
            *self.overrides,
            ("evolution.population", self.population),
            ("training.steps", self.steps),
            ("training.seed", self.seed),
        )
        if self.resume is None:
            asked = self._composed(changes)
            folder, origin = evolving.new_folder(asked, self.run_dir, self.preset or DEFAULT), None
        else:
            for name, told in (("preset", "preset"), ("run_dir", "--run-dir"), ("file", "--file")):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--resume {self.resume} goes on with that population: leave out {told}")
            folder = evolving.located(self.resume)
            asked, origin = evolving.continued(folder, changes), folder.run.newest_checkpoint()
        result = evolving.evolved(asked, folder, origin)
        print(f"population: {folder.path}")
        if not result.history:
            print("stopped before the first generation: nothing is saved yet")
            return INTERRUPTED
        if not result.is_finished:
            print(f"stopped after {result.elite.steps:,} steps of each member and saved")
            print(f"go on: martes evolve --resume {folder.path}")
            return INTERRUPTED
        print(f"elite: {folder.elite.path} (martes evaluate {folder.path})")
        print(f"lineage: {folder.picture}")
        return 0

    def _composed(self, changes: list[tuple[str, object]]) -> "Evolving":
        from martes.evolving import Evolving
        from martes.presets import PRESETS

        asked = Evolving(PRESETS[self.preset or DEFAULT])
        if self.file is not None:
            try:
                text = self.file.read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                raise ConfigError(f"cannot read {self.file}: {error}") from error
            asked = Evolving.from_yaml(text, asked, str(self.file))
        return asked.changed(changes)
