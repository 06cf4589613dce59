"""CODA on MaMuJoCo: `python -m experiments.mamujoco --dataset replay --guidance 0.6`.

Data, prior, training: three phases, each picked up where an interrupted run left it. The run folder (see `run_folder`)
belongs to the settings; given again, the same command continues its run, and shows the table of a finished one.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from coda_jax.coda import Coda, CodaConfig, CodaState, Plan, Prior, Report, across_seeds, coda
from coda_jax.data.dataset import split_episodes, statistics
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.marl.input_scale import raw_inputs, standardised_inputs
from coda_jax.marl.learner import Learner
from coda_jax.marl.maddpg_bc import maddpg_bc
from coda_jax.types import Trajectory
from experiments.datasets.named import load_dataset, load_vault
from experiments.host.cache import enable_compilation_cache, flat, plain
from experiments.host.checkpoints import Checkpoints
from experiments.host.console import phase, print_config, print_table, say
from experiments.host.devices import set_up_devices
from experiments.host.errors import UserError, one_line_errors, parse_command
from experiments.host.plots import learning_curve
from experiments.host.run_folder import RunFolder, default_run_dir, open_run_folder
from experiments.pipeline.fitting import Fit, fit_prior
from experiments.pipeline.quality import (
    WINDOWS,
    Quality,
    quality_meter,
    real_trajectories,
    show_quality,
    spread_over_seeds,
)
from experiments.pipeline.settings import PRESETS, ExperimentConfig, check, uses

NOT_NUMBERS = ("run_dir", "allow_other_devices")
"""Settings that do not change the numbers of a run."""

RoundFn = Callable[[CodaState, Prior, Plan], tuple[CodaState, Report]]


class Clock:
    """Wall seconds of each phase of a run, over all the processes that worked on it."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds: dict[str, float] = dict.fromkeys(
            ("collect", "fit", "compile", "generate", "train", "evaluate", "quality"), 0.0
        )
        self.seconds.update(seconds or {})
        self._last = time.monotonic()

    def lap(self, name: str | None = None) -> float:
        """Books the seconds since the last lap to a phase, or to none, and returns them."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        if name is not None:
            self.seconds[name] += passed
        return passed


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        config = parse_command(ExperimentConfig, args, presets=PRESETS)
        check(config)
        run(config)


def identity_of(config: ExperimentConfig) -> dict[str, Any]:
    """All settings that determine a run's numbers."""
    return {name: value for name, value in plain(config).items() if name not in NOT_NUMBERS}


def run_dir_of(config: ExperimentConfig) -> Path:
    """The run folder that the settings name, by what sets them apart from their preset: new settings change no name."""
    usual = flat(plain(PRESETS[config.preset]))
    return default_run_dir(
        task=config.task,
        dataset=str(config.vault or config.dataset),
        augmentation=config.augmentation,
        guidance=config.guidance,
        preset=config.preset,
        config={name: value for name, value in flat(identity_of(config)).items() if value != usual[name]},
    )


def run(config: ExperimentConfig) -> None:
    """Trains, or continues to train, and leaves a finished run folder.

    Raises:
        UserError: a folder or a vault that does not fit, or NaNs on the way.
        VaultError: a vault that cannot be used.
    """
    identity, path = identity_of(config), config.run_dir or run_dir_of(config)
    mesh = set_up_devices(config.num_seeds)
    enable_compilation_cache()
    convention = episodes = None
    if config.vault is not None and not RunFolder(path).finished:
        convention, episodes = load_vault(config.task, config.vault, config.data.max_transitions)
    env = mamujoco.make(config.task) if convention is None else convention.env
    with open_run_folder(
        path,
        identity,
        num_devices=mesh.size,
        allow_other_devices=config.allow_other_devices,
        defaults=identity_of(PRESETS[config.preset]),
    ) as folder:
        say(f"run folder: {path}")
        if not folder.finished:
            print_config(identity)
            clock = Clock()
            if convention is not None:
                say(f"vault: {convention.description}; replayed steps miss by {convention.error:.1g} deviations")
            if episodes is None:
                episodes = load_dataset(env, config.dataset, config.data.num_episodes, mesh)
            card = statistics(episodes)
            say(
                f"dataset: {card['num_episodes']} episodes, {card['num_transitions']} steps, return "
                f"{card['return_mean']:.0f} +- {card['return_std']:.0f} "
                f"[{card['return_min']:.0f}, {card['return_max']:.0f}]"
            )
            try:
                train, held_out = split_episodes(episodes, config.data.held_out_fraction)
            except ValueError as error:
                raise UserError(f"the dataset cannot be split: {error}") from error
            del episodes  # a large vault is in memory once only
            clock.lap("collect")
            fit = fit_prior(
                train,
                held_out,
                config.data,
                config.denoiser,
                env.spec,
                config.training.horizon,
                mesh,
                seed=config.fit_seed if uses(config.augmentation, "fit_seed") else None,
            )
            if fit.held_out_loss is not None:
                say(f"denoiser: loss on held-out episodes {fit.held_out_loss:.4f}")
            clock.lap("fit")
            with folder.checkpoints("train") as checkpoints:
                summary = train_policies(config, env, fit, mesh, folder, checkpoints, clock)
            summary = {
                **{name: identity[name] for name in ("task", "dataset", "vault", "augmentation", "guidance")},
                **summary,
                "convention": None if convention is None else convention.description,
                "dataset_mean_return": card["return_mean"],
                "dataset_best_return": card["return_max"],
                "denoiser_held_out_loss": fit.held_out_loss,
            }
            learning_curve(
                folder.figures / "learning_curve.png",
                f"{config.task} {config.vault or config.dataset}, {config.augmentation}",
                folder.metrics.read(),
                card["return_mean"],
                card["return_max"],
            )
            folder.write_summary(summary)
        show(folder.read_summary())


