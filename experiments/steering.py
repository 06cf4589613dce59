"""Steering by guidance, and its effect on sample quality (Sec. 6.2.1, Figure 3): `python -m experiments.steering`.

For each guidance scale lambda, trajectories are sampled toward a policy at initialisation and toward one trained on the
data, and measured by their mean action log-likelihood under that policy, their dynamics error through MJX, their
distance to the data, and the starts that they prefer. All scales, schedules and policies start from the same noise
(common random numbers), so that differences between curves are not due to noise. The run folder holds `steering.csv`;
finished points are kept.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.augmentation.guided import guided
from coda_jax.coda import all_finite
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.envs.base import Environment
from coda_jax.evaluation import action_log_likelihood, action_response, sample_quality
from coda_jax.marl.learner import LearnerState
from coda_jax.prior import Prior
from coda_jax.types import PRNGKey, Trajectory
from experiments.evidence.naming import guidance_name
from experiments.guidance.curves import (
    POLICIES,
    Errors,
    Part,
    Points,
    curve,
    draw_likelihood,
    draw_quality,
    draw_selection,
    has_measure,
    missing,
    read_points,
    sampled,
    text_of,
    write_points,
)
from experiments.guidance.selection import levels, make_select, make_visited, recorded_windows
from experiments.guidance.settings import SteeringConfig, base_of
from experiments.host.cache import enable_compilation_cache, key_of, plain
from experiments.host.checkpoints import Checkpoints
from experiments.host.console import phase, print_config, print_table, say
from experiments.host.devices import set_up_devices
from experiments.host.errors import FROM_UNFINISHED, UserError, one_line_errors, parse_command
from experiments.host.files import digest
from experiments.host.records import parse_mapping, write_record
from experiments.host.run_folder import RunFolder, open_run_folder
from experiments.pipeline.quality import WINDOWS, quality_meter, real_trajectories
from experiments.pipeline.run import fit_episodes, identity_of, load_data
from experiments.pipeline.run import run as train_run
from experiments.pipeline.settings import PRESETS, ExperimentConfig
from experiments.pipeline.training import Job, initial_state, make_job

Sampled = tuple[Float[Array, "S L"], Trajectory, Bool[Array, "S L"]]
"""Mean log-likelihood, the trajectories `[S, L, W, H, ...]` to measure, and whether all numbers are finite."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(FROM_UNFINISHED):
        config = parse_command(SteeringConfig, args)
        run(config, base_of(config))


def run(config: SteeringConfig, base: ExperimentConfig) -> None:
    """Samples and measures the missing points, and leaves a finished run folder.

    Raises:
        UserError: a run folder of other settings, or NaNs in the training.
        VaultError: a vault that cannot be used.
    """
    asked = {name: value for name, value in plain(config).items() if name != "run_dir"}
    identity = {**asked, "steered": identity_of(base)}
    path = config.run_dir or Path("runs", f"steering-{base.task}-{base.dataset}-{key_of(identity)}")
    mesh = set_up_devices(base.num_seeds)
    enable_compilation_cache()
    precision = jax.default_matmul_precision(base.precision)
    defaults = {**plain(SteeringConfig()), "steered": identity_of(PRESETS[base.preset])}
    del defaults["run_dir"]
    with precision, open_run_folder(path, identity, num_devices=mesh.size, defaults=defaults) as folder:
        say(f"run folder: {path}")
        if not folder.finished:
            print_config(asked)
            trained = config.run or path / "training"
            if config.run is None:
                train_run(dataclasses.replace(base, run_dir=trained))
            env, episodes = load_data(base, mesh)
            job = make_job(base, env, fit_episodes(base, env, episodes, mesh), mesh)
            policies = load_policies(job, trained)
            seconds = sample_points(config, job, policies, folder)
            write_summary(config, job, policies, trained, seconds, folder)
        show(read_points(folder.path / "steering.csv"), folder.read_summary())


def load_policies(job: Job, trained: Path) -> dict[str, LearnerState]:
    """The learner's states `[S, ...]` at initialisation and after training."""
    state = initial_state(job)
    with contextlib.closing(Checkpoints(trained / "checkpoints" / "train")) as checkpoints:
        restored = checkpoints.restore(state)
    if restored is None:
        raise UserError(f"{trained} holds no checkpoint; it must be a run folder with its checkpoints")
    return {"initial": state.learner, "trained": restored.tree.learner}


