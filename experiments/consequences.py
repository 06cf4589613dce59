"""Where the consequences of guided trajectories come from, measured: `python -m experiments.consequences --output DIR`.

Trajectories of every mode are guided toward one policy until their actions have the same spread around it, and then
compared with the simulator and with the data. Each mode has two rows: all its trajectories, and those alone that the
members of the one-step model disagree with least. The folder holds `consequences.json`; finished modes are kept.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import MinLen
from jaxtyping import Array, Float

from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.augmentation.disagreement import least_disagreed
from coda_jax.data.dataset import Dataset
from coda_jax.dynamics.ensemble import make_dynamics
from coda_jax.envs.mamujoco import TASKS
from coda_jax.evaluation import action_response, action_spread, nearest_distance, replay_error, sample_quality
from coda_jax.ranges import Count, Positive, Ranged, RangeError, Seed
from coda_jax.types import Trajectory
from experiments.guidance.settings import SteeringConfig
from experiments.guidance.subjects import Subject, mamujoco_subject, same_side_subject
from experiments.host.cache import enable_compilation_cache, key_of, plain
from experiments.host.console import phase, print_table, say
from experiments.host.errors import FROM_UNFINISHED, UserError, one_line_errors, parse_command
from experiments.host.help_text import choices
from experiments.host.records import parse_mapping, write_record
from experiments.pipeline.consequences import coda
from experiments.pipeline.settings import DatasetName, PresetName, check_choice

MODES: dict[str, dict[str, Any]] = {
    "denoiser": {},
    "through the denoiser": {"through_denoiser": True},
    "score": {"consequences": "score"},
    "inpaint": {"consequences": "inpaint"},
    "model": {"consequences": "model"},
}
"""Modes by name, and what they change: a setting of the sampler, or the source of the consequences."""

SCALES = (1e-3, 2.0)
"""Guidance scales between which that of the asked spread is searched."""

SEARCH_STEPS = 12, 3
"""Scales of that range that are tried, evenly spread on a logarithmic scale, and halvings of the step that reaches the
spread; the scale is then known to 9 %."""

RECORDED = 20_000
"""Recorded states, at most, among which the nearest is searched."""

HEADINGS = {
    "guidance": "λ",
    "spread": "spread",
    "response": "response",
    "one_step_error": "1 step",
    "five_step_error": "5 steps",
    "window_error": "window",
    "reward_error": "reward",
    "optimism": "optimism",
    "nearest_distance": "nearest",
    "seconds": "s each",
}
"""Short headings of the measures (`measure`)."""


@dataclasses.dataclass(frozen=True)
class ConsequencesConfig(Ranged):
    """Compares the sources of the consequences of guided trajectories, at equal spread of their actions."""

    output: Path
    """Folder for `consequences.json`; the same command goes on there."""
    run: Path | None = None
    """A finished run folder of the main job that provides data, settings and policy; by default a policy is trained."""
    task: Annotated[str, choices((*TASKS, "same-side"))] = "2halfcheetah"
    """Task: one of the main job, or `same-side`, which takes seconds; not used with `--run`."""
    dataset: DatasetName = "replay"
    """Dataset; not used with `--run` or on same side."""
    preset: PresetName = "laptop"
    """Preset that sets the denoiser and the learner; not used with `--run` or on same side."""
    num_updates: Count = 2_000
    """Learner updates of the policy on recorded data alone, in whole rounds; not used with `--run`."""
    seed: Seed = 0
    """Policy seed; with `--run` one of its own."""
    modes: Annotated[tuple[str, ...], MinLen(1)] = tuple(MODES)
    """Modes to compare; by default all."""
    spread: Positive = 0.2
    """Root mean square difference of guided actions from the policy's, which sets each mode's guidance scale."""
    num_trajectories: Count = 64
    """Trajectories of a mode."""
    kept_of: Count = 4
    """One in so many trajectories is kept in the second row of a mode; it divides their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_trajectories % self.kept_of:
            raise RangeError("kept_of", self.kept_of, f"it must divide the {self.num_trajectories} trajectories")


