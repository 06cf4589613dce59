"""A learner of your own under CODA: linear policies that clone the actions of a mini-batch, in a one-step game."""

import jax
import jax.numpy as jnp

import coda_jax as cj
from coda_jax.envs.polynomial import DatasetConfig, environment, sample_dataset, twin_peaks

game = twin_peaks()
env = environment(game)
dataset = cj.one_step_dataset(sample_dataset(game, DatasetConfig("uniform"), jax.random.key(0)))


def update(theta, trajectory, weights, key):
    error = theta - trajectory.action.mean(axis=(0, 1))
    return theta - 0.1 * error, {"cloning_loss": jnp.sum(error**2)}


learner = cj.Learner(
    init=lambda key: 0.5 * jax.random.normal(key, (2, 1)),
    update=update,
    act=lambda theta, obs, carry: (jnp.broadcast_to(theta, (*obs.shape[:-1], 1)), carry),
    initial_carry=lambda batch_shape: (),
)
config = cj.CodaConfig(horizon=1, num_rounds=5, epochs_per_round=1, updates_per_epoch=20, mix_ratio=0.5)
trainer = cj.make_trainer(env, learner, cj.oracle(env, learner, horizon=1), config)
state, reports = jax.jit(trainer.run)(trainer.init(jax.random.key(1)), dataset, ())
print("return after each round:", reports.returns.mean(axis=-1).round(3))
