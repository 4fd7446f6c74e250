"""The names of tasks: what makes each, what it is, and which extra brings its package. Reading them imports none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import NamedTuple

GROUP = "martes.envs"
"""The entry-point group under which a package declares its own environments."""
FORAGING = "lbf-[<sight>s-]<rows>x<columns>-<agents>p-<food>f[-coop]"
"""The names of level-based foraging, read by `martes.envs.batched.foraging`."""


@dataclass(frozen=True)
class Entry:
    """One name: what makes the environment, what it is, and the options that make the variant."""

    place: str
    """`module:name` of a game's class, or of a function that returns a game or an environment of any kind."""
    doc: str
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    extra: str = ""
    """The extra of martes that installs what it needs; empty: the core is enough."""
    package: str = ""
    """The import name of that package."""


_MPE, _RIVALS, _MATRIX = "martes.envs.batched.mpe", "martes.envs.batched.mpe_rivals", "martes.envs.batched.matrix"
_VALUE, _ACTION = "martes.envs.batched.value_probes", "martes.envs.batched.action_probes"
_CONTINUOUS = {"continuous": True}
_TIC_TAC_TOE = {"rows": 3, "columns": 3, "length": 3, "gravity": False}
_ADAPTERS = "martes.envs.adapters"
_JAX = f"{_ADAPTERS}.jaxmarl"
_ZOO, _GYM = f"{_ADAPTERS}.pettingzoo", f"{_ADAPTERS}.gymnasium"
_PYMARL = f"{_ADAPTERS}.pymarl"

FAMILIES: Mapping[str, Entry] = {
    "gymnasium": Entry(f"{_GYM}:gymnasium", "any Gymnasium task, a team of one: gymnasium:CartPole-v1"),
    "pettingzoo": Entry(f"{_ZOO}:pettingzoo", "any PettingZoo task: pettingzoo:pettingzoo.classic.connect_four_v3"),
    "mpe2": Entry(f"{_ZOO}:mpe2", "particles, the originals: mpe2:simple_crypto_v3", {}, "mpe", "mpe2"),
    "lbforaging": Entry(f"{_GYM}:lbforaging", "foraging: lbforaging:Foraging-8x8-2p-2f-v3", {}, "lbf", "lbforaging"),
    "rware": Entry(f"{_GYM}:rware", "robotic warehouse: rware:rware-small-4ag-v2", {}, "rware", "rware"),
    "magent2": Entry(f"{_ZOO}:magent2", "hundreds of agents: magent2:gather_v5", {}, "magent", "magent2"),
    "mamujoco": Entry(
        f"{_ZOO}:mamujoco", "joints shared out: mamujoco:Humanoid-9|8", {}, "mamujoco", "gymnasium_robotics"
    ),
    "lle": Entry(f"{_ADAPTERS}.laser:lle", "laser learning environment: lle:level6", {}, "lle", "lle"),
    "vmas": Entry(f"{_ADAPTERS}.vmas:vmas", "batched physics (GPLv3): vmas:balance", {}, "vmas", "vmas"),
    "jaxmarl": Entry(f"{_JAX}:jaxmarl", "compiled by JAX: jaxmarl:MPE_simple_spread_v3", {}, "jax", "jaxmarl"),
    "jumanji": Entry(f"{_ADAPTERS}.jumanji:jumanji", "compiled by JAX: jumanji:Connector-v3", {}, "jax", "jumanji"),
    "open-spiel": Entry(f"{_ADAPTERS}.turns:open_spiel", "games in turns: open-spiel:hanabi", {}, "hanabi", "pyspiel"),
    "smac": Entry(f"{_PYMARL}:smac", "StarCraft II: smac:3m", {}, "", "smac"),
    "smacv2": Entry(f"{_PYMARL}:smacv2", "StarCraft II with drawn teams: smacv2:10gen_terran", {}, "", "smacv2"),
    "smaclite": Entry(f"{_PYMARL}:smaclite", "SMAC without StarCraft: smaclite:2s3z", {}, "", "smaclite"),
}
"""`<family>:<task>` names any task of an outside package; the maker takes the task's name as `task`."""


def _outside(family: str, name: str, doc: str, **options: object) -> Entry:
    """One task of a family under a name of its own."""
    made = FAMILIES[family]
    return Entry(made.place, doc, {"task": name, **options}, made.extra, made.package)


def _smax(battle: str, doc: str) -> Entry:
    """SMAX on one of its maps."""
    return Entry(f"{_JAX}:smax", doc, {"map": battle}, "jax", "jaxmarl")


