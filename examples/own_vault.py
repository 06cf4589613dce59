"""CODA on a vault of your own: `python examples/own_vault.py 2halfcheetah PATH/TO/Replay.vlt [smoke|laptop|paper]`."""

import sys

import jax

import coda_jax as cj

task, path, *rest = sys.argv[1:]
preset = cj.PRESETS[rest[0] if rest else "laptop"]
convention, episodes = cj.load_vault(task, path)
env, horizon = convention.env, preset.training.horizon
recorded, held_out = cj.split_episodes(episodes)
dataset = cj.make_dataset(recorded, horizon)

model = cj.make_model(env.spec, horizon, preset.generator, preset.sampler)
prior = cj.fit_prior(model, dataset, jax.random.key(0))
learner = cj.maddpg_bc(env.spec, preset.learner, cj.standardised_inputs(dataset.steps))
trainer = cj.make_trainer(env, learner, cj.guided(model, learner, guidance=0.6), preset.training)
state, reports = jax.jit(trainer.run)(trainer.init(jax.random.key(1)), dataset, prior)
for scheduled, returns in zip(trainer.schedule, reports.returns.mean(axis=-1), strict=True):
    print(f"round {scheduled.number} ({scheduled.kind}): mean return {returns:.0f}")
