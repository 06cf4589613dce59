"""The report of a run on a polynomial game: tables, the paper's claims and our findings, raw numbers, figures."""

import csv
import gzip
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.polynomial import polynomial

from coda_jax.envs.polynomial import DatasetConfig, PolynomialGame, optima
from experiments.games.figures import CELLS, draw_gradients, draw_grid, draw_methods, draw_routes
from experiments.games.methods import CODA_METHODS, STATIC_METHODS, TRUE_GRADIENT
from experiments.games.settings import PolynomialConfig
from experiments.games.theory import (
    expected_gradient,
    marginal_rewards,
    mean_and_spread,
    predicted_path,
    tilted_masses,
    true_gradient,
    twin_peaks_fixed_point,
)
from experiments.games.training import METHODS, Results
from experiments.host.console import print_table, say
from experiments.host.run_folder import RunFolder

Row = dict[str, str]

NEAR, CLOSE = 0.01, 0.1
"""A return within 1 % of the optimum has reached it; one within 10 % comes close."""


def write_report(
    folder: RunFolder,
    game: PolynomialGame,
    dataset: DatasetConfig,
    config: PolynomialConfig,
    results: Results,
    wall_seconds: float,
) -> None:
    """Writes the raw numbers, the pictures and, last, the summary with the tables."""
    best = optima(game)[1]
    returns = {method: reward(game, path.theta) for method, path in results.paths.items()}
    aligned = {method: alignment(game, results, method, config.coda.burn_in) for method in CODA_METHODS}
    basin = {method: basin_of(game, path.theta[:, :, -1]) for method, path in results.grid.items()}
    agreement = {method: grid_agreement(results, basin, method) for method in METHODS}
    theory, deviations = theory_table(game, config, results)
    tables = {
        f"{game.name}, {dataset.name} data: after {config.num_updates} updates": ends_table(results, returns, best),
        "baselines: gradient (Eq. 20), fixed point (Eq. 24) and end from the data's moments": theory,
        "no augmentation, on clouds around an optimum, by their spread": clouds_table(game, config, results),
        "synthetic mini-batch of CODA against the true gradient, along the paths": alignment_table(aligned),
        f"starts of the grid, after {config.grid_updates} updates; true basin: of those with |x+y| > 0.1": grid_table(
            game, results, basin, agreement
        ),
        "samples of CODA at a policy": samples_table(results),
        f"Eq. 15 (std 1, lambda = {config.coda.guidance:g}) by quadrature, and the routes": routes_table(
            dataset, config.coda.guidance, results
        ),
    }
    # The moments predict for the known reward, so not for a run with a learned critic.
    claims = claims_table(dataset, returns, best, aligned, agreement, deviations if config.critic == "known" else {})

    write_rows(folder.path / "ends.csv", ("method", "draw", "seed", "x", "y", "return"), end_rows(results, returns))
    write_rows(
        folder.path / "paths.csv.gz",
        ("method", "draw", "seed", "update", "x", "y", "return"),
        path_rows(results, returns),
    )
    write_rows(
        folder.path / "grid.csv",
        ("method", "draw", "start_x", "start_y", "end_x", "end_y", "basin"),
        grid_rows(results, basin),
    )
    write_rows(
        folder.path / "samples.csv",
        ("method", "draw", "policy_x", "policy_y", "mean_x", "mean_y", "std_x", "std_y"),
        sample_rows(results),
    )
    draw_methods(folder.figures / "methods.png", game, dataset, results, returns)
    draw_grid(folder.figures / "grid.png", game, results, basin)
    draw_gradients(folder.figures / "gradient.png", aligned)
    draw_routes(folder.figures / "routes.png", game, dataset, config.coda.guidance, results)
    folder.write_summary(
        {
            "game": game.name,
            "dataset": dataset.name,
            "optimum": best,
            "num_seeds": config.num_seeds,
            "num_draws": config.num_draws,
            "updates": config.num_updates,
            "returns_per_seed": {method: values[..., -1].ravel().tolist() for method, values in returns.items()},
            "tables": tables,
            "claims": claims,
            "wall_seconds": wall_seconds,
        }
    )


