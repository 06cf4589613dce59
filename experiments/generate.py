"""Synthetic trajectories of a run: `python -m experiments.generate RUN --output synthetic.npz`.

They are sampled from the run's `prior.npz`, guided by its `policy.npz` if asked, and written as arrays or as a vault in
the layout of OG-MARL. Each trajectory is an episode of H steps, or fewer where it truly ends.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from coda_jax.artefact import ArtefactError
from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.augmentation.guided import policy_guide
from coda_jax.data.dataset import statistics
from coda_jax.data.synthetic import episodes_from_windows
from coda_jax.data.vault import write_vault
from coda_jax.prior import FILE, load_prior, sample_trajectories
from coda_jax.ranges import Count, NonNegative, Ranged, Seed
from coda_jax.types import PRNGKey, Trajectory
from experiments.host.cache import enable_compilation_cache
from experiments.host.console import phase, say
from experiments.host.errors import UserError, one_line_errors, parse_command
from experiments.host.files import opened_atomically
from experiments.pipeline.recovery import policy_of_run, verify_artefact

CHUNK_SIZE = 64
"""Trajectories that are sampled at once, so that they fit the processor's cache."""

_GENERATE = 0x67656E65
"""Folded into the root key of a seed, so that the samples share no key with the training of that policy seed."""


@dataclasses.dataclass(frozen=True)
class GenerateConfig(Ranged):
    """Samples synthetic trajectories from the prior of a run, and writes them for other programs."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of the main job, the cache's folder of a denoiser, or a `prior.npz`."""
    output: Path
    """A `.npz` of the arrays of `coda_jax.episodes_from_arrays`, or the folder of a new vault, such as
    `2halfcheetah.vlt/Synthetic`."""
    num: Count = 1000
    """Trajectories."""
    guidance: NonNegative = 0.0
    """Guidance scale lambda toward the run's trained policy; 0 samples without guidance."""
    policy_seed: Seed | None = None
    """Policy seed that guides; the run's first by default."""
    seed: Seed = 0
    """Seed of the samples."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        generate(parse_command(GenerateConfig, args))


def generate(config: GenerateConfig) -> None:
    """Samples and writes.

    Raises:
        UserError: no prior, no such policy seed, or an output that exists.
    """
    _check(config)
    enable_compilation_cache()
    try:
        trajectories = sample(config)
    except ArtefactError as error:
        raise UserError(str(error)) from error
    episodes = episodes_from_windows(trajectories)
    if config.output.suffix == ".npz":
        config.output.parent.mkdir(parents=True, exist_ok=True)
        fields = {field.name: getattr(episodes, field.name) for field in dataclasses.fields(episodes)}
        with opened_atomically(config.output) as file:
            np.savez_compressed(file, allow_pickle=False, **fields)
    else:
        provenance = {name: str(value) for name, value in dataclasses.asdict(config).items()}
        if not write_vault(config.output, episodes, {"synthetic": provenance}):
            raise UserError(f"--output {config.output} exists; give the path of a new folder")
    card = statistics(episodes)
    say(f"{card['num_episodes']} trajectories, {card['num_transitions']} steps, written to {config.output}")


def sample(config: GenerateConfig) -> Trajectory:
    """The trajectories `[num, H, ...]`, on the device.

    Raises:
        ArtefactError: the prior cannot be read.
        UserError: the run has no such policy seed, or no policy; or its prior or policy is not the one it wrote.
    """
    verify_artefact(config.run / FILE if config.run.is_dir() else config.run)
    model, prior = load_prior(config.run)
    guide = None
    if config.guidance > 0:
        policy = policy_of_run(config.run)
        seed = policy.seeds[0] if config.policy_seed is None else config.policy_seed
        if seed not in policy.seeds:
            raise UserError(f"--policy-seed is {seed}; the run has the seeds {policy.seeds}")
        guide = policy_guide(policy.as_learner(), policy.weights_of(seed), prior.transform, model.spec)

    def chunk(key: PRNGKey, size: int) -> Trajectory:
        return sample_trajectories(model, prior, key, size, guide=guide, guidance=config.guidance)

    with phase("sampling"):
        draw = jax.jit(lambda key: sample_in_chunks(chunk, key, config.num, CHUNK_SIZE))
        return jax.block_until_ready(draw(jax.random.fold_in(jax.random.key(config.seed), _GENERATE)))


def _check(config: GenerateConfig) -> None:
    """Refuses flags that cannot work, before anything is sampled."""
    if config.policy_seed is not None and config.guidance == 0:
        raise UserError("--policy-seed needs --guidance above 0: without guidance no policy takes part")
    if config.guidance > 0 and not config.run.is_dir():
        raise UserError(f"--guidance needs the policies of a run folder, and {config.run} is a file")
    if config.run.is_dir() and not (config.run / FILE).exists():
        raise UserError(
            f"{config.run} has no {FILE}: runs with --augmentation none, model or simulated fit no denoiser; in an "
            "older run, delete summary.json and repeat its command to write it"
        )
    if config.output.exists():
        raise UserError(f"--output {config.output} exists; give a new path")


if __name__ == "__main__":
    main()
