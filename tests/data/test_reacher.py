"""Data of Reacher teams: inverse kinematics, conventions, and the returns that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.data.dataset import episode_returns
from coda_jax.data.reacher import (
    EXPERT_RETURN,
    FOREARM,
    MAX_BEND,
    RANDOM_RETURN,
    REFLECTION,
    UPPER_ARM,
    ReacherData,
    elbows_of,
    learned_reacher_episodes,
    posture,
    reacher_episodes,
)
from coda_jax.envs import mamujoco
from coda_jax.ranges import RangeError


def fingertip(angle):
    """Forward kinematics in numpy."""
    shoulder, elbow = np.moveaxis(np.asarray(angle, np.float64), -1, 0)
    along = [UPPER_ARM * f(shoulder) + FOREARM * f(shoulder + elbow) for f in (np.cos, np.sin)]
    return np.stack(along, axis=-1)


@pytest.mark.parametrize("elbow", [1.0, -1.0])
def test_postures_reach_the_target_with_the_elbow_to_their_side(elbow):
    rng = np.random.default_rng(0)
    radius, angle = rng.uniform(0.03, 0.205, 200), rng.uniform(-np.pi, np.pi, 200)
    target = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    reached = np.asarray(posture(jnp.asarray(target, jnp.float32), jnp.full(200, elbow)))
    np.testing.assert_allclose(fingertip(reached), target, atol=1e-5)
    assert (np.sign(reached[:, 1]) == elbow).all()


def test_targets_out_of_reach_get_the_nearest_posture():
    folded, stretched = np.asarray(posture(jnp.array([[0.0, 0.001], [0.3, 0.0]]), jnp.ones(2)))
    np.testing.assert_allclose(folded[1], MAX_BEND, rtol=1e-6)
    np.testing.assert_allclose(stretched, 0.0, atol=1e-6)


def test_mixed_teams_draw_each_agents_convention():
    elbow = np.asarray(elbows_of(ReacherData(num_episodes=4000, coverage=0.5), jax.random.key(0)))
    agreed = elbow[:, 0] == elbow[:, 1]
    assert abs(agreed.mean() - 0.75) < 5 * 0.5 * 0.5 / np.sqrt(2000)
    assert abs(elbow.mean(axis=0)).max() < 0.05
    pure = np.asarray(elbows_of(ReacherData(num_episodes=10), jax.random.key(0)))
    assert (pure[:, 0] == pure[:, 1]).all() and pure[:, 0].sum() == 0


@pytest.mark.slow
def test_teams_of_one_convention_play_like_experts_and_mixed_ones_like_random():
    agreed, mixed = (
        reacher_episodes(ReacherData(num_episodes=128, coverage=share, noise=0.0), jax.random.key(1))
        for share in (0.0, 1.0)
    )
    # Standard deviation of an episode's return: about 1.8.
    assert abs(episode_returns(agreed).mean() - EXPERT_RETURN) < 0.6
    # Half of the mixed teams agree by chance.
    assert abs(2 * episode_returns(mixed).mean() - EXPERT_RETURN - RANDOM_RETURN) < 2.0
    elbow = np.arctan2(agreed.state[:, 3], agreed.state[:, 1]).reshape(128, 50)[:, -1]
    assert 0.35 < (elbow > 0.05).mean() < 0.65 and 0.35 < (elbow < -0.05).mean() < 0.65
    env = mamujoco.make("2reacher-first")
    assert agreed.obs.shape == (128 * 50, 2, env.spec.obs_dim) and agreed.action.shape == (128 * 50, 2, 1)
    stepped = jax.jit(env.step)(env.set_state(jnp.asarray(agreed.state[7])), jnp.asarray(agreed.action[7]))
    np.testing.assert_allclose(stepped.state, agreed.state[8], atol=1e-4)
    np.testing.assert_allclose(stepped.obs, agreed.obs[8], atol=1e-4)
    np.testing.assert_allclose(stepped.reward, agreed.reward[7], atol=1e-4)


def test_a_reflected_arm_moves_as_the_reflection_of_the_arm():
    """The reflection of the simulator's steps from random starts with random torques."""
    env = mamujoco.make("2reacher-first")
    state = jax.vmap(lambda key: env.reset(key).state)(jax.random.split(jax.random.key(0), 8))
    action = jax.random.uniform(jax.random.key(1), (8, 2, 1), minval=-1.0, maxval=1.0)
    step = jax.jit(jax.vmap(lambda state, action: env.step(env.set_state(state), action)))
    now, reflected = step(state, action), step(state * REFLECTION[None], -action)
    np.testing.assert_allclose(reflected.state, now.state * REFLECTION[None], atol=1e-4)
    np.testing.assert_allclose(reflected.reward, now.reward, atol=1e-4)


@pytest.mark.slow
def test_the_learned_team_and_its_mirror_image_play_well_with_opposite_elbows():
    config = ReacherData("2reacher-first", num_episodes=128, noise=0.0)
    episodes = learned_reacher_episodes(config, "expert", jax.random.key(2))
    # Without noise a trained team is to return about -4.5; the standard deviation of an episode's return is about 2.
    assert abs(episode_returns(episodes).mean() + 4.5) < 0.6
    elbow = np.arctan2(episodes.state[:, 3], episodes.state[:, 1]).reshape(128, 50)[:, -1]
    assert (elbow[::2] < 0).mean() > 0.85 and (elbow[1::2] > 0).mean() > 0.85
    env = mamujoco.make("2reacher-first")
    stepped = jax.jit(env.step)(env.set_state(jnp.asarray(episodes.state[57])), jnp.asarray(episodes.action[57]))
    np.testing.assert_allclose(stepped.state, episodes.state[58], atol=1e-3)
    np.testing.assert_allclose(stepped.obs, episodes.obs[58], atol=1e-3)
    np.testing.assert_allclose(stepped.reward, episodes.reward[57], atol=1e-3)


def test_settings_outside_their_range_are_refused():
    with pytest.raises(RangeError, match="noise"):
        ReacherData(noise=-1.0)
