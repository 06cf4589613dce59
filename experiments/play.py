"""Plays trained policies: `python -m experiments.play RUN` evaluates, films and exports the policies of a run.

A run folder's `policy.npz` is all it needs: neither dataset nor denoiser, and any number of devices. Where an older run
lacks it, the last checkpoint stands in.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from jaxtyping import Array, Float
from scipy import stats

from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.envs.rendering import RenderingError
from coda_jax.envs.rollout import episode_returns
from coda_jax.policy import FILE, Policy, PolicyWeights, export_policy, save_policy
from coda_jax.ranges import Count, Ranged, Seed
from coda_jax.types import PRNGKey
from experiments.datasets.film import check_film, film_policy
from experiments.host.cache import enable_compilation_cache
from experiments.host.console import phase, print_table, say
from experiments.host.errors import UserError, one_line_errors, parse_command
from experiments.host.files import write_atomically
from experiments.pipeline.recovery import policy_of_run

CONFIDENCE = 0.95
"""Coverage of the intervals."""

PARALLEL = 64
"""Most episodes that are simulated at once."""


@dataclasses.dataclass(frozen=True)
class PlayConfig(Ranged):
    """Evaluates the trained policies of a run; films and exports them if asked."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of the main job, finished or not, or a `policy.npz`."""
    seeds: tuple[Seed, ...] = ()
    """Policy seeds to play; all by default."""
    episodes: Count = 32
    """Episodes of each seed, without exploration noise; all seeds have the same starts."""
    start_seed: Seed = 0
    """Seed of the episodes' starts; another one gives independent episodes."""
    output: Path | None = None
    """CSV file for the return of every episode."""
    film: Path | None = None
    """Film of the seed with the highest mean return: `.gif`, `.webp`, `.mp4` (needs ffmpeg), or `.png` for a strip."""
    film_each: bool = False
    """Film every seed instead; its number is added to the name of the file."""
    export: Path | None = None
    """Folder for plain arrays, `policy.npz`, and a `jax.export` artefact of each seed, `policy-seed0.jax_export`."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        play(parse_command(PlayConfig, args))


def play(config: PlayConfig) -> None:
    """Evaluates, films and exports.

    Raises:
        UserError: no policy, seeds that it lacks, another task, or paths that cannot be written.
    """
    _check(config)
    policy = _load(config)
    env = _environment(policy)
    enable_compilation_cache()
    returns = evaluate(env, policy, config.episodes, config.start_seed)
    show(policy, returns)
    if config.output is not None:
        write_atomically(config.output, _table_of_episodes(policy, returns))
    if config.export is not None:
        _export(policy, config.export)
    if config.film is not None:
        best = policy.seeds[int(returns.mean(axis=1).argmax())]
        for seed in policy.seeds if config.film_each else (best,):
            _film(env, policy, seed, config.film, config.film_each)


def evaluate(env: Environment, policy: Policy, num_episodes: int, start_seed: int) -> Float[np.ndarray, "seeds N"]:
    """Undiscounted returns of `num_episodes` whole episodes of each seed, from the same starts for all seeds."""
    size = min(num_episodes, PARALLEL)
    num_batches = -(-num_episodes // size)

    @jax.jit
    def batch(weights: PolicyWeights, key: PRNGKey) -> Float[Array, "N"]:
        def act(obs: Array, carry: Array, key: PRNGKey) -> tuple[Array, Array]:
            del key
            return policy.apply(weights, obs, carry)

        return episode_returns(env, act, policy.initial_carry((size,)), key, size)

    returns = np.empty((len(policy.seeds), num_batches * size))
    with phase("playing", total=returns.size) as progress:
        for row, seed in enumerate(policy.seeds):
            for number in range(num_batches):
                key = jax.random.fold_in(jax.random.key(start_seed), number + 1)
                columns = slice(number * size, (number + 1) * size)
                returns[row, columns] = batch(policy.weights_of(seed), key)
                progress.advance(size, f"seed {seed}, return {returns[row, columns].mean():.0f}")
    return returns[:, :num_episodes]


def half_width(values: Float[np.ndarray, "N"]) -> float:
    """Half the width of Student's 95 % interval of a mean of independent values; infinite for a single one."""
    if len(values) < 2:
        return math.inf
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * float(values.std(ddof=1)) / math.sqrt(len(values))


def show(policy: Policy, returns: Float[np.ndarray, "seeds N"]) -> None:
    """Prints mean returns; a seed's interval is over its episodes, that of all seeds over the means of the seeds."""

    def row(name: str, values: np.ndarray, worst: float, best: float) -> dict[str, str]:
        reach = half_width(values)
        return {
            "seed": name,
            "return": f"{values.mean():,.1f}",
            "95 % interval": f"+- {reach:,.1f}" if math.isfinite(reach) else "",
            "worst": f"{worst:,.1f}",
            "best": f"{best:,.1f}",
        }

    rows = [row(str(seed), own, own.min(), own.max()) for seed, own in zip(policy.seeds, returns, strict=True)]
    if len(rows) > 1:
        rows.append(row("mean of seeds", returns.mean(axis=1), returns.min(), returns.max()))
    title = f"{policy.spec.name} after {policy.rounds} rounds: {returns.shape[1]} episodes a seed, without noise"
    print_table(title, rows)


def _load(config: PlayConfig) -> Policy:
    policy = policy_of_run(config.run)
    if not config.seeds:
        return policy
    try:
        return policy.take(config.seeds)
    except ValueError:
        raise UserError(f"--seeds {config.seeds}: the run has the seeds {policy.seeds}") from None


def _environment(policy: Policy) -> Environment:
    name = policy.spec.name
    if name not in mamujoco.TASKS:
        raise UserError(f"the policy plays '{name}'; this command plays MaMuJoCo: {', '.join(mamujoco.TASKS)}")
    env = mamujoco.make(name)
    if env.spec != policy.spec:
        raise UserError(f"the policy was trained on {policy.spec}, but the task is {env.spec}")
    return env


def _check(config: PlayConfig) -> None:
    """Refuses flags that cannot work, before anything is simulated."""
    if config.film_each and config.film is None:
        raise UserError("--film-each needs --film, the name of the files")
    if config.film is not None:
        check_film("--film", config.film)
    if config.output is not None and (config.output.is_dir() or not config.output.parent.is_dir()):
        raise UserError(f"--output is {config.output}; give the path of a file in a folder that exists")
    if config.export is not None and config.export.exists() and not config.export.is_dir():
        raise UserError(f"--export is {config.export}, a file; give the path of a folder")


def _table_of_episodes(policy: Policy, returns: Float[np.ndarray, "seeds N"]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "episode", "return"])
    for seed, own in zip(policy.seeds, returns, strict=True):
        writer.writerows([seed, episode, str(value)] for episode, value in enumerate(own))
    return text.getvalue()


def _export(policy: Policy, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_policy(folder / FILE, policy)
    for seed in policy.seeds:
        (folder / f"policy-seed{seed}.jax_export").write_bytes(export_policy(policy, seed))
    say(f"exported to {folder}: {FILE} and a jax.export artefact of each seed")


def _film(env: Environment, policy: Policy, seed: int, output: Path, is_named_by_seed: bool) -> None:
    path = output.with_name(f"{output.stem}-seed{seed}{output.suffix}") if is_named_by_seed else output
    try:
        num_frames = film_policy(env, policy.act(seed), policy.initial_carry(), path)
    except RenderingError as error:
        raise UserError(str(error)) from error
    say(f"film of seed {seed}, {num_frames} frames: {path}")


if __name__ == "__main__":
    main()