def make_sampler(
    config: SteeringConfig, job: Job, sampler: SamplerConfig
) -> Callable[[LearnerState, Dataset, Prior, PRNGKey, Float[Array, "L"]], Sampled]:
    """One compiled program for all policies and scales of a schedule: seeds sharded and vmapped, scales vmapped."""
    windows = min(WINDOWS, config.num_trajectories)
    at_once = config.scales_per_call * job.config.num_seeds // job.mesh.size
    chunk_size = max(1, job.config.training.chunk_size // at_once)
    model, held = job.fit.model._replace(sampler=sampler), (job.config.recorded_steps, job.config.recorded_actions)
    augmentation = guided(model, job.learner, 0.0, *held)

    def point(state: LearnerState, dataset: Dataset, prior: Prior, key: PRNGKey, scale: Float[Array, ""]):
        def sample(key: PRNGKey, num: int) -> Trajectory:
            return augmentation.sample(state, dataset, prior, scale, key, num)

        trajectory = sample_in_chunks(sample, key, config.num_trajectories, chunk_size)
        log_likelihood = action_log_likelihood(job.learner, state, trajectory)
        measured = jax.tree.map(lambda leaf: leaf[:windows], trajectory)
        return jnp.mean(log_likelihood), measured, all_finite((log_likelihood, trajectory))

    by_seed, shared = PartitionSpec("seed"), PartitionSpec()
    over_scales = jax.vmap(point, in_axes=(None, None, None, None, 0))
    return jax.jit(
        jax.shard_map(
            jax.vmap(over_scales, in_axes=(0, None, None, 0, None)),
            mesh=job.mesh,
            in_specs=(by_seed, shared, shared, by_seed, shared),
            out_specs=by_seed,
            check_vma=False,
        )
    )


def make_measure(
    env: Environment, mesh: Mesh
) -> Callable[[Trajectory, Trajectory, Trajectory], tuple[Float[Array, "S L"], ...]]:
    """Dynamics error, mean distance of the features, and response to actions of trajectories `[S, L, W, H, ...]`.

    One set after the other; beside them the function takes those of the same noise without guidance, `[S, W, H, ...]`,
    and real ones.
    """

    def measure(windows: Trajectory, unguided: Trajectory, reference: Trajectory):
        quality = sample_quality(env, windows, reference)
        response = action_response(env, windows, unguided, jnp.std(reference.state, axis=(0, 1)))
        return quality.dynamics_error, quality.feature_distance.mean(), response

    def each(windows: Trajectory, unguided: Trajectory, reference: Trajectory):
        def of_seed(both: tuple[Trajectory, Trajectory]):
            return jax.lax.map(lambda of_scale: measure(of_scale, both[1], reference), both[0])

        return jax.lax.map(of_seed, (windows, unguided))

    seed, shared = PartitionSpec("seed"), PartitionSpec()
    return jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(seed, seed, shared), out_specs=seed, check_vma=False))


