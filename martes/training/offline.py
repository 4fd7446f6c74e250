"""Learning from a data set alone: what stands in the collector's place, and gives nothing."""

from martes.algorithms.learner import Imitator, Learner
from martes.data import Fields, TeamSpec, Workspace
from martes.data.experience import Replayed
from martes.errors import ConfigError
from martes.training.data_sets import data_from
from martes.training.episodes import Episodes


class Nobody:
    """A collector of nothing: its learner has taken in a data set instead.

    Raises ConfigError where a learner cannot learn from what others did, DataError where the data do not fit the team.
    """

    final: Fields | None = None

    def __init__(self, learner: Learner, place: str, team: TeamSpec) -> None:
        self.episodes = Episodes(1)
        if not isinstance(learner.experience, Replayed):
            raise ConfigError(
                f"training.data is {place!r}, and {type(learner).__name__} learns only from what it does itself: take "
                "an algorithm that learns from replay"
            )
        learner.experience.take(data_from(place, team))

    def start(self, seed: int) -> None:
        """Nothing begins."""

    def collect(self) -> Workspace | None:
        """Nothing."""
        return None

    def state_dict(self) -> dict[str, object]:
        """Nothing: the data set is read anew."""
        return {}

    def load_state_dict(self, state: dict[str, object], seed: int) -> None:
        """Nothing to restore."""


def refuse_without_data(learner: Learner) -> None:
    """Raises ConfigError for a learner that would imitate itself."""
    if isinstance(learner, Imitator):
        raise ConfigError(
            f"{type(learner).__name__} learns what others did: name a data set, training.data=FILE. "
            "`martes evaluate RUN --record FILE` makes one"
        )
