"""The choice of the learner by `--algorithm`, and its settings."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from coda_jax.marl.actor_critic import ActorCriticConfig
from coda_jax.marl.iddpg_bc import IddpgBcConfig, iddpg_bc
from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.learner import Learner
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.marl.maddpg_cql import MaddpgCqlConfig, maddpg_cql
from coda_jax.types import TaskSpec
from experiments.host.errors import UserError

DEFAULT_ALGORITHM = "maddpg_bc"


@dataclasses.dataclass(frozen=True)
class LearnerSettings(MaddpgBcConfig, MaddpgCqlConfig):
    """The settings of all algorithms; each uses those of its own configuration."""


class _Algorithm(NamedTuple):
    config: type[ActorCriticConfig]
    make: Callable[[TaskSpec, Any, InputScale], Learner]

    @property
    def settings(self) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(self.config))


_ALGORITHMS = {
    "maddpg_bc": _Algorithm(MaddpgBcConfig, maddpg_bc),
    "iddpg_bc": _Algorithm(IddpgBcConfig, iddpg_bc),
    "maddpg_cql": _Algorithm(MaddpgCqlConfig, maddpg_cql),
}
ALGORITHMS = tuple(_ALGORITHMS)


def make_learner(algorithm: str, settings: LearnerSettings, task: TaskSpec, inputs: InputScale) -> Learner:
    """The learner of an algorithm, from the settings that it uses."""
    config, make = _ALGORITHMS[algorithm]
    return make(task, config(**{name: getattr(settings, name) for name in _ALGORITHMS[algorithm].settings}), inputs)


def is_of_algorithm(algorithm: str, setting: str) -> bool:
    """Whether a setting, by its dotted name, is not a setting of other algorithms only."""
    group, _, name = setting.partition(".")
    return group != "learner" or name in _ALGORITHMS[algorithm].settings


def check_learner(algorithm: str, settings: LearnerSettings, default: LearnerSettings) -> None:
    """Refuses settings that differ from the default although the algorithm does not use them, by a `UserError`."""
    for field in dataclasses.fields(LearnerSettings):
        value = getattr(settings, field.name)
        if not is_of_algorithm(algorithm, f"learner.{field.name}") and value != getattr(default, field.name):
            flag = f"--learner.{field.name.replace('_', '-')}"
            users = [name for name in ALGORITHMS if is_of_algorithm(name, f"learner.{field.name}")]
            raise UserError(f"{flag} is {value}, but --algorithm {algorithm} does not use it; {' and '.join(users)} do")