def algorithm(config: ExperimentConfig, env: Environment, fit: Fit, mesh: Mesh) -> tuple[Learner, CodaConfig, Coda]:
    """The learner of a run, the settings of Algorithm 2 for its augmentation, and Algorithm 2 for all its seeds."""
    training = config.training
    if config.augmentation == "unconditional":
        training = dataclasses.replace(training, num_trajectories=training.static_trajectories)
    inputs = standardised_inputs(fit.prior.dataset.steps) if config.standardise else raw_inputs(env.spec)
    learner = maddpg_bc(env.spec, config.learner, inputs)
    simulate = config.augmentation == "simulated"
    single = coda(env, learner, fit.generator, training, config.diffusion, config.num_seeds // mesh.size, simulate)
    return learner, training, across_seeds(single, mesh)


def train_policies(
    config: ExperimentConfig,
    env: Environment,
    fit: Fit,
    mesh: Mesh,
    folder: RunFolder,
    checkpoints: Checkpoints,
    clock: Clock,
) -> dict[str, Any]:
    """Algorithm 2 for all seeds, a round at a time; returns what it adds to the summary.

    Raises:
        UserError: NaNs in a round, whose checkpoint is not written; or a checkpoint that learnt from other episodes.
    """
    _, training, program = algorithm(config, env, fit, mesh)
    by_seed, shared = NamedSharding(mesh, PartitionSpec("seed")), NamedSharding(mesh, PartitionSpec())
    seeds = np.arange(config.seed, config.seed + config.num_seeds)
    prior = jax.device_put(fit.prior, shared)
    updates_per_round = training.epochs_per_round * training.updates_per_epoch
    is_synthetic, is_guided = config.augmentation != "none", config.augmentation == "coda"
    is_renewed = config.augmentation in ("coda", "simulated")

    def plan(
        generate: bool = False,
        num_updates: int = 0,
        evaluate: bool = False,
        guided: bool = is_guided,
        mixed: bool = False,
    ) -> Plan:
        values = Plan(
            generate=jnp.bool_(generate),
            num_updates=jnp.int32(num_updates),
            evaluate=jnp.bool_(evaluate),
            guidance=jnp.float32(config.guidance if guided else 0.0),
            mix_ratio=jnp.float32(training.mix_ratio if mixed else 0.0),
        )
        return jax.device_put(values, shared)

    with phase("compiling"):
        state = jax.jit(program.init)(jax.device_put(jax.vmap(jax.random.key)(seeds), by_seed))
        round_: RoundFn = jax.jit(program.round, donate_argnums=0).lower(state, prior, plan()).compile()
    clock.lap("compile")

    def play(state: CodaState, number: int, plan: Plan) -> tuple[CodaState, Report]:
        state, report = round_(state, prior, plan)
        report = jax.device_get(report)
        for name in ("generate", "update", "evaluate"):
            broken = seeds[~report.finite[name]]
            if broken.size:
                raise UserError(
                    f"NaN in round {number}, phase {name}, seed {broken[0]}; the run folder keeps the rounds before"
                )
        return state, report

    num_measured = min(WINDOWS, len(seeds) * state.unguided.reward.shape[1])
    meter = quality_meter(env, fit.held_out, num_measured)

    def measure(kinds: dict[str, Trajectory]) -> Quality:
        return meter({name: spread_over_seeds(made, num_measured) for name, made in kinds.items()})

    def record(number: int, report: Report) -> None:
        columns = {
            "updates": np.full(len(seeds), number * updates_per_round),
            "return": report.returns.mean(axis=1),
            "return_std": report.returns.std(axis=1),
            **report.metrics,
        }
        folder.metrics.append(number, seeds, columns)

    # Round 0 measures the untrained policy and samples the first synthetic data, each in a call of its own, so that the
    # times of the phases are known; from then on a round is one call.
    restored = checkpoints.restore(state)
    if restored is None:
        folder.metrics.cut_back(-1)
        done = 0
        clock.lap()
        state, report = play(state, 0, plan(evaluate=True))
        times = {"evaluate": clock.lap("evaluate"), "generate": 0.0}
        record(0, report)
        first: Quality = {}
        if is_synthetic:
            with phase("sampling the first synthetic trajectories"):
                state, _ = play(state, 0, plan(generate=True, guided=False))
                num_unguided = state.unguided.reward.shape[1]
                # Copies, because what is donated twice ends the process.
                unguided = jax.tree.map(lambda leaf: jnp.copy(leaf[:, :num_unguided]), state.synthetic)
                state = dataclasses.replace(state, unguided=jax.device_put(unguided, by_seed))
                times["generate"] = clock.lap("generate")
                if is_guided:
                    state, _ = play(state, 0, plan(generate=True))
                    times["generate"] = clock.lap("generate")
                    if training.burn_in == 0:
                        first = measure({"guided, first round": state.synthetic})
                        clock.lap("quality")
        notes = {"times": times, "data": fit.data, "quality": first}
        checkpoints.save(0, state, {**notes, "seconds": clock.seconds})
    else:
        if restored.notes.get("data", fit.data) != fit.data:  # older checkpoints know neither this nor the quality
            raise UserError(
                f"{folder.path} has learnt from other episodes than the dataset holds now: machines of different kinds "
                "roll out different ones; go on where it was begun, or choose another --run-dir"
            )
        state, done, notes = restored.tree, restored.step, restored.notes
        times, first = notes["times"], notes.get("quality", {})
        clock = Clock(_added(notes["seconds"], clock.seconds))
        folder.metrics.cut_back(done)

    with phase("training", total=training.num_rounds, done=done) as progress:
        for number in range(done + 1, training.num_rounds + 1):
            mixed = is_synthetic and number > training.burn_in
            renew = is_renewed and mixed and number > 1
            clock.lap()
            state, report = play(state, number, plan(renew, updates_per_round, evaluate=True, mixed=mixed))
            seconds = clock.lap()
            share = {"generate": times["generate"] if renew else 0.0, "evaluate": times["evaluate"]}
            for name, value in share.items():
                clock.seconds[name] += value
            clock.seconds["train"] += max(seconds - sum(share.values()), 0.0)
            record(number, report)
            checkpoints.save(number, state, {**notes, "seconds": clock.seconds})
            progress.advance(note=f"return {report.returns.mean():.0f}")

    clock.lap()
    quality = None
    if is_synthetic:
        kinds = {
            "coda": {"guided": state.synthetic, "unguided": state.unguided},
            "unconditional": {"unguided": state.unguided},
            "simulated": {"simulated": state.synthetic},
        }
        quality = {
            **measure(kinds[config.augmentation]),
            **first,
            **meter(real_trajectories(fit.held_out, num_measured)),
        }
    clock.lap("quality")

    metrics = folder.metrics.read()
    final = metrics["return"][metrics["round"] == training.num_rounds]
    num_updates = len(seeds) * updates_per_round * training.num_rounds
    return {
        "num_seeds": len(seeds),
        "seeds": seeds.tolist(),
        "updates": updates_per_round * training.num_rounds,
        "returns_per_seed": final.tolist(),
        "mean": float(final.mean()),
        "standard_error": float(final.std(ddof=1) / np.sqrt(len(seeds))) if len(seeds) > 1 else None,
        "wall_seconds": {**clock.seconds, "total": sum(clock.seconds.values())},
        "updates_per_second": num_updates / max(clock.seconds["train"], 1e-9),
        "trajectories_per_second": (
            len(seeds) * training.num_trajectories / times["generate"] if is_synthetic else None
        ),
        "sample_quality": quality,
    }


def _added(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: a[name] + b[name] for name in a}


def show(summary: dict[str, Any]) -> None:
    """Prints the results of a finished run as a small table."""
    returns = summary["returns_per_seed"]
    rows = [
        {"seed": str(seed), "return": f"{value:.0f}"} for seed, value in zip(summary["seeds"], returns, strict=True)
    ]
    error = summary["standard_error"]
    spread = "" if error is None else f" +- {error:.0f} s.e."
    rows.append({"seed": "mean", "return": f"{summary['mean']:.0f}{spread}"})
    rows.append({"seed": "dataset, mean episode", "return": f"{summary['dataset_mean_return']:.0f}"})
    title = f"{summary['task']} {summary['vault'] or summary['dataset']}, {summary['augmentation']}"
    print_table(f"{title}: return after {summary['updates']} updates", rows)
    if summary["sample_quality"] is not None:
        show_quality(summary["sample_quality"])


if __name__ == "__main__":
    main()