def sample_points(
    config: SteeringConfig, job: Job, policies: dict[str, LearnerState], folder: RunFolder
) -> dict[str, float]:
    """Samples and measures the points that `steering.csv` lacks; returns the seconds of all processes together.

    Raises:
        UserError: numbers that are not finite; the points before are kept.
    """
    table, cost = folder.path / "steering.csv", folder.path / "cost.json"
    seconds = {"compile": 0.0, "sample": 0.0, "measure": 0.0}
    if cost.exists():
        stored = parse_mapping(cost, json.loads, dict.fromkeys(seconds, float), "delete it to time anew")
        seconds = {name: stored[name] for name in seconds}
        if table.exists() and digest(table) not in stored.get("points", [digest(table)]):  # older ones have none
            raise UserError(f"{table} is damaged: it does not match {cost.name}; delete it to sample again")
    points = read_points(table)
    seeds, mesh, fit = job.seeds, job.mesh, job.fit
    by_seed, shared = NamedSharding(mesh, PartitionSpec("seed")), NamedSharding(mesh, PartitionSpec())
    # The same keys for all policies, schedules and scales; other keys than those the policies were trained by.
    keys = jax.device_put(jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(1), seed))(seeds), by_seed)
    reference = jax.device_put(real_windows(fit.held_out, min(WINDOWS, config.num_trajectories)), shared)
    measure, select = make_measure(job.env, mesh), make_select(job.learner, mesh)
    recorded = recorded_windows(fit.dataset)

    parts = [
        Part(policy, schedule, num_steps, scale)
        for num_steps in config.num_steps
        for schedule in config.schedules
        for policy in POLICIES
        for scale in config.guidance
    ]
    todo = missing(parts, points, seeds.tolist())
    work = sum(part.num_steps for part in parts)
    compiled_for, compiled = None, None
    unguided: dict[int, Trajectory] = {}
    with phase("steering, in diffusion steps", total=work, done=work - sum(p.num_steps for p in todo)) as progress:
        for block in blocks_of(todo, config.scales_per_call):
            policy, schedule, num_steps, _ = block[0]
            # The last block is filled up with zeros, so that all have one compiled shape.
            scales = jnp.zeros(config.scales_per_call).at[: len(block)].set(jnp.array([p.guidance for p in block]))
            arguments = policies[policy], fit.dataset, fit.prior, keys, jax.device_put(scales, shared)
            start = time.monotonic()
            if compiled is None or compiled_for != (schedule, num_steps):
                diffusion = job.config.diffusion
                sampler = dataclasses.replace(diffusion, num_steps=num_steps, guidance_schedule=schedule)
                sample = make_sampler(config, job, sampler)
                compiled_for, compiled = (schedule, num_steps), sample.lower(*arguments).compile()
                seconds["compile"] += time.monotonic() - start
                start = time.monotonic()
            log_likelihood, windows, finite = jax.block_until_ready(compiled(*arguments))
            sampling = time.monotonic() - start
            _refuse_nans(block, seeds, np.asarray(finite))
            if num_steps not in unguided:  # the same for all policies and schedules
                free = windows if block[0].guidance == 0 else compiled(*arguments[:-1], 0 * arguments[-1])[1]
                unguided = {num_steps: jax.tree.map(lambda leaf: leaf[:, 0], free)}
            starts = windows.state[:, :, :, 0], unguided[num_steps].state[:, :, 0]
            selected = select(policies[policy], *starts, recorded)
            errors = jax.device_get((*measure(windows, unguided[num_steps], reference), *selected))
            seconds["sample"] += sampling
            seconds["measure"] += time.monotonic() - start - sampling
            for number, part in enumerate(block):
                columns = (np.asarray(column)[:, number] for column in (log_likelihood, *errors))
                points[part] = {int(seed): Errors(*map(float, row)) for seed, *row in zip(seeds, *columns, strict=True)}
                if part.guidance == 0:  # other schedules are other programs, and differ in last bits
                    points[part] = {s: e._replace(action_response=math.nan) for s, e in points[part].items()}
            known = {part: points[part] for part in parts if part in points}
            # First the checksums of the table before and after: a process may be killed between the two files.
            checksums = [digest(table)] if table.exists() else []
            checksums.append(hashlib.sha256(text_of(known).encode()).hexdigest())
            write_record(cost, {**seconds, "points": checksums})
            write_points(table, known)
            speed = config.scales_per_call * config.num_trajectories * len(seeds) / sampling
            progress.advance(
                num_steps * len(block),
                f"{policy}, {schedule}, N = {num_steps}, lambda {block[-1].guidance:g}: log-likelihood "
                f"{np.mean(log_likelihood[:, len(block) - 1]):.1f}, {speed:.0f} trajectories a second",
            )
    return seconds


def selection_levels(job: Job, policies: dict[str, LearnerState]) -> dict[str, Any]:
    """The measures of the selection for the data's own starts, and for the states that the policies visit."""
    by_seed = NamedSharding(job.mesh, PartitionSpec("seed"))
    keys = jax.device_put(jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(3), seed))(job.seeds), by_seed)
    visited = make_visited(job.env, job.learner, job.mesh, job.config.training.evaluation_episodes, WINDOWS)
    with phase("rolling out the policies"):
        select = make_select(job.learner, job.mesh)
        return levels(select, visited, policies, recorded_windows(job.fit.dataset), keys)


def blocks_of(parts: Sequence[Part], size: int) -> list[list[Part]]:
    """Neighbours that differ in lambda only, at most `size` together."""
    blocks: list[list[Part]] = []
    for part in parts:
        if blocks and blocks[-1][0][:3] == part[:3] and len(blocks[-1]) < size:
            blocks[-1].append(part)
        else:
            blocks.append([part])
    return blocks


