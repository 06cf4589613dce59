"""Return against share and response of synthetic data: `python -m experiments.response_map --output FOLDER`.

On same side, with synthetic data built in the true environment (`experiments.tasks.response`): how large must their
share of a mini-batch be, and how far must their consequences follow the actions, for agents to coordinate? Once with
all terms of the losses on all rows, as in the paper, and once with the actor's Q term on synthetic and cloning on
recorded rows. The folder holds `map.json` and `map.png`; finished cells are kept. With `--comparison`, CODA's variants
are points on the map, by their measured responses. Mini-batches and sets of trajectories are twice those of
`experiments.coordination`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval, MinLen
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from coda_jax.coda import across_seeds, make_trainer
from coda_jax.data.coordination import SameSideData, convention_episodes
from coda_jax.data.dataset import make_dataset
from coda_jax.envs.coordination import SameSide, same_side
from coda_jax.marl.input_scale import standardised_inputs
from coda_jax.ranges import Count, Ranged, Seed, Share, check_seeds
from experiments.evidence.coordination import FIELDS, Comparison
from experiments.evidence.recorded_runs import read_settings, read_summary
from experiments.host.cache import enable_compilation_cache, key_of, plain
from experiments.host.console import phase, print_table, say
from experiments.host.devices import seed_keys, set_up_devices
from experiments.host.errors import FROM_UNFINISHED, UserError, one_line_errors, parse_command
from experiments.host.plots import panels
from experiments.host.records import parse_mapping, write_record
from experiments.pipeline.learners import make_learner
from experiments.tasks.response import partial_response
from experiments.tasks.settings import METHODS, CoordinationConfig, Method
from experiments.tasks.training import rows_of

USES = {"all terms on all rows": False, "actor synthetic, cloning recorded": True}
"""Uses of the rows, and whether they are split."""

MARKERS = "os^Dv*P"
"""Of the points in a panel."""

PositiveShare = Annotated[float, Interval(gt=0.0, le=1.0)]


@dataclasses.dataclass(frozen=True)
class ResponseMapConfig(Ranged):
    """Trains policies on same side with synthetic data of each share and response."""

    output: Path
    """Folder for `map.json` and `map.png`; the same command goes on there."""
    comparison: Path | None = None
    """Run folder of `experiments.coordination --task same-side`: its guided methods become points on the map."""
    shares: Annotated[tuple[PositiveShare, ...], MinLen(1)] = (0.1, 0.5, 0.9)
    """Shares of synthetic rows in a mini-batch."""
    responses: Annotated[tuple[Share, ...], MinLen(1)] = (0.0, 0.5, 1.0)
    """Responses of their consequences to the policy's actions."""
    num_seeds: Count = 8
    """Policy seeds a cell: `seed`, `seed + 1`, ..."""
    seed: Seed = 0
    """First seed."""
    num_rounds: Count = 12
    """Rounds of 100 updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, self.num_seeds)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(FROM_UNFINISHED):
        config = parse_command(ResponseMapConfig, args)
        run(config)


def run(config: ResponseMapConfig) -> None:
    """Trains the missing cells, and writes numbers and picture.

    Raises:
        UserError: the folder holds a map of other settings, or NaNs while training.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    file = config.output / "map.json"
    settings = {name: value for name, value in plain(config).items() if name not in ("output", "comparison")}
    points = [] if config.comparison is None else points_of(config.comparison)
    results: dict[str, Any] = {"settings": settings, "returns": {}}
    if file.exists():
        results = parse_mapping(file, json.loads, {"settings": dict, "returns": dict}, "delete it to train again")
        if key_of(results["settings"]) != key_of(settings):
            raise UserError(f"{file} is a map of other settings; choose another --output")
    mesh = set_up_devices(config.num_seeds)
    enable_compilation_cache()
    todo = [(use, share) for use in USES for share in config.shares]
    with phase("training", total=len(todo)) as progress:
        for use, share in todo:
            if name_of(use, share, config.responses[-1]) not in results["returns"]:
                returns = train(config, USES[use], share, mesh)
                for response, values in zip(config.responses, returns, strict=True):
                    results["returns"][name_of(use, share, response)] = values.tolist()
                write_record(file, results)
            progress.advance(note=f"{use}, share {share:g}")
    means = {use: grid(config, use, results["returns"]) for use in USES}
    draw(config, means, points)
    for use, mean in means.items():
        rows = [
            {"share": f"{share:g}"}
            | {f"response {r:g}": f"{v:.1f}" for r, v in zip(config.responses, row, strict=True)}
            for share, row in zip(config.shares, mean, strict=True)
        ]
        print_table(f"return, {use}, {config.num_seeds} seeds", rows)
    say(f"{config.output}: map.json and map.png")


def name_of(use: str, share: float, response: float) -> str:
    """The name of a cell."""
    return f"{use}, share {share:g}, response {response:g}"


