"""The share of on-policy data that frees the agents of a polynomial game: `python -m experiments.share`.

Theory alone: no policy is trained. Prints the least share and the points at which the agents end, and draws them
against the share.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coda_jax.envs.polynomial import Action, PolynomialGame, optima
from experiments.games.settings import GameName, GameSettings, dataset_of, game_of
from experiments.games.share import Field, ascend, evaluate, exact_marginals, is_stable, least_share, stationary_points
from experiments.games.theory import Marginals
from experiments.host.console import print_table, say
from experiments.host.errors import one_line_errors, parse_command
from experiments.host.plots import panels

SHARES = np.linspace(0.0, 1.0, 101)


@dataclasses.dataclass(frozen=True)
class ShareConfig(GameSettings):
    """Computes how the points at which the agents end depend on the share of on-policy data."""

    game: GameName = "twin-peaks"
    """Game."""
    start: tuple[Action, Action] = (-0.64, 0.65)
    """Joint policy from which the agents find the data's own point; by default the paper's start."""
    output: Path | None = None
    """PNG for the picture; by default none is drawn."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        run(parse_command(ShareConfig, args))


def run(config: ShareConfig) -> None:
    """Prints the table and draws the picture.

    Raises:
        UserError: an unknown game or dataset.
    """
    game, dataset = game_of(config), dataset_of(config)
    marginals = exact_marginals(game, dataset)
    start = np.array(config.start)
    share = least_share(game, marginals, start)
    rows = []
    for name, field in (
        ("recorded data alone", Field(game, marginals, 0.0)),
        ("half on-policy", Field(game, marginals, 0.5)),
        ("on-policy data alone, or actor on synthetic rows", Field(game, marginals, 1.0)),
    ):
        end = ascend(field, start)
        reward = round(value(game, end), 4) + 0.0  # no minus zero
        rows.append({"data of the actor": name, "ends at": pair(end), "reward": f"{reward:.4f}"})
    points, best = optima(game)
    rows.append({"data of the actor": "optimum", "ends at": " ".join(map(pair, points)), "reward": f"{best:.4f}"})
    print_table(f"{game.name}, {dataset.name} data, from {pair(start)}", rows)
    say(
        "the data's own point is stable at every share"
        if share is None
        else f"least share of on-policy data that frees the agents: {share:.4f}"
    )
    if config.output is not None:
        draw(config.output, game, dataset.name, marginals, share)
        say(f"picture: {config.output}")


def value(game: PolynomialGame, theta: np.ndarray) -> float:
    """The reward of a joint policy."""
    return float(evaluate(np.asarray(game.coefficients), theta))


def pair(theta: np.ndarray) -> str:
    """A joint policy in words."""
    x, y = np.round(theta, 3) + 0.0
    return f"({x:g}, {y:g})"


def draw(path: Path, game: PolynomialGame, dataset: str, marginals: Marginals, share: float | None) -> None:
    """Stationary points against the share: the first agent's action, and the reward; open where they are unstable."""
    with panels(path, 1, 2, (10.0, 3.8)) as axes:
        for alpha in SHARES:
            field = Field(game, marginals, alpha)
            for point in stationary_points(field):
                fill = "C0" if is_stable(field, point) else "none"
                for panel, height in zip(axes[0], (point[0], value(game, point)), strict=True):
                    panel.plot(alpha, height, "o", markersize=3.5, markerfacecolor=fill, markeredgecolor="C0")
        axes[0, 1].axhline(optima(game)[1], color="0.4", linestyle="--", linewidth=1, label="optimum")
        for panel, label in zip(axes[0], ("action of the first agent", "reward"), strict=True):
            if share is not None:
                panel.axvline(share, color="C3", linewidth=1, label=f"least share, {share:.3f}")
            panel.set(title=f"{game.name}, {dataset} data", xlabel="share of on-policy data", ylabel=label)
            panel.plot([], [], "o", color="C0", markersize=3.5, label="stable")
            panel.plot([], [], "o", markerfacecolor="none", markeredgecolor="C0", markersize=3.5, label="unstable")
            panel.legend(fontsize=8)


if __name__ == "__main__":
    main()