def show(summary: dict[str, Any]) -> None:
    """Prints the tables of a finished run."""
    for title, rows in summary["tables"].items():
        print_table(title, rows)
    print_table("claims", summary["claims"])
    say(f"optimum {summary['optimum']:g}; {summary['wall_seconds']:.0f} s in all")


def reward(game: PolynomialGame, theta: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch"]:
    """R of joint policies, in double precision."""
    return polynomial.polyval2d(theta[..., 0].astype(float), theta[..., 1].astype(float), np.asarray(game.coefficients))


def alignment(game: PolynomialGame, results: Results, method: str, burn_in: int) -> dict[str, np.ndarray]:
    """Norm of the true gradient, and cosine and size of the mini-batch's to it, `[D, S, T]` after burn-in."""
    path = results.paths[method]
    found = path.gradient[:, :, burn_in:].astype(float)
    true = true_gradient(game, path.theta[:, :, burn_in:-1])
    norm, size = np.linalg.norm(true, axis=-1), np.linalg.norm(found, axis=-1)
    tiny = np.finfo(float).tiny
    return {
        "norm": norm,
        "cosine": np.sum(found * true, axis=-1) / np.maximum(norm * size, tiny),
        "size": size / np.maximum(norm, tiny),
    }


def basin_of(game: PolynomialGame, ends: Float[np.ndarray, "*batch 2"]) -> np.ndarray:
    """The number of the optimum a policy ends at; -1 where its return is not within 10 % of it."""
    peaks, best = optima(game)
    nearest = np.argmin(np.linalg.norm(ends[..., None, :] - peaks, axis=-1), axis=-1)
    return np.where(reward(game, ends) >= (1 - CLOSE) * best, nearest, -1)


def grid_agreement(results: Results, basin: dict[str, np.ndarray], method: str) -> float:
    """Share of the starts with |x + y| > 0.1 that end at the optimum where true gradient ascent ends."""
    starts = results.grid[method].theta[:, :, 0]
    clear = np.abs(starts.sum(axis=-1)) > 0.1
    return float(np.mean(basin[method][clear] == basin[TRUE_GRADIENT][clear]))


def ends_table(results: Results, returns: dict[str, np.ndarray], best: float) -> list[Row]:
    """Final returns of each method, mean and standard deviation over seeds."""
    rows = []
    for method in METHODS:
        final, theta = returns[method][..., -1].ravel(), results.paths[method].theta[:, :, -1].reshape(-1, 2)
        rows.append(
            {
                "method": method,
                "return": f"{final.mean():.3f} ± {final.std():.3f}",
                "least": f"{final.min():.3f}",
                "within 1 %": f"{np.sum(final >= (1 - NEAR) * best)} of {final.size}",
                "mean end": _pair(theta.mean(axis=0)),
            }
        )
    return rows


def theory_table(
    game: PolynomialGame, config: PolynomialConfig, results: Results
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """The end of each baseline as predicted from the moments of the data, and the measured one.

    Returns the table, and each baseline's mean deviation in units of its standard error (at least 0.001).
    """
    rows, deviations = [], {}
    for method in STATIC_METHODS:
        ends = results.paths[method].theta[:, :, -1].astype(float)
        predicted, fields, fixed = [], [], []
        for recorded, used in zip(results.data["none"], results.data[method], strict=True):
            burn_in, main = marginal_rewards(game, recorded), marginal_rewards(game, used)
            marginals = [burn_in] * config.coda.burn_in + [main] * config.num_updates
            predicted.append(predicted_path(marginals, np.asarray(config.learner.start), config.learner)[-1])
            fields.append(expected_gradient(main, np.zeros(2)))
            fixed.append(twin_peaks_fixed_point(used))
        off = (ends - np.stack(predicted)[:, None]).reshape(-1, 2)
        error = off.std(axis=0, ddof=1) / math.sqrt(len(off)) if len(off) > 1 else np.zeros(2)
        deviations[method] = np.abs(off.mean(axis=0)) / np.maximum(error, 1e-3)
        is_peaks = game.name == "twin-peaks"
        theory = {"Eq. 24": _pair(np.mean(fixed, axis=0))} if is_peaks else {}
        if game.name == "multiplication":
            theory = {"Eq. 20": _pair(np.mean(fields, axis=0))}
        rows.append(
            {
                "method": method,
                **theory,
                "predicted end": _pair(np.mean(predicted, axis=0)),
                "mean end": _pair(ends.mean(axis=(0, 1))),
                "s.e. off": f"{deviations[method][0]:.1f}, {deviations[method][1]:.1f}",
            }
        )
    return rows, deviations


def clouds_table(game: PolynomialGame, config: PolynomialConfig, results: Results) -> list[Row]:
    """The measured and predicted end of training on a cloud around an optimum, by the spread of the cloud."""
    rows = []
    for spread, (cloud, ends) in results.clouds.items():
        marginals = [marginal_rewards(game, cloud)] * config.num_updates
        predicted = predicted_path(marginals, np.asarray(config.learner.start), config.learner)[-1]
        fixed = {"Eq. 24": _pair(twin_peaks_fixed_point(cloud))} if game.name == "twin-peaks" else {}
        rows.append(
            {
                "spread": f"{spread:g}",
                **fixed,
                "predicted end": _pair(predicted),
                "mean end": _pair(ends.mean(axis=0)),
                "return": f"{reward(game, ends).mean():.3f}",
            }
        )
    return rows


def alignment_table(aligned: dict[str, dict[str, np.ndarray]]) -> list[Row]:
    """Cosine and relative norm where the true gradient's norm exceeds 0.1."""
    rows = []
    for method, values in aligned.items():
        clear = values["norm"] > 0.1
        cosine, size = values["cosine"][clear], values["size"][clear]
        if not clear.any():
            continue
        rows.append(
            {
                "method": method,
                "updates": f"{cosine.size}",
                "cosine": f"{cosine.mean():.4f}",
                "least": f"{cosine.min():.4f}",
                "size": f"{size.mean():.3f}",
                "90 % of them": f"{np.quantile(size, 0.05):.2f} to {np.quantile(size, 0.95):.2f}",
            }
        )
    return rows


def grid_table(
    game: PolynomialGame, results: Results, basin: dict[str, np.ndarray], agreement: dict[str, float]
) -> list[Row]:
    """The optima that the starts of the grid end at."""
    best = optima(game)[1]
    return [
        {
            "method": method,
            "true basin": f"{agreement[method]:.1%}",
            "within 10 %": f"{np.mean(basin[method] >= 0):.1%}",
            "within 1 %": f"{np.mean(reward(game, results.grid[method].theta[:, :, -1]) >= (1 - NEAR) * best):.1%}",
        }
        for method in METHODS
    ]


def samples_table(results: Results) -> list[Row]:
    """Distance of a CODA method's samples from the policy, over the lattice of policies and all draws."""
    rows = []
    for method in CODA_METHODS:
        samples, policies = results.samples[method][:, 3:], results.policies[3:]
        off = np.linalg.norm(samples.mean(axis=2) - policies, axis=-1)
        spread = np.sqrt(samples.var(axis=2).mean(axis=-1))
        rows.append(
            {
                "method": method,
                "policies": f"{len(policies)}",
                "mean off by": f"{off.mean():.3f}",
                "at most": f"{off.max():.3f}",
                "spread": f"{spread.mean():.3f}",
                "at most ": f"{spread.max():.3f}",
            }
        )
    return rows


def routes_table(dataset: DatasetConfig, guidance: float, results: Results) -> list[Row]:
    """Mean and spread of Eq. 15, and of the samples of each route, at the three policies of the figure."""
    edges = np.linspace(-1.0, 1.0, CELLS + 1)
    rows = []
    for number, policy in enumerate(results.policies[:3]):
        mean, spread = mean_and_spread(tilted_masses(dataset, edges, policy, guidance), edges)
        rows.append({"policy": _pair(policy), "samples of": "Eq. 15", "mean": _pair(mean), "spread": f"{spread:.3f}"})
        for method in CODA_METHODS:
            samples = results.samples[method][:, number]
            mean, spread = samples.mean(axis=(0, 1)), np.sqrt(samples.var(axis=1).mean())
            rows.append({"policy": "", "samples of": method, "mean": _pair(mean), "spread": f"{spread:.3f}"})
    return rows


def claims_table(
    dataset: DatasetConfig,
    returns: dict[str, np.ndarray],
    best: float,
    aligned: dict[str, dict[str, np.ndarray]],
    agreement: dict[str, float],
    deviations: dict[str, np.ndarray],
) -> list[Row]:
    """The paper's predictions, and whether they hold."""
    rows = []

    def claim(prediction: str, wanted: str, found: str, holds: bool) -> None:
        rows.append({"claim": prediction, "wanted": wanted, "found": found, "holds": "yes" if holds else "NO"})

    for method in CODA_METHODS:
        final = returns[method][..., -1].ravel()
        reached, needed = int(np.sum(final >= (1 - NEAR) * best)), math.ceil(final.size * 15 / 16)
        claim(
            f"{method} ends within 1 % of the optimum",
            f"{needed} of {final.size} seeds",
            f"{reached}",
            reached >= needed,
        )
        claim(
            f"{method} from |x+y| > 0.1 ends in the true basin",
            "95 %",
            f"{agreement[method]:.1%}",
            agreement[method] >= 0.95,
        )
        clear = aligned[method]["norm"] > 0.1
        if clear.any():
            least = aligned[method]["cosine"][clear].min()
            claim(f"{method}: least cosine to a true gradient above 0.1", "0.95", f"{least:.4f}", least >= 0.95)
    for method, deviation in deviations.items():
        worst = float(deviation.max())
        claim(f"{method} ends where its data's moments say", "within 3 s.e.", f"{worst:.1f} s.e.", worst <= 3)
    is_centred = dataset.name == "uniform" or (dataset.name in ("gaussian", "point") and dataset.centre == (0.0, 0.0))
    for method in STATIC_METHODS if is_centred else ():
        greatest = float(returns[method][..., -1].max())
        claim(
            f"{method} on centred data stays more than 10 % off",
            f"below {(1 - CLOSE) * best:.3f}",
            f"{greatest:.3f}",
            greatest < (1 - CLOSE) * best,
        )
    return rows


def end_rows(results: Results, returns: dict[str, np.ndarray]) -> Iterable[Sequence[Any]]:
    """One row a method and seed."""
    for method, path in results.paths.items():
        for draw, seed in np.ndindex(path.theta.shape[:2]):
            yield method, draw, seed, *_digits(*path.theta[draw, seed, -1], returns[method][draw, seed, -1])


def path_rows(results: Results, returns: dict[str, np.ndarray]) -> Iterable[Sequence[Any]]:
    """One row a method, seed and update."""
    for method, path in results.paths.items():
        for draw, seed, update in np.ndindex(path.theta.shape[:3]):
            where = (draw, seed, update)
            yield method, *where, *_digits(*path.theta[where], returns[method][where])


def grid_rows(results: Results, basin: dict[str, np.ndarray]) -> Iterable[Sequence[Any]]:
    """One row a method and start."""
    for method, path in results.grid.items():
        for draw, start in np.ndindex(path.theta.shape[:2]):
            ends = _digits(*path.theta[draw, start, 0], *path.theta[draw, start, -1])
            yield method, draw, *ends, basin[method][draw, start]


def sample_rows(results: Results) -> Iterable[Sequence[Any]]:
    """One row a method, draw and policy."""
    for method, samples in results.samples.items():
        for draw, at in np.ndindex(samples.shape[:2]):
            cloud = samples[draw, at]
            yield method, draw, *_digits(*results.policies[at], *cloud.mean(axis=0), *cloud.std(axis=0))


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV, compressed where its name ends in `.gz`."""
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _digits(*values: Any) -> list[str]:
    return [f"{value:.5g}" for value in values]


def _pair(values: Sequence[float] | np.ndarray) -> str:
    return f"{values[0]:.3f}, {values[1]:.3f}"