CATALOGUE: Mapping[str, Entry] = {
    "mpe-spread": Entry(f"{_MPE}:Spread", "cover every landmark, do not collide"),
    "mpe-spread-continuous": Entry(f"{_MPE}:Spread", "mpe-spread with real-valued actions", _CONTINUOUS),
    "mpe-speaker-listener": Entry(f"{_MPE}:SpeakerListener", "one knows the goal, the other must go there"),
    "mpe-speaker-listener-continuous": Entry(
        f"{_MPE}:SpeakerListener", "mpe-speaker-listener with real-valued actions", _CONTINUOUS
    ),
    "mpe-reference": Entry(f"{_MPE}:Reference", "each knows the other's goal and must tell it"),
    "mpe-reference-continuous": Entry(f"{_MPE}:Reference", "mpe-reference with real-valued actions", _CONTINUOUS),
    "mpe-tag": Entry(f"{_RIVALS}:Tag", "slow hunters in a pack, a fast prey, obstacles"),
    "mpe-tag-continuous": Entry(f"{_RIVALS}:Tag", "mpe-tag with real-valued actions", _CONTINUOUS),
    "mpe-adversary": Entry(f"{_RIVALS}:Adversary", "reach the goal and do not betray it to the adversary"),
    "mpe-adversary-continuous": Entry(f"{_RIVALS}:Adversary", "mpe-adversary with real-valued actions", _CONTINUOUS),
    "foraging": Entry("martes.envs.batched.foraging:Foraging", "level-based foraging: lift food together"),
    "climbing": Entry(f"{_MATRIX}:climbing", "matrix game: the best joint action lies beside the worst"),
    "penalty": Entry(f"{_MATRIX}:penalty", "matrix game: two best joint actions, a penalty for mixing them up"),
    "matrix": Entry(f"{_MATRIX}:MatrixGame", "two players and any table"),
    "two-step": Entry(f"{_MATRIX}:TwoStep", "the first choice decides which table pays: 7 for sure or up to 8"),
    "connect-four": Entry(
        "martes.envs.batched.connect_four:ConnectFour", "four in a row, in turns, against each other"
    ),
    "tic-tac-toe": Entry(
        "martes.envs.batched.connect_four:ConnectFour", "three in a row, without gravity", _TIC_TAC_TOE
    ),
    "memory-cue": Entry("martes.envs.batched.memory:MemoryCue", "remember a cue until asked for it"),
    "pendulum": Entry("martes.envs.batched.pendulum:Pendulum", "swing it up; differentiable, alone or side by side"),
    "coordsum-3x10": Entry("martes.envs.batched.coordination:CoordSum", "sum to a target without a fixed convention"),
    "crowd": Entry("martes.envs.batched.crowd:Crowd", "thousands of agents that cost next to nothing"),
    "probe-constant": Entry(f"{_VALUE}:Lives", "one step that pays 1"),
    "probe-delayed": Entry(f"{_VALUE}:Lives", "two steps, the second pays 1", {"rewards": ((0.0, 1.0), (0.0, 1.0))}),
    "probe-death": Entry(f"{_VALUE}:Lives", "one agent dies, one plays on", {"rewards": ((1.0,) * 2, (1.0,) * 5)}),
    "probe-observed": Entry(f"{_VALUE}:ObservedReward", "the observation is the reward"),
    "probe-time-limit": Entry(f"{_VALUE}:TimeLimit", "1 for ever, cut by time limits"),
    "probe-unequal": Entry(f"{_ACTION}:UnequalTeam", "groups with unequal observations and actions"),
    "probe-continuous": Entry(f"{_ACTION}:Aim", "hit a target in real numbers"),
    "probe-multi-discrete": Entry(f"{_ACTION}:Combination", "set several dials at once"),
    "probe-image": Entry(f"{_ACTION}:Picture", "name the bright quarter of a picture"),
    "probe-parts": Entry(f"{_ACTION}:Picture", "a picture and a number, both needed", {"compass": True}),
    # ------------------------------------------------------------------------------- of outside packages
    "mpe2-spread": _outside("mpe2", "simple_spread_v3", "mpe-spread, the original"),
    "mpe2-speaker-listener": _outside("mpe2", "simple_speaker_listener_v4", "mpe-speaker-listener, the original"),
    "mpe2-reference": _outside("mpe2", "simple_reference_v3", "mpe-reference, the original"),
    "mpe2-tag": _outside("mpe2", "simple_tag_v3", "mpe-tag, the original"),
    "mpe2-adversary": _outside("mpe2", "simple_adversary_v3", "mpe-adversary, the original"),
    "rware-tiny-2ag": _outside("rware", "rware-tiny-2ag-v2", "robotic warehouse: fetch the shelves that are asked for"),
    "smax-3m": _smax("3m", "three marines against three, without StarCraft"),
    "smax-8m": _smax("8m", "eight marines against eight"),
    "smax-5m_vs_6m": _smax("5m_vs_6m", "five marines against six"),
    "smax-2s3z": _smax("2s3z", "two stalkers and three zealots against as many"),
    "smax-3s5z": _smax("3s5z", "three stalkers and five zealots against as many"),
    "smax-smacv2_5_units": _smax("smacv2_5_units", "five against five, drawn anew each episode, as in SMACv2"),
    "overcooked-cramped-room": Entry(f"{_JAX}:overcooked", "two cooks in each other's way", {}, "jax", "jaxmarl"),
    "hanabi-small": _outside(
        "jaxmarl", "hanabi", "two colours, two ranks: fireworks by hints alone", num_colors=2, num_ranks=2, hand_size=2
    ),
    "mamujoco-halfcheetah-2x3": _outside("mamujoco", "HalfCheetah-2x3", "a cheetah whose legs are two agents"),
    "magent2-battle": _outside("magent2", "battle_v4", "two armies of 81 that see pictures, and die"),
}


def entries() -> dict[str, Entry]:
    """Every name; one of the library's own cannot be taken by a package."""
    found = {
        each.name: Entry(each.value, f"from the package {each.dist.name if each.dist else each.module}")
        for each in entry_points(group=GROUP)
    }
    return {**found, **CATALOGUE}


class Listed(NamedTuple):
    """An environment as a list shows it."""

    doc: str
    cure: str
    """The command that installs what it needs; empty where it can be made."""


def listed_envs() -> dict[str, Listed]:
    """Every name, `<family>:...` for each family, and the grammar of foraging's names."""
    families = {f"{name}:...": entry for name, entry in FAMILIES.items()}
    found = {name: Listed(entry.doc, _cure(entry)) for name, entry in {**entries(), **families}.items()}
    return found | {"lbf-...": Listed(f"level-based foraging of any size: {FORAGING}", "")}


def _cure(entry: Entry) -> str:
    if not entry.package or find_spec(entry.package) is not None:
        return ""
    return f"pip install 'martes[{entry.extra}]'" if entry.extra else "on no index: naming it says how to get it"
