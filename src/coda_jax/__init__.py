"""CODA: coordination via on-policy diffusion for multi-agent offline reinforcement learning, in JAX.

The names below are the public API; modules and names that are not exported here may change.
"""

import importlib.metadata

from coda_jax.artefact import ArtefactError
from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance
from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.disagreement import keep_agreed
from coda_jax.augmentation.dynamics_guide import DynamicsScore
from coda_jax.augmentation.guided import guided
from coda_jax.augmentation.inpainting import inpainted
from coda_jax.augmentation.model_based import PriorWithDynamics, model_consequences, model_rollouts
from coda_jax.augmentation.oracle import oracle
from coda_jax.augmentation.proximal_replay import proximal_replay
from coda_jax.augmentation.unconditional import unconditional
from coda_jax.coda import across_seeds, make_trainer
from coda_jax.data.conventions import load_vault
from coda_jax.data.dataset import (
    episodes_from_arrays,
    make_dataset,
    one_step_dataset,
    sample_windows,
    split_episodes,
)
from coda_jax.data.named import named_dataset
from coda_jax.data.synthetic import episodes_from_windows
from coda_jax.data.vault import write_vault
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig, heun_sample
from coda_jax.dynamics.ensemble import DynamicsConfig, make_dynamics
from coda_jax.dynamics.saved import load_dynamics, save_dynamics
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.mamujoco import make as make_env
from coda_jax.envs.rollout import episode_returns, rollout
from coda_jax.marl.iddpg_bc import IddpgBcConfig, iddpg_bc
from coda_jax.marl.input_scale import raw_inputs, standardised_inputs
from coda_jax.marl.learner import Learner, RowWeights, uniform_weights
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.marl.maddpg_cql import MaddpgCqlConfig, maddpg_cql
from coda_jax.policy import Policy, load_policy, policy_of, save_policy
from coda_jax.presets import PRESETS
from coda_jax.prior import fit_prior, load_prior, make_model, sample_trajectories, save_prior
from coda_jax.schedule import CodaConfig
from coda_jax.types import TaskSpec, Trajectory

__version__ = importlib.metadata.version("coda-jax")

__all__ = [
    "PRESETS",
    "AdaptiveGuidance",
    "ArtefactError",
    "Augmentation",
    "CodaConfig",
    "DynamicsConfig",
    "DynamicsScore",
    "EnvState",
    "Environment",
    "GeneratorConfig",
    "IddpgBcConfig",
    "Learner",
    "MaddpgBcConfig",
    "MaddpgCqlConfig",
    "Policy",
    "PriorWithDynamics",
    "RowWeights",
    "SamplerConfig",
    "TaskSpec",
    "Trajectory",
    "across_seeds",
    "episode_returns",
    "episodes_from_arrays",
    "episodes_from_windows",
    "fit_prior",
    "guided",
    "heun_sample",
    "iddpg_bc",
    "inpainted",
    "keep_agreed",
    "load_dynamics",
    "load_policy",
    "load_prior",
    "load_vault",
    "maddpg_bc",
    "maddpg_cql",
    "make_dataset",
    "make_dynamics",
    "make_env",
    "make_model",
    "make_trainer",
    "model_consequences",
    "model_rollouts",
    "named_dataset",
    "one_step_dataset",
    "oracle",
    "policy_of",
    "proximal_replay",
    "raw_inputs",
    "rollout",
    "sample_trajectories",
    "sample_windows",
    "save_dynamics",
    "save_policy",
    "save_prior",
    "split_episodes",
    "standardised_inputs",
    "unconditional",
    "uniform_weights",
    "write_vault",
]
