"""The guided sampler alone, on data that are no reinforcement learning: sine waves, guided toward a start of 1."""

import functools

import jax
import jax.numpy as jnp

import coda_jax as cj
from coda_jax.diffusion.generator import fit_chunk, make_generator
from coda_jax.diffusion.unet import UNetConfig

HORIZON, key = 16, jax.random.key(2)
config = cj.GeneratorConfig(unet=UNetConfig(width=16), num_updates=200, batch_size=64, learning_rate=3e-3)
generator = make_generator(config, num_channels=1, horizon=HORIZON)


def sample_waves(key):
    phase = jax.random.uniform(key, (config.batch_size, 1), maxval=2 * jnp.pi)
    return 1.4 * jnp.sin(phase + jnp.linspace(0, 2 * jnp.pi, HORIZON))[..., None], None


fit = jax.jit(lambda state, key: fit_chunk(generator, state, sample_waves, key, config.num_updates))
state, losses = fit(generator.init(jax.random.key(0)), jax.random.key(1))
guide = jax.grad(lambda waves: -0.5 * jnp.sum((waves[:, 0] - 1.0) ** 2))  # toward waves that start at 1
denoise = functools.partial(generator.denoise, state.ema)  # (tau, sigma) -> the expected clean waves
shape, sampler = (256, HORIZON, 1), cj.SamplerConfig(num_steps=16)
for guidance in (0.0, 0.2):
    start = cj.heun_sample(denoise, key, shape, sampler, guide, guidance)[:, 0]
    print(f"lambda {guidance}: waves start at {start.mean():.2f} +- {start.std():.2f}")
