"""CODA on the polynomial games, Figures 1 and 2: `python -m experiments.polynomial --game multiplication`.

All methods, on several draws of the offline dataset with denoisers of their own, from the paper's start and from a grid
of starts; then the tables and the pictures. A run folder holds `ends.csv`, `paths.csv.gz`, `grid.csv`, `samples.csv`,
`summary.json` and `figures/`; on a finished one the command prints the tables again. Fitted denoisers are kept in the
cache.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.games.report import show, write_report
from experiments.games.settings import PolynomialConfig, check, dataset_of, game_of
from experiments.games.training import train_all
from experiments.host.cache import enable_compilation_cache, key_of, plain
from experiments.host.console import print_config, say
from experiments.host.devices import set_up_devices
from experiments.host.errors import one_line_errors, parse_command
from experiments.host.run_folder import open_run_folder

DEPARTURES = (
    "beside Tables 2 and 4, whose settings are in brackets: {diffusion} diffusion steps, {guided} where policy-guided "
    "(40); {batch} samples in the denoiser's mini-batch (1,000); {updates} gradient steps (10,000 epochs); "
    "kernel {kernel} (3; at H = 1 its outer taps see padding only); {samples} samples a renewal, as many as it uses "
    "(1,000); the gradient is clipped jointly for both agents"
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        config = parse_command(PolynomialConfig, args)
        check(config)
        run(config)


def run(config: PolynomialConfig) -> None:
    """Trains everything, and leaves a finished run folder.

    Raises:
        UserError: a run folder of other settings, or NaNs in the training.
    """
    game, dataset = game_of(config), dataclasses.replace(dataset_of(config), num_transitions=config.num_transitions)
    identity = {name: value for name, value in plain(config).items() if name not in ("run_dir", "allow_other_devices")}
    identity["dataset"] = dataset.name
    if config.coefficients is None:  # older runs know of none
        del identity["coefficients"]
    path = config.run_dir or Path("runs", f"polynomial-{game.name}-{dataset.name}-{key_of(identity)}")
    mesh = set_up_devices(config.num_draws)
    enable_compilation_cache()
    with open_run_folder(
        path, identity, num_devices=mesh.size, allow_other_devices=config.allow_other_devices
    ) as folder:
        say(f"run folder: {path}")
        if not folder.finished:
            print_config(identity)
            say(
                DEPARTURES.format(
                    diffusion=config.diffusion.num_steps,
                    guided=config.guided_diffusion.num_steps,
                    batch=config.denoiser.batch_size,
                    updates=config.denoiser.num_updates,
                    kernel=config.denoiser.unet.kernel_size,
                    samples=config.coda.batch_size * config.coda.updates_per_renewal,
                )
            )
            start = time.monotonic()
            results = train_all(config, game, dataset, mesh)
            write_report(folder, game, dataset, config, results, time.monotonic() - start)
        show(folder.read_summary())


if __name__ == "__main__":
    main()
