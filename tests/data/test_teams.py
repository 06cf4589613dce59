"""The snapshots of the behaviour teams for each named dataset."""

import numpy as np

from coda_jax.data.teams import Teams, level_snapshots, named_datasets, replay_schedule, schedule_of

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
