"""Trains every method of `games.methods` on a game, over all draws of its dataset and all starts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.coda import make_trainer
from coda_jax.data.dataset import one_step_dataset
from coda_jax.diffusion.generator import make_generator
from coda_jax.envs.polynomial import (
    DatasetConfig,
    PolynomialGame,
    as_trajectory,
    environment,
    optima,
    reward,
    sample_actions,
)
from coda_jax.marl.stateless_maddpg import stateless_maddpg
from coda_jax.types import PRNGKey, Trajectory
from experiments.games.fitting import fit_draws
from experiments.games.methods import (
    CODA_METHODS,
    STATIC_METHODS,
    TRUE_GRADIENT,
    GameMethods,
    GamePrior,
    Generators,
    Path,
    game_methods,
    settings_of,
)
from experiments.games.settings import PolynomialConfig
from experiments.host.console import phase
from experiments.host.errors import UserError

METHODS = (TRUE_GRADIENT, *STATIC_METHODS, *CODA_METHODS)

SPREADS = (0.1, 0.2, 0.4, 0.8)
"""Standard deviations of the clouds around an optimum on which the baseline without augmentation is trained."""

LATTICE_SIZE, NUM_SAMPLES = 9, 256
"""Policies per side of the lattice on which the routes are sampled, and joint actions per policy."""

SEEDS_AT_ONCE = 12
"""Seeds of a draw that are vmapped; with more of them the samples no longer fit the processor's cache."""


class HostPath(NamedTuple):
    """A `methods.Path` on the host."""

    theta: np.ndarray
    gradient: np.ndarray


class Results(NamedTuple):
    """The results of a run; D draws, S seeds or starts a draw.

    paths:    method -> path `[D, S, ...]` from the learner's start.
    grid:     method -> path from the starts of a grid.
    data:     static method -> joint actions `[D, N, 2]` it trained on.
    policies: `[P, 2]` joint policies: three along CODA's first path, then a lattice.
    samples:  CODA method -> joint actions `[D, P, NUM_SAMPLES, 2]` sampled at each of those policies.
    clouds:   spread -> (joint actions `[N, 2]` of a cloud around an optimum, ends `[S, 2]` of training on it).
    """

    paths: dict[str, HostPath]
    grid: dict[str, HostPath]
    data: dict[str, Float[np.ndarray, "D N 2"]]
    policies: Float[np.ndarray, "P 2"]
    samples: dict[str, Float[np.ndarray, "D P NUM_SAMPLES 2"]]
    clouds: dict[float, tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "S 2"]]]


