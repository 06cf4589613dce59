"""The snapshots of the behaviour teams for each named dataset."""

import jax
import jax.numpy as jnp
import numpy as np

from coda_jax.data.teams import (
    Teams,
    joined_episodes,
    level_snapshots,
    named_datasets,
    replay_schedule,
    schedule_of,
    training_snapshots,
)
from coda_jax.envs.simple_spread import simple_spread
from coda_jax.marl.matd3 import team_policy

TEAMS = Teams(
    policy={"w": np.zeros((3, 4, 2), np.float32)},
    num_steps=np.arange(4),
    returns=np.array([[0.0, 500.0, 1400.0, 9000.0], [-50.0, 390.0, 450.0, 1600.0], [0.0, 0.0, 0.0, 2000.0]]),
)


def test_level_snapshots_are_the_nearest_of_each_team():
    assert level_snapshots(TEAMS, 400.0).tolist() == [1, 1, 0]
    assert level_snapshots(TEAMS, 1485.0).tolist() == [2, 3, 3]


def test_levels_use_all_teams_equally():
    schedule = schedule_of(TEAMS, "2halfcheetah", "good", 9)
    assert schedule.tolist() == 3 * [[0, 3], [1, 3], [2, 3]]


def test_replay_uses_all_snapshots_equally():
    schedule = schedule_of(TEAMS, "2halfcheetah", "replay", 24)
    np.testing.assert_array_equal(schedule, replay_schedule(TEAMS, 24))
    pairs, counts = np.unique(schedule, axis=0, return_counts=True)
    assert len(pairs) == 12 and set(counts) == {2}


def test_tasks_with_teams_have_the_published_datasets():
    assert named_datasets("2halfcheetah") == ("replay", "good", "medium", "poor")
    assert named_datasets("2halfcheetah-ogmarl") == ()


def test_levels_of_training():
    assert training_snapshots(TEAMS, "expert").tolist() == [3, 3, 3]
    assert training_snapshots(TEAMS, "random").tolist() == [0, 0, 0]
    # The middles are 4500, 775 and 1000; the first of two equally near counts.
    assert training_snapshots(TEAMS, "medium").tolist() == [2, 2, 0]


def test_joined_episodes_give_teams_equal_parts():
    env = simple_spread()
    policy = team_policy(env.spec, 4)
    weights = [jax.jit(policy.init)(jax.random.key(seed), jnp.zeros((3, 18))) for seed in range(2)]
    teams = Teams(
        policy=jax.tree.map(lambda *leaves: np.stack(leaves)[:, None], *weights),
        num_steps=np.zeros(1, int),
        returns=np.zeros((2, 1), np.float32),
    )
    episodes = joined_episodes(env, teams, "expert", 6, 0.0, jax.random.key(2))
    assert np.diff(episodes.bounds).tolist() == 6 * [25]
    obs, action = (x.reshape(6, 25, *x.shape[1:]) for x in (episodes.obs, episodes.action))
    for number in range(6):
        expected = policy.apply(weights[number % 2], jnp.asarray(obs[number]))
        np.testing.assert_allclose(action[number], np.asarray(expected), atol=1e-5)
