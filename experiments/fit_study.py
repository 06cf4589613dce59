"""Sample quality by settings of fit and sampler: `python -m experiments.fit_study --output results/fit_study`.

Each variant changes one setting of the laptop preset and is fitted for `--num-updates` updates, unless it changes that
number; `evaluation.sample_quality` measures its unguided samples. The cache stores the fits and the output folder the
finished variants, so the same command resumes the study.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import MinLen
from jax.sharding import Mesh

from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.data.dataset import Episodes
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.prior import Prior, sample_trajectories
from coda_jax.ranges import Count, Ranged
from coda_jax.types import PRNGKey, Trajectory
from experiments.datasets.named import load_dataset
from experiments.host.cache import enable_compilation_cache, key_of
from experiments.host.console import say
from experiments.host.devices import set_up_devices
from experiments.host.errors import FROM_UNFINISHED, one_line_errors, parse_command
from experiments.host.files import write_atomically
from experiments.host.help_text import choices
from experiments.host.records import parse_mapping, write_record
from experiments.pipeline.quality import WINDOWS, quality_meter, real_trajectories
from experiments.pipeline.run import fit_episodes
from experiments.pipeline.settings import PRESETS, ExperimentConfig

Change = Callable[[ExperimentConfig], ExperimentConfig]


def denoiser(**changes: Any) -> Change:
    """Changes settings of the denoiser and its fit."""
    return lambda config: dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, **changes))


def sampler(**changes: Any) -> Change:
    """Changes settings of the sampler."""
    return lambda config: dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, **changes))


def unet(**changes: Any) -> Change:
    """Changes settings of the network."""
    return lambda config: denoiser(unet=dataclasses.replace(config.denoiser.unet, **changes))(config)


def noise(**changes: Any) -> Change:
    """Changes the distribution of noise levels in training."""
    return lambda config: denoiser(noise=dataclasses.replace(config.denoiser.noise, **changes))(config)


def longer(factor: int, batch_divisor: int = 1) -> Change:
    """Increases the number of updates, and optionally decreases the batch size."""

    def change(config: ExperimentConfig) -> ExperimentConfig:
        fit = config.denoiser
        return denoiser(num_updates=factor * fit.num_updates, batch_size=fit.batch_size // batch_divisor)(config)

    return change


def data(**changes: Any) -> Change:
    """Changes the treatment of the data."""
    return lambda config: dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def tuned_fit(config: ExperimentConfig) -> ExperimentConfig:
    """Fits as the preset `tuned` does, with its share of the updates of `laptop`."""
    fit, usual = PRESETS["tuned"].denoiser, PRESETS["laptop"].denoiser
    num_updates = config.denoiser.num_updates * fit.num_updates // usual.num_updates
    return dataclasses.replace(config, denoiser=dataclasses.replace(fit, num_updates=num_updates))


VARIANTS: dict[str, Change] = {
    "laptop preset": lambda config: config,
    "16 Heun steps": sampler(num_steps=16),
    "64 Heun steps": sampler(num_steps=64),
    "churn 10": sampler(S_churn=10.0),
    "squared error without EDM's weight": denoiser(weight="plain"),
    "twice the updates of half the batch": longer(2, batch_divisor=2),
    "lower noise levels (mean of ln sigma -1.8)": noise(log_mean=-1.8),
    "higher noise levels (mean of ln sigma -0.6)": noise(log_mean=-0.6),
    "unbounded features left uniform": data(uniform_unbounded=True),
    "channel multipliers 1, 2": unet(channel_multipliers=(1, 2)),
    "one level (channel multipliers 1)": unet(channel_multipliers=(1,)),
    "moving average 0.99": denoiser(ema_decay=0.99),
    "width 32": unet(width=32),
    "width 128, half the batch": lambda config: unet(width=128)(longer(1, batch_divisor=2)(config)),
    "twice the updates": longer(2),
    "tuned preset's fit (Muon, half the batch, 5 of 6 updates)": tuned_fit,
}
"""The variants of the laptop preset."""


@dataclasses.dataclass(frozen=True)
class FitStudyConfig(Ranged):
    """Fits the denoiser under different settings and measures its unguided samples."""

    output: Path
    """Folder for `quality.json` and the table `quality.md`."""
    num_updates: Count = 2000
    """Number of updates per fit."""
    variants: Annotated[tuple[Annotated[str, choices(VARIANTS)], ...], MinLen(1)] = tuple(VARIANTS)
    """Variants to fit, by their names in the table; by default all."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(FROM_UNFINISHED):
        config = parse_command(FitStudyConfig, args)
        config.output.mkdir(parents=True, exist_ok=True)
        preset = PRESETS["laptop"]
        base = denoiser(num_updates=config.num_updates)(preset)
        mesh = set_up_devices(preset.num_seeds)
        enable_compilation_cache()
        env = mamujoco.make(preset.task)
        episodes = load_dataset(env, preset.dataset, preset.data.num_episodes, mesh)
        file = config.output / "quality.json"
        results = parse_mapping(file, json.loads, {}, "delete it to fit again") if file.exists() else {}
        variants = {name: change(base) for name, change in VARIANTS.items()}
        # Results with other settings, such as another number of updates, are discarded.
        results = {
            name: row
            for name, row in results.items()
            if isinstance(row, dict) and row.get("settings") == key_of(variants.get(name))
        }
        for number, name in enumerate(config.variants):
            variant = variants[name]
            if name not in results:
                say(f"variant {number + 1} of {len(config.variants)}: {name}")
                with jax.default_matmul_precision(variant.precision):
                    results[name] = {"settings": key_of(variant), **measure(variant, env, episodes, mesh)}
                write_record(file, results)
                write_atomically(config.output / "quality.md", markdown(results))
        say(markdown(results).rstrip())


def measure(config: ExperimentConfig, env: Environment, episodes: Episodes, mesh: Mesh) -> dict[str, Any]:
    """Fits a variant, samples from it and measures the samples."""
    fit = fit_episodes(config, env, episodes, mesh)

    def sample(prior: Prior, key: PRNGKey) -> Trajectory:
        sample_chunk = functools.partial(sample_trajectories, fit.model, prior)
        return sample_in_chunks(sample_chunk, key, WINDOWS, config.training.chunk_size)

    samples = jax.jit(sample)(fit.prior, jax.random.key(0))
    kinds = {"unguided": samples, **real_trajectories(fit.held_out, WINDOWS)}
    quality = quality_meter(env, fit.held_out, WINDOWS)(kinds)
    return {"held_out_loss": fit.held_out_loss, "quality": quality}


def markdown(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    errors = ("feature_distance", "worst_feature_distance", "observation_error", "dynamics_error", "reward_error")
    lines = [
        f"| variant | held-out loss | {' | '.join(error.replace('_', ' ') for error in errors)} |",
        f"| --- |{' --- |' * (len(errors) + 1)}",
    ]
    for name, result in results.items():
        values = (f"{result['quality']['unguided'][error]:.3f}" for error in errors)
        lines.append(f"| {name} | {result['held_out_loss']:.3f} | {' | '.join(values)} |")
    quality = next(iter(results.values()))["quality"]
    for kind in ("real", "real, actions shuffled", "real, steps shuffled"):
        lines.append(f"| *{kind}* | | {' | '.join(f'{quality[kind][error]:.3f}' for error in errors)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
