"""MaMuJoCo alone: random actions in a batch of MJX environments, compiled as one program."""

import jax

import coda_jax as cj

NUM_ENVS, NUM_STEPS = 16, 100
env = cj.make_env("2halfcheetah")
spec = env.spec


def act(obs, carry, key):
    return jax.random.uniform(key, (NUM_ENVS, spec.num_agents, spec.action_dim), minval=-1.0), carry


rollout = jax.jit(lambda key: cj.rollout(env, act, (), key, NUM_ENVS, NUM_STEPS))
recorded = rollout(jax.random.key(0))
print(f"{spec.num_agents} agents, observations {recorded.steps.obs.shape} (step, environment, agent, feature)")
print(f"mean reward a step: {recorded.steps.reward.mean():.3f}")