class Measured(NamedTuple):
    """Trajectories `[B, H, ...]` of a mode: guided, those of the same noise at lambda 0, and the guidance scale."""

    guided: Trajectory
    unguided: Trajectory
    guidance: float
    seconds: float


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(FROM_UNFINISHED):
        run(parse_command(ConsequencesConfig, args))


def run(config: ConsequencesConfig) -> None:
    """Samples and measures the missing modes, and prints the table.

    Raises:
        UserError: an unknown mode, or the folder holds other settings.
    """
    for mode in config.modes:
        check_choice("--modes", mode, tuple(MODES))
    config.output.mkdir(parents=True, exist_ok=True)
    file = config.output / "consequences.json"
    settings = {name: value for name, value in plain(config).items() if name not in ("output", "modes")}
    results: dict[str, Any] = {"settings": settings, "rows": {}}
    if file.exists():
        results = parse_mapping(file, json.loads, {"settings": dict, "rows": dict}, "delete it to measure again")
        if key_of(results["settings"]) != key_of(settings):
            raise UserError(f"{file} is of other settings; choose another --output")
    todo = [mode for mode in config.modes if mode not in results["rows"]]
    if todo:
        enable_compilation_cache()
        subject = subject_of(config)
        meter = make_meter(subject, config.num_trajectories)
        if "real" not in results["rows"]:
            results["rows"]["real"] = {"all": meter(subject.real(config.num_trajectories, 1), None)}
        with phase("measuring", total=len(todo)) as progress:
            for mode in todo:
                results["rows"][mode] = measure(config, subject, mode, meter)
                write_record(file, results)
                progress.advance(note=mode)
    show(config, results["rows"])
    say(f"{file}")


def subject_of(config: ConsequencesConfig) -> Subject:
    """The task, data, models and policy that the settings name."""
    if config.run is None and config.task == "same-side":
        return same_side_subject(config.num_updates, config.seed)
    asked = ("run", "task", "dataset", "preset", "num_updates", "seed")
    steering = SteeringConfig(num_seeds=1, **{name: getattr(config, name) for name in asked})
    return mamujoco_subject(steering, config.output)


Meter = Callable[[Trajectory, Trajectory | None], dict[str, float | None]]


def make_meter(subject: Subject, num: int) -> Meter:
    """A meter of `num` guided trajectories and those of the same noise at lambda 0, or of real ones; compiles once.

    Errors are in standard deviations of held-out data. `one_step_error`, `reward_error` and `optimism` are those of
    `SampleQuality`; `five_step_error` and `window_error` (a whole window) are by `replay_error`.
    """
    env, reference = subject.env, subject.real(num, 2)
    state_std = jnp.std(reference.state, axis=(0, 1))
    recorded = subject.recorded(RECORDED)
    quality, replay, response = (
        jax.jit(functools.partial(f, env)) for f in (sample_quality, replay_error, action_response)
    )
    nearest = jax.jit(nearest_distance)

    def meter(guided: Trajectory, unguided: Trajectory | None) -> dict[str, float | None]:
        errors = quality(guided, reference)
        window = guided.reward.shape[1] - 1
        return {
            "response": None if unguided is None else float(response(guided, unguided, state_std)),
            "one_step_error": float(errors.dynamics_error),
            "five_step_error": float(replay(guided, state_std, jnp.int32(min(5, window)))),
            "window_error": float(replay(guided, state_std, jnp.int32(window))),
            "reward_error": float(errors.reward_error),
            "optimism": float(errors.optimism),
            "nearest_distance": float(nearest(guided.state, recorded, state_std)),
        }

    return meter


