"""Trains the behaviour teams of a task online: `python -m experiments.collect --task 2halfcheetah|spread|...`.

Writes the snapshots of the teams to `--output` (by default the package's assets), and checkpoints and learning curves
to the run folder. The same command resumes an interrupted run from the last snapshot.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from coda_jax.data.teams import Teams, assets, save_teams
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.envs.coordination import same_side
from coda_jax.envs.rollout import episode_returns
from coda_jax.envs.simple_spread import simple_spread
from coda_jax.marl.matd3 import Matd3Config, Matd3State, matd3, team_policy
from coda_jax.ranges import Count, Ranged, Seed, check_seeds
from coda_jax.types import Params, PRNGKey
from experiments.host.cache import enable_compilation_cache, plain
from experiments.host.console import phase, print_table
from experiments.host.devices import set_up_devices
from experiments.host.errors import FROM_CHECKPOINT, UserError, one_line_errors, parse_command
from experiments.host.help_text import choices
from experiments.host.plots import team_curves
from experiments.host.run_folder import open_run_folder

EPISODES = 10
"""Number of noise-free episodes to evaluate a snapshot."""

ENVIRONMENTS: dict[str, Callable[[], Environment]] = {
    **{name: functools.partial(mamujoco.make, name) for name in mamujoco.TASKS},
    "same-side": same_side,
    "spread": simple_spread,
}
"""The environment of each task."""


@dataclasses.dataclass(frozen=True)
class CollectConfig(Ranged):
    """Trains behaviour teams by MATD3 and saves snapshots during training."""

    task: Annotated[str, choices(ENVIRONMENTS)] = "2halfcheetah"
    """Task; `spread` and `2reacher` have defaults of their own."""
    num_teams: Count = 4
    """Number of teams; each has its own seed."""
    num_snapshots: Count = 17
    """Snapshots per team; the first is before training."""
    steps_per_snapshot: Count = 1600
    """Joint steps of all environments between two snapshots."""
    seed: Seed = 0
    """Random seed, from which the seeds of the teams are derived."""
    output: Path | None = None
    """File for the teams; by default the package's assets."""
    run_dir: Path | None = None
    """Folder for checkpoints and learning curves; by default `runs/collect-TASK`."""
    matd3: Matd3Config = dataclasses.field(default_factory=Matd3Config)
    """Settings of MATD3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, 2)  # the second draws the evaluation episodes


_SMALL = Matd3Config(
    updates_per_step=4,
    batch_size=128,
    width=64,
    buffer_size=200_000,
    random_steps=200,
    learning_rate=1e-3,
    discount=0.95,
    target_rate=0.01,
)
"""MATD3 for tasks that are learned in minutes."""

DEFAULTS = {name: CollectConfig(task=name) for name in ENVIRONMENTS} | {
    "spread": CollectConfig(
        task="spread",
        num_teams=3,
        num_snapshots=9,
        steps_per_snapshot=1000,
        matd3=dataclasses.replace(_SMALL, reward_scale=0.03),
    ),
    "2reacher": CollectConfig(
        task="2reacher",
        num_snapshots=9,
        steps_per_snapshot=1500,
        seed=1,
        matd3=dataclasses.replace(_SMALL, reward_scale=1.0),
    ),
}
"""The default settings of each task."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(FROM_CHECKPOINT):
        config = parse_command(CollectConfig, args, DEFAULTS, "--task")
        if config.output is not None and config.output.is_dir():
            raise UserError(f"--output {config.output} is a folder; give the path of a file")
        run(config)


def run(config: CollectConfig) -> None:
    """Trains the teams, or resumes their training, and saves them."""
    identity = {name: value for name, value in plain(config).items() if name not in ("output", "run_dir")}
    mesh = set_up_devices(config.num_teams)
    enable_compilation_cache()
    env = ENVIRONMENTS[config.task]()
    algorithm = matd3(env, config.matd3)
    policy = team_policy(env.spec, config.matd3.width)
    apply = cast(Callable[..., Array], policy.apply)
    by_team = NamedSharding(mesh, PartitionSpec("seed"))

    # A device trains its teams sequentially: `vmap` would turn the loop bounds into selects, which copy the replay
    # buffers.
    def per_team(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return jax.shard_map(
            functools.partial(jax.lax.map, function),
            mesh=mesh,
            in_specs=PartitionSpec("seed"),
            out_specs=PartitionSpec("seed"),
            check_vma=False,
        )

    def measure(arguments: tuple[Params, PRNGKey]) -> Array:
        weights, key = arguments
        return episode_returns(env, lambda obs, carry, _: (apply(weights, obs), carry), (), key, EPISODES)

    init = jax.jit(per_team(algorithm.init))
    train = jax.jit(per_team(lambda state: algorithm.train(state, config.steps_per_snapshot)), donate_argnums=0)
    evaluate = jax.jit(per_team(measure))

    keys = jax.device_put(jax.random.split(jax.random.key(config.seed), config.num_teams), by_team)
    evaluation_keys = jax.device_put(jax.random.split(jax.random.key(config.seed + 1), config.num_teams), by_team)
    state: Matd3State = init(keys)
    teams = Teams(
        policy=jax.tree.map(
            lambda leaf: np.zeros((config.num_teams, config.num_snapshots, *leaf.shape[1:]), np.float32),
            state.online.policy,
        ),
        num_steps=np.arange(config.num_snapshots) * config.steps_per_snapshot * config.matd3.num_envs,
        returns=np.zeros((config.num_teams, config.num_snapshots), np.float32),
    )

    def record_snapshot(snapshot: int) -> None:
        for stored, leaf in zip(jax.tree.leaves(teams.policy), jax.tree.leaves(state.online.policy), strict=True):
            stored[:, snapshot] = np.asarray(leaf)
        returns = np.asarray(evaluate((state.online.policy, evaluation_keys))).mean(axis=1)
        if not np.isfinite(returns).all():
            raise UserError(
                f"NaN in the returns of snapshot {snapshot}, team {np.flatnonzero(~np.isfinite(returns))[0]}; "
                "change --seed or the settings of --matd3"
            )
        teams.returns[:, snapshot] = returns

    path = config.run_dir or Path("runs", f"collect-{config.task}")
    with open_run_folder(path, identity, num_devices=mesh.size) as folder, folder.checkpoints("teams") as checkpoints:
        restored = checkpoints.restore((state, teams))
        done = 0
        if restored is None:
            record_snapshot(0)
        else:
            done = restored.step
            state, stored = restored.tree
            teams = jax.tree.map(np.array, stored)
        with phase("training the teams", total=config.num_snapshots - 1, done=done) as progress:
            for snapshot in range(done + 1, config.num_snapshots):
                state, _ = train(state)
                record_snapshot(snapshot)
                checkpoints.save(snapshot, (state, teams))
                progress.advance(note="returns " + " ".join(f"{value:.0f}" for value in teams.returns[:, snapshot]))
        team_curves(folder.figures / "teams.png", config.task, teams.num_steps, teams.returns)
    output = config.output or assets(config.task)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_teams(output, teams)
    print_table(
        f"{config.task}: mean return of {EPISODES} episodes without noise, after {teams.num_steps[-1]} steps",
        [{"team": str(team), "return": f"{value:.0f}"} for team, value in enumerate(teams.returns[:, -1])],
    )


if __name__ == "__main__":
    main()
