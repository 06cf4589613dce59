"""The protocol of an environment: three pure functions of one environment, and the sizes of its task.

`jax.vmap` batches them. Nothing resets by itself: `rollout` handles the end of an episode, so the last
observation of an episode is never lost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
from jaxtyping import Array, Bool, Float, Int

from coda_jax.types import PRNGKey, TaskSpec


@chex.dataclass(frozen=True)
class EnvState:
    """Everything about one environment after a reset or a step.

    state:     `[*batch, S]` global state, in the environment's units.
    obs:       `[*batch, A, O]` local observations.
    reward:    `[*batch]` team reward of the step that led here, 0 after a reset.
    terminal:  `[*batch]` whether the task truly ended.
    truncated: `[*batch]` whether the time limit was reached.
    time:      `[*batch]` steps since the reset.
    physics:   further state of the simulator, any pytree: MJX data in MaMuJoCo, `()` by default.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> env.reset(jax.random.key(0)).obs.shape
        (2, 0)
    """

    state: Float[Array, "*batch S"]
    obs: Float[Array, "*batch A O"]
    reward: Float[Array, "*batch"]
    terminal: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    time: Int[Array, "*batch"]
    physics: Any = ()


class Environment(NamedTuple):
    """A task: three pure functions, and its sizes.

    reset:     `key -> EnvState`, a start; the key is consumed.
    step:      `(EnvState, action [A, U]) -> EnvState`, one control step. Actions lie in [-1, 1].
    set_state: `state [S] -> EnvState`, the environment in a recorded or generated global state, at time 0.
    spec:      the sizes of the task.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> stepped = env.step(env.reset(jax.random.key(0)), jnp.array([[0.5], [-1.0]]))
        >>> float(stepped.reward), bool(stepped.terminal)
        (-0.5, True)
    """

    reset: Callable[[PRNGKey], EnvState]
    step: Callable[[EnvState, Float[Array, "A U"]], EnvState]
    set_state: Callable[[Float[Array, "S"]], EnvState]
    spec: TaskSpec
