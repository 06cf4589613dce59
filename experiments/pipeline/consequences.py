"""CODA by the settings of a run: where the consequences of guided trajectories come from, and which are kept."""

from typing import Any

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.disagreement import keep_agreed
from coda_jax.augmentation.dynamics_guide import DynamicsScore
from coda_jax.augmentation.guided import guided
from coda_jax.augmentation.inpainting import inpainted
from coda_jax.augmentation.model_based import PriorWithDynamics, model_consequences
from coda_jax.dynamics.ensemble import Dynamics, make_dynamics
from coda_jax.envs.base import Environment
from coda_jax.marl.learner import Learner
from coda_jax.prior import Prior, TrajectoryModel
from experiments.pipeline.settings import ExperimentConfig


def coda(
    config: ExperimentConfig,
    env: Environment,
    model: TrajectoryModel,
    learner: Learner,
    prior: Prior,
    dynamics: Dynamics | None,
) -> tuple[Augmentation, Any]:
    """The guided trajectories that the settings ask for, and the fitted models that they are sampled from.

    Args:
        config: the settings.
        env: the task of the data.
        model: the static side of the prior.
        learner: whose policy is followed.
        prior: the fitted prior.
        dynamics: the fitted one-step model; None where `needs_dynamics` is false.
    """
    recorded = config.recorded_steps, config.recorded_actions
    one_step = make_dynamics(env.spec, config.dynamics)
    score = DynamicsScore(env, one_step, config.score_weight) if config.consequences == "score" else None
    noise = 0.0 if config.consequences == "model" else config.rollout_noise
    augmentation, fitted = guided(model, learner, config.guidance_scale, *recorded, noise, score), prior

    def with_dynamics(fitted: Any) -> PriorWithDynamics:
        assert dynamics is not None
        return PriorWithDynamics(prior=fitted, dynamics=dynamics)

    match config.consequences:
        case "score":
            fitted = with_dynamics(fitted)
        case "model":
            noise, prefix = config.rollout_noise, augmentation.prefix
            augmentation = model_consequences(
                augmentation, env, one_step, learner, noise, prefix, config.rollout_segments
            )
            fitted = with_dynamics(fitted)
        case "inpaint":
            passes, sigma = config.inpainting_passes, config.inpainting_sigma
            augmentation = inpainted(augmentation, model, passes, sigma, *recorded)
    if config.keep_fraction < 1.0:
        augmentation, fitted = keep_agreed(augmentation, one_step, config.keep_fraction), with_dynamics(fitted)
    return augmentation, fitted