def train_all(config: PolynomialConfig, game: PolynomialGame, dataset: DatasetConfig, mesh: Mesh) -> Results:
    """Fits the denoisers, and trains every method from the paper's start and from the grid's.

    Raises:
        UserError: NaNs in the training.
    """
    num_draws, critic = config.num_draws, config.learned_critic if config.critic == "learned" else None
    num_channels = transforms.num_channels(game.spec)
    generators = Generators(
        policy=make_generator(dataclasses.replace(config.denoiser, condition_dim=2), num_channels, 1),
        returns=make_generator(dataclasses.replace(config.denoiser, condition_dim=1), num_channels, 1),
    )
    key_draws, key_training, key_clouds = jax.random.split(jax.random.key(config.seed), 3)
    prior = fit_draws(game, dataset, key_draws, num_draws, generators, config.denoiser, config.coda, critic, mesh)
    methods = game_methods(
        game, generators, config.coda, config.diffusion, config.guided_diffusion, config.learner, critic
    )
    by_draw = NamedSharding(mesh, PartitionSpec("seed"))
    keys = jax.random.split(key_training, 4)

    with phase("sampling the static sets", total=len(STATIC_METHODS)) as progress:
        static: dict[str, Trajectory] = {}
        for method, key in zip(STATIC_METHODS, jax.random.split(keys[0], len(STATIC_METHODS)), strict=True):
            draw_keys = jax.device_put(jax.random.split(key, num_draws), by_draw)
            static[method] = over_draws(functools.partial(methods.static_set, method), mesh)(prior, draw_keys)
            progress.advance(note=method)

    def run_from(title: str, theta: np.ndarray, key: PRNGKey, num_updates: int) -> dict[str, HostPath]:
        """Every method from the starts `[D, S, 2]`."""
        theta = jax.device_put(jnp.asarray(theta, jnp.float32)[..., None], by_draw)
        keys = jax.device_put(jax.random.split(key, theta.shape[:2]), by_draw)
        train_static = trainer(methods, "none", num_updates, mesh)  # one program for all static methods
        paths = {}
        with phase(title, total=len(METHODS)) as progress:
            for method in METHODS:
                train = train_static if method in STATIC_METHODS else trainer(methods, method, num_updates, mesh)
                data = static.get(method, static["none"])
                paths[method] = HostPath(*jax.device_get(train(prior, data, theta, keys)))
                if not np.isfinite(paths[method].theta).all():
                    raise UserError(f"NaN while {title}, method {method}")
                progress.advance(note=method)
        return paths

    start = np.asarray(config.learner.start)
    paths = run_from(
        f"training {config.num_seeds} seeds",
        np.broadcast_to(start, (num_draws, config.num_seeds // num_draws, 2)),
        keys[1],
        config.num_updates,
    )
    grid = run_from(
        f"training from {config.grid_size**2} starts",
        shared_out(lattice(config.grid_size), num_draws, config.seed),
        keys[2],
        config.grid_updates,
    )
    with phase("sampling both routes", total=len(CODA_METHODS)) as progress:
        policies = np.concatenate([path_policies(paths["coda"].theta), lattice(LATTICE_SIZE)])
        sample_keys = jax.device_put(jax.random.split(keys[3], num_draws), by_draw)
        samples = {}
        for method in CODA_METHODS:
            samples[method] = jax.device_get(sampler_at(methods, method, policies, mesh)(prior, sample_keys))
            progress.advance(note=method)
    actions = {method: np.asarray(trajectories.action)[:, :, 0, :, 0] for method, trajectories in static.items()}
    return Results(
        paths=paths,
        grid=grid,
        data=actions,
        policies=policies,
        samples=samples,
        clouds=train_on_clouds(config, game, key_clouds),
    )


def train_on_clouds(
    config: PolynomialConfig, game: PolynomialGame, key: PRNGKey
) -> dict[float, tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "S 2"]]]:
    """Trains without augmentation on Gaussian clouds around an optimum: spread -> (joint actions, ends of the seeds).

    The key is consumed.
    """
    x, y = optima(game)[0][-1]
    learner = stateless_maddpg(game.spec, functools.partial(reward, game), config.learner)

    trainer = make_trainer(environment(game), learner, None, settings_of(config.coda, 1, config.num_updates))

    def train(data: Array, key: PRNGKey) -> Array:
        dataset = one_step_dataset(as_trajectory(game, data))
        state, _ = trainer.run(trainer.init(key), dataset, (), lambda state, report: ())
        return state.learner.theta

    train_seeds = jax.jit(jax.vmap(train, (None, 0)))
    clouds = {}
    for spread, cloud_key in zip(SPREADS, jax.random.split(key, len(SPREADS)), strict=True):
        key_data, key_train = jax.random.split(cloud_key)
        cloud = DatasetConfig("gaussian", (float(x), float(y)), spread, config.num_transitions)
        data = sample_actions(cloud, key_data)
        ends = train_seeds(data, jax.random.split(key_train, config.num_seeds))
        clouds[spread] = np.asarray(data)[..., 0], np.asarray(ends)[..., 0]
    return clouds


def path_policies(theta: np.ndarray) -> np.ndarray:
    """The policies of a path shown in figures, `[3, 2]`: its first, the nearest to the origin, and its last."""
    path = theta[0, 0]
    return path[[0, np.argmin(np.linalg.norm(path, axis=-1)), -1]]


def lattice(size: int) -> np.ndarray:
    """`[size^2, 2]` joint policies that fill the square evenly, its border left out."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def shared_out(points: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """Points `[N, 2]` in random order, `[num_draws, N / num_draws, 2]`."""
    return np.random.default_rng(seed).permutation(points).reshape(num_draws, -1, 2)


def over_draws(one_draw: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function of one draw for all of them: sharded over the devices, sequential within each."""
    draws = PartitionSpec("seed")

    def on_device(*inputs: Any) -> Any:
        # vmap would give the denoisers' weights a leading axis, which makes their products slower.
        return jax.lax.map(lambda draw: one_draw(*draw), inputs)

    return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=draws, out_specs=draws, check_vma=False))


def trainer(methods: GameMethods, method: str, num_updates: int, mesh: Mesh) -> Callable[..., Path]:
    """(prior, static set, starts `[D, S, A, U]`, keys `[D, S]`) -> paths `[D, S, ...]` of a method."""

    def one_draw(prior: GamePrior, static_set: Trajectory, theta: Array, keys: PRNGKey) -> Path:
        def one_seed(inputs: tuple[Array, PRNGKey]) -> Path:
            return methods.train(method, prior, static_set, *inputs, num_updates)

        return jax.lax.map(one_seed, (theta, keys), batch_size=min(SEEDS_AT_ONCE, len(theta)))

    return over_draws(one_draw, mesh)


def sampler_at(
    methods: GameMethods, method: str, policies: Float[np.ndarray, "P 2"], mesh: Mesh
) -> Callable[..., Array]:
    """(prior, keys `[D]`) -> joint actions `[D, P, NUM_SAMPLES, 2]` that a CODA method samples at each policy."""

    def one_draw(prior: GamePrior, key: PRNGKey) -> Array:
        def at(inputs: tuple[Array, PRNGKey]) -> Array:
            return methods.sample_at(method, prior, *inputs, NUM_SAMPLES).action[:, 0, :, 0]

        theta = jnp.asarray(policies, jnp.float32)[..., None]
        return jax.lax.map(at, (theta, jax.random.split(key, len(theta))))

    return over_draws(one_draw, mesh)
