"""Draws of a game's offline dataset, and the denoisers fitted to each; fits are cached."""

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.augmentation.classifier_free import action_condition
from coda_jax.augmentation.return_conditioned import return_condition
from coda_jax.diffusion.generator import Generator, GeneratorConfig, GeneratorState, fit_chunk
from coda_jax.envs.polynomial import DatasetConfig, PolynomialGame, sample_dataset
from coda_jax.marl.stateless_maddpg import CriticConfig, fit_critic
from coda_jax.types import Metrics, Params, PRNGKey, Trajectory
from experiments.games.methods import GameCodaConfig, GamePrior, Generators
from experiments.host.cache import cache_folder, cache_key, lock
from experiments.host.checkpoints import open_cached
from experiments.host.console import Phase, phase, say
from experiments.host.errors import UserError

UPDATES_PER_CHUNK = 500
"""Updates between two reports of a fit."""


def fit_draws(
    game: PolynomialGame,
    dataset: DatasetConfig,
    key: PRNGKey,
    num_draws: int,
    generators: Generators,
    denoiser: GeneratorConfig,
    config: GameCodaConfig,
    critic: CriticConfig | None,
    mesh: Mesh,
) -> GamePrior:
    """Draws the datasets `[num_draws, N, ...]`; fits a transform, two denoisers and, if configured, a critic to each.

    The key is consumed.

    Raises:
        UserError: a fit ran into NaNs.
    """
    by_draw = NamedSharding(mesh, PartitionSpec("seed"))
    keys = jax.random.split(key, num_draws)
    key_data, key_encode, key_condition, *key_fits, key_critic = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(key, 6))(keys), 1, 0
    )
    datasets: Trajectory = jax.jit(jax.vmap(functools.partial(sample_dataset, game, dataset)))(key_data)
    tokens = transforms.pack(datasets)
    fitted = [transforms.fit(np.asarray(draw)[:, 0]) for draw in tokens]
    transform = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fitted)
    z = jax.jit(jax.vmap(transforms.forward))(transform, tokens, key_encode)
    conditions = (action_condition(game.spec, config.condition_noise), return_condition)
    ys = [jax.jit(jax.vmap(condition))(z, key_condition) for condition in conditions]

    content = hashlib.sha256(np.asarray(z).tobytes() + np.asarray(ys[0]).tobytes()).hexdigest()
    params = []
    with phase("fitting the denoisers", total=2 * denoiser.num_updates) as progress:
        for name, generator, y, key in zip(Generators._fields, generators, ys, key_fits, strict=True):
            entry = cache_folder() / "denoisers" / cache_key({"data": content, "config": denoiser, "condition": name})
            with lock(entry, f"the denoisers of {game.name}"):
                z_on, y_on = jax.device_put((z, y), by_draw)
                keys_on = jax.device_put(jax.vmap(jax.random.split)(key), by_draw)
                params.append(_fit(generator, denoiser, z_on, y_on, keys_on, mesh, entry, progress))
    critics: Params = None
    if critic is not None:
        critics, error = jax.jit(jax.vmap(functools.partial(fit_critic, critic)))(datasets, key_critic)
        say(f"fitted critics: root mean squared error {float(np.mean(error)):.4f}")
    prior = GamePrior(
        dataset=datasets, transform=transform, policy_denoiser=params[0], return_denoiser=params[1], critic=critics
    )
    return jax.device_put(prior, by_draw)


def _fit(
    generator: Generator,
    config: GeneratorConfig,
    z: Float[Array, "D N 1 C"],
    y: Float[Array, "D N K"],
    keys: PRNGKey,
    mesh: Mesh,
    entry: Path,
    progress: Phase,
) -> Params:
    """The averaged weights of one denoiser per draw, from the cache if present; `keys` is `[D, 2]`."""
    num_updates, batch_size = config.num_updates, config.batch_size
    draws = PartitionSpec("seed")

    def fit_one(
        num_updates: int, state: GeneratorState, z: Array, y: Array, key: PRNGKey
    ) -> tuple[GeneratorState, Metrics]:
        def sample_batch(key: PRNGKey) -> tuple[Array, Array]:
            rows = jax.random.randint(key, (batch_size,), 0, z.shape[0])
            return z[rows], y[rows]

        key = jax.random.fold_in(key, state.step)
        return fit_chunk(generator, state, sample_batch, key, num_updates)

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=4)
    def chunk(state, z, y, keys, num_updates):
        def per_device(*inputs):
            # One draw after the other: weights with a leading axis would be slower to multiply with.
            return jax.lax.map(lambda inputs: fit_one(num_updates, *inputs), inputs)

        sharded = jax.shard_map(per_device, mesh=mesh, in_specs=draws, out_specs=draws, check_vma=False)
        return sharded(state, z, y, keys)

    state = jax.device_put(jax.jit(jax.vmap(generator.init))(keys[:, 0]), NamedSharding(mesh, draws))
    checkpoints, restored = open_cached(entry, state)
    if restored is not None:
        progress.advance(num_updates, "from the cache")
        state = restored.tree
    else:
        for done in range(0, num_updates, UPDATES_PER_CHUNK):
            size = min(UPDATES_PER_CHUNK, num_updates - done)
            state, metrics = chunk(state, z, y, keys[:, 1], size)
            loss = np.asarray(metrics["loss"])
            if not np.isfinite(loss).all():
                raise UserError(f"NaN while fitting a denoiser, after {done} updates; lower --denoiser.learning-rate")
            progress.advance(size, f"loss {loss.mean():.3f}")
        checkpoints.save(num_updates, state)
    checkpoints.close()
    return state.ema
