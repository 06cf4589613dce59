"""An augmentation of your own: recorded windows with noise on their actions, renewed every round."""

import jax
import jax.numpy as jnp

import coda_jax as cj
from coda_jax.envs.polynomial import DatasetConfig, environment, sample_dataset, twin_peaks

game = twin_peaks()
env = environment(game)
dataset = cj.one_step_dataset(sample_dataset(game, DatasetConfig("skewed"), jax.random.key(0)))


def sample(learner_state, dataset, prior, guidance, key, num):
    key_windows, key_noise = jax.random.split(key)
    windows = cj.sample_windows(dataset, key_windows, num, horizon=1)
    noise = 0.1 * jax.random.normal(key_noise, windows.action.shape)
    return windows.replace(action=jnp.clip(windows.action + noise, -1.0, 1.0))


jitter = cj.Augmentation(sample, is_renewed=True)
learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
config = cj.CodaConfig(horizon=1, num_rounds=3, epochs_per_round=1, updates_per_epoch=20, mix_ratio=0.5)
trainer = cj.make_trainer(env, learner, jitter, config)
state, reports = jax.jit(trainer.run)(trainer.init(jax.random.key(1)), dataset, ())
print("return after each round:", reports.returns.mean(axis=-1).round(3))