def train(config: ResponseMapConfig, is_split: bool, share: float, mesh: Mesh) -> Float[np.ndarray, "R S"]:
    """The final returns at each response; all responses share one compiled program.

    Raises:
        UserError: NaNs in the training.
    """
    usual = CoordinationConfig()
    data = SameSideData(SameSide(half_width=usual.half_width), coverage=usual.coverage, noise=usual.noise)
    env = same_side(data.task)
    dataset = make_dataset(convention_episodes(data, jax.random.key(0)), usual.training.horizon)
    learner = make_learner(usual.algorithm, usual.learner, env.spec, standardised_inputs(dataset.steps))
    training = dataclasses.replace(
        usual.training, batch_size=32, num_trajectories=256, mix_ratio=share, num_rounds=config.num_rounds
    )
    training = rows_of(training, Method("oracle", is_split=is_split))
    augmentation = partial_response(env, learner, training.horizon, usual.rollout_noise)
    trainer = across_seeds(make_trainer(env, learner, augmentation, training, config.num_seeds // mesh.size), mesh)
    seeds = np.arange(config.seed, config.seed + config.num_seeds)
    keys = seed_keys(seeds, mesh)
    shared = NamedSharding(mesh, PartitionSpec())
    init, whole, dataset = jax.jit(trainer.init), jax.jit(trainer.run), jax.device_put(dataset, shared)
    ends = []
    for response in config.responses:
        _, reports = whole(init(keys), dataset, jax.device_put(jnp.float32(response), shared))
        if not all(np.asarray(flags).all() for flags in jax.tree.leaves(reports.finite)):
            raise UserError(f"NaN while training, share {share:g}, response {response:g}")
        ends.append(np.asarray(reports.returns)[-1].mean(axis=-1))
    return np.stack(ends)


def grid(config: ResponseMapConfig, use: str, returns: dict[str, list[float]]) -> Float[np.ndarray, "A R"]:
    """Mean returns `[shares, responses]` of a use of the rows."""
    return np.array(
        [[np.mean(returns[name_of(use, share, response)]) for response in config.responses] for share in config.shares]
    )


class Point(NamedTuple):
    """A method of a comparison: its use of the rows, share of synthetic rows, mean response and mean return."""

    method: str
    use: str
    share: float
    response: float
    mean_return: float


def points_of(folder: Path) -> list[Point]:
    """The guided methods of a comparison on same side with two agents.

    Raises:
        UserError: no such comparison, or a damaged one.
    """
    summary, settings = read_summary(folder, FIELDS), read_settings(folder)
    run = Comparison(folder, summary, settings)
    if summary["task"] != "same-side" or settings["num_agents"] != 2 or not run.responses:
        raise UserError(f"--comparison {folder} has no responses on same side with two agents; run it again")
    uses = {is_split: use for use, is_split in USES.items()}
    return [
        Point(name, uses[METHODS[name].is_split], settings["training"]["mix_ratio"], *map(float, means))
        for name, values in run.responses.items()
        for means in [(np.mean(values), np.mean(run.returns[name]))]
    ]


def draw(config: ResponseMapConfig, means: dict[str, Float[np.ndarray, "A R"]], points: Sequence[Point]) -> None:
    """A map a use of the rows, its cells labelled by their means, with points coloured by their returns."""
    everything = np.concatenate(list(means.values()))
    low, high = float(everything.min()), float(everything.max())
    with panels(config.output / "map.png", 1, len(means), (9.5, 5.2 if points else 3.8)) as axes:
        for axis, (use, mean) in zip(axes[0], means.items(), strict=True):
            scale = {"cmap": "viridis", "vmin": low, "vmax": high}
            axis.imshow(mean, origin="lower", aspect="auto", **scale)
            for (row, column), value in np.ndenumerate(mean):
                colour = "k" if value > (low + high) / 2 else "w"
                axis.text(column, row + 0.15, f"{value:.1f}", ha="center", va="center", color=colour)
            for marker, point in zip(MARKERS, [point for point in points if point.use == use], strict=False):
                at = np.interp(point.response, config.responses, range(len(config.responses)))
                height = np.interp(point.share, config.shares, range(len(config.shares)))
                label = f"{point.method}: response {point.response:.2f}, return {point.mean_return:.1f}"
                axis.scatter(
                    at, height, c=[point.mean_return], s=70, marker=marker, edgecolors="w", label=label, **scale
                )
            if points:
                axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8, frameon=False)
            axis.set(title=use, xlabel="response", ylabel="share of synthetic rows")
            axis.set_xticks(range(len(config.responses)), [f"{r:g}" for r in config.responses])
            axis.set_yticks(range(len(config.shares)), [f"{s:g}" for s in config.shares])
            axis.grid(False)


if __name__ == "__main__":
    main()