def real_windows(held_out: Dataset, num: int) -> Trajectory:
    """Windows of held-out episodes that samples are compared with."""
    horizon = len(held_out.offsets)
    return jax.jit(lambda held_out: sample_windows(held_out, jax.random.key(0), num, horizon))(held_out)


def _refuse_nans(block: Sequence[Part], seeds: np.ndarray, finite: np.ndarray) -> None:
    for number, part in enumerate(block):
        broken = seeds[~finite[:, number]]
        if broken.size:
            raise UserError(
                f"NaN in trajectories toward the {part.policy} policy, schedule {part.schedule}, N {part.num_steps}, "
                f"lambda {part.guidance:g}, seed {broken[0]}; the run folder keeps the points before"
            )


def write_summary(
    config: SteeringConfig,
    job: Job,
    policies: dict[str, LearnerState],
    trained: Path,
    seconds: dict[str, float],
    folder: RunFolder,
) -> None:
    """Draws the pictures and writes the summary."""
    base, env, fit = job.config, job.env, job.fit
    points = read_points(folder.path / "steering.csv")
    training = RunFolder(trained).read_summary({"updates": int, "returns_per_seed": list[float]})
    windows = min(WINDOWS, config.num_trajectories)
    real = quality_meter(env, fit.held_out, windows)(real_trajectories(fit.held_out, windows))
    actions = base.training.horizon * env.spec.num_agents * env.spec.action_dim
    highest = -0.5 * actions * math.log(2 * math.pi)
    reach = guidance_name(base.diffusion.through_denoiser, base.recorded_steps)
    title = f"{base.task} {base.vault or base.dataset}, {reach}"
    draw_likelihood(folder.figures / "likelihood.png", title, points, highest)
    shuffled = {name: errors["dynamics_error"] for name, errors in real.items() if name != "real"}
    draw_quality(folder.figures / "quality.png", title, points, shuffled)
    references = selection_levels(job, policies)
    if has_measure(points, "start_shift"):  # points of an older version lack it
        draw_selection(folder.figures / "selection.png", title, points, references)
    folder.write_summary(
        {
            "task": base.task,
            "dataset": base.dataset,
            "vault": None if base.vault is None else str(base.vault),
            "preset": base.preset,
            "fit_seed": base.fit_seed,
            "denoiser_held_out_loss": fit.held_out_loss,
            "num_seeds": base.num_seeds,
            "seeds": job.seeds.tolist(),
            "num_trajectories": config.num_trajectories,
            "horizon": base.training.horizon,
            "highest_log_likelihood": highest,
            "trained_updates": training["updates"],
            "trained_returns_per_seed": training["returns_per_seed"],
            "real": real,
            "selection": references,
            "wall_seconds": {**seconds, "total": sum(seconds.values())},
        }
    )


def show(points: Points, summary: dict[str, Any]) -> None:
    """Prints where each curve starts, peaks and ends."""
    numbers, schedules = sampled(points)
    rows = []
    for policy in POLICIES:
        for schedule in schedules:
            for num_steps in numbers:
                line = curve(points, policy, schedule, num_steps, "log_likelihood")
                error = curve(points, policy, schedule, num_steps, "dynamics_error")
                shift = curve(points, policy, schedule, num_steps, "start_shift")
                if line is None or error is None or shift is None:
                    continue
                mean, peak = line.values.mean(axis=1), int(line.values.mean(axis=1).argmax())
                rows.append(
                    {
                        "policy, schedule, N": f"{policy}, {schedule}, {num_steps}",
                        "unguided": f"{mean[0]:.1f}",
                        f"λ {line.guidance[1]:g}": f"{mean[1]:.1f}",
                        "peak": f"{mean[peak]:.1f} at {line.guidance[peak]:g}",
                        f"λ {line.guidance[-1]:g}": f"{mean[-1]:.1f}",
                        "dynamics error": f"{error.values[0].mean():.2f} to {error.values[peak].mean():.2f}",
                        "shift of starts": f"{shift.values[peak].mean():.2f}",
                    }
                )
    highest = summary["highest_log_likelihood"]
    print_table(
        f"mean action log-likelihood, at most {highest:.1f}; dynamics error unguided to peak; start shift at peak", rows
    )
    seconds = summary["wall_seconds"]
    say(
        f"{seconds['sample']:.0f} s to sample, {seconds['measure']:.0f} s to measure, {seconds['compile']:.0f} s to "
        f"compile; the policies were trained for {summary['trained_updates']:,} updates"
    )


if __name__ == "__main__":
    main()