def measure(config: ConsequencesConfig, subject: Subject, mode: str, meter: Meter) -> dict[str, Any]:
    """The rows of a mode: all its trajectories, and the kept ones, each repeated to make up their number."""
    sample, spread = make_sampler(config, subject, mode)
    measured = at_spread(sample, spread, config.spread)
    one_step, num = make_dynamics(subject.env.spec, subject.config.dynamics), config.num_trajectories
    kept = least_disagreed(one_step, subject.dynamics, measured.guided, num // config.kept_of)
    rows = {}
    for name, index, cost in (("all", jnp.arange(num), 1), ("kept", jnp.repeat(kept, config.kept_of), config.kept_of)):
        guided, unguided = jax.tree.map(lambda x, index=index: x[index], (measured.guided, measured.unguided))
        rows[name] = {
            "guidance": measured.guidance,
            "spread": float(spread(guided)),
            **meter(guided, unguided),
            "seconds": cost * measured.seconds / num,
        }
    return rows


def make_sampler(
    config: ConsequencesConfig, subject: Subject, mode: str
) -> tuple[Callable[[float], Trajectory], Callable[[Trajectory], Float[Array, ""]]]:
    """Compiled: the trajectories of a mode at a guidance scale, always from the same noise, and their spread."""
    changes = {"consequences": "denoiser", **MODES[mode]}
    through = changes.pop("through_denoiser", False)
    settings = dataclasses.replace(subject.config, keep_fraction=1.0, **changes)
    model = subject.model
    model = model._replace(sampler=dataclasses.replace(model.sampler, through_denoiser=through))
    learner, state = subject.learner, subject.state
    augmentation, fitted = coda(settings, subject.env, model, learner, subject.prior, subject.dynamics)

    @jax.jit
    def sample(dataset: Dataset, fitted: Any, guidance: Float[Array, ""]) -> Trajectory:
        return sample_in_chunks(
            lambda key, num: augmentation.sample(state, dataset, fitted, guidance, key, num),
            jax.random.fold_in(jax.random.key(1), config.seed),
            config.num_trajectories,
            settings.training.chunk_size,
        )

    def sample_at(guidance: float) -> Trajectory:
        return jax.block_until_ready(sample(subject.dataset, fitted, jnp.float32(guidance)))

    return sample_at, jax.jit(functools.partial(action_spread, learner, state))


def at_spread(
    sample: Callable[[float], Trajectory], spread: Callable[[Trajectory], Float[Array, ""]], wanted: float
) -> Measured:
    """Trajectories at the smallest guidance scale with a wanted spread, or at that of the least spread if none has it.

    Guidance that overshoots spreads the actions again, so the scale is sought from below.
    """
    unguided = sample(0.0)
    seconds: list[float] = []

    def tried(log_scale: float) -> tuple[float, Trajectory]:
        start = time.monotonic()
        guided = sample(math.exp(log_scale))
        seconds.append(time.monotonic() - start)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(guided)):
            raise UserError(f"NaN in trajectories at lambda {math.exp(log_scale):g}")
        return float(spread(guided)), guided

    num_scales, num_halvings = SEARCH_STEPS
    scales = np.linspace(math.log(SCALES[0]), math.log(SCALES[1]), num_scales)
    best, guided, at = math.inf, unguided, scales[0]
    for scale in scales:
        found, trajectory = tried(scale)
        if found < best:
            best, guided, at = found, trajectory, scale
        if found <= wanted:
            break
    if best <= wanted:
        low, high = at - (scales[1] - scales[0]), at
        for _ in range(num_halvings):
            middle = (low + high) / 2
            found, trajectory = tried(middle)
            low, high, guided = (middle, high, guided) if found > wanted else (low, middle, trajectory)
        at = high
    return Measured(guided, unguided, math.exp(at), float(np.median(seconds)))


def show(config: ConsequencesConfig, rows: dict[str, Any]) -> None:
    """Prints two tables with a row for each mode and choice of its trajectories, each as wide as a narrow screen."""
    labels = list(HEADINGS.items())
    for title, part in (
        ("errors in standard deviations of held-out data", labels[:6]),
        ("rewards, distance to the data, and costs", labels[6:]),
    ):
        table = []
        for mode in ("real", *config.modes):
            for choice, row in rows[mode].items():
                name = mode if choice == "all" else f"{mode}, 1 of {config.kept_of}"
                values = {label: row.get(measure) for measure, label in part}
                table.append({"mode": name} | {k: "-" if v is None else f"{v:.2g}" for k, v in values.items()})
        print_table(title, table)


if __name__ == "__main__":
    main()
