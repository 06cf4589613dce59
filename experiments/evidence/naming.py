"""Names of methods and settings on the page of results and in its pictures."""

from typing import Any

METHODS = {
    "none": "no augmentation",
    "unconditional": "unconditional",
    "model": "model alone",
    "simulated": "oracle",
    "coda": "CODA",
}
"""Augmentations by the values of their flag; `simulated` is the oracle."""

SETTINGS = {
    "guidance": "lambda",
    "guidance_target": "target spread",
    "guidance_start": "first lambda",
    "training.mix_ratio": "alpha (mix)",
    "learner.alpha_bc": "alpha_BC",
    "learner.discount": "discount",
    "learner.decay_updates": "decay of the learning rate",
    "diffusion.num_steps": "N",
    "diffusion.solver": "solver",
    "diffusion.sigma_min": "lowest noise level",
    "diffusion.sigma_max": "highest noise level",
    "diffusion.through_denoiser": "guided through the denoiser",
    "training.num_trajectories": "trajectories a round",
    "training.static_trajectories": "trajectories, once",
    "training.num_rounds": "rounds",
    "training.burn_in": "burn-in rounds",
    "training.actor_rows": "actor's rows",
    "training.cloning_rows": "cloned rows",
    "training.critic_rows": "critic's rows",
    "consequences": "consequences by",
    "score_weight": "weight of the score",
    "inpainting_passes": "inpainting passes",
    "inpainting_sigma": "inpainting noise",
    "keep_fraction": "share kept",
    "dynamics.num_updates": "updates of the one-step model",
    "recorded_steps": "recorded steps",
    "recorded_actions": "recorded actions",
    "rollout_noise": "noise of roll-outs",
    "rollout_segments": "trajectories of a roll-out",
    "training.updates_per_epoch": "updates an epoch",
    "training.evaluation_episodes": "evaluation episodes",
    "fit_seed": "fit seed",
    "denoiser.optimizer": "optimiser of the fit",
    "denoiser.batch_size": "batch of the fit",
    "denoiser.num_updates": "updates of the fit",
}
"""Settings; any other keeps its dotted name."""


def method_name(method: str) -> str:
    """A method: an augmentation, with the guidance scale of CODA."""
    name, _, guidance = method.partition(" ")
    return METHODS[name] + (f", λ = {guidance}" if guidance else "")


def guidance_name(through_denoiser: bool, recorded_steps: int) -> str:
    """The reach of guidance: the actions, as in the paper, or everything that depends on them; and what is held."""
    reach = "through the denoiser" if through_denoiser else "actions alone"
    held = "recorded starts" if recorded_steps == 1 else f"{recorded_steps} recorded steps"
    return f"{reach}, {held}" if recorded_steps else reach


def setting_name(setting: str) -> str:
    """A setting, by its dotted name."""
    return SETTINGS.get(setting, setting)


def value_name(value: Any) -> str:
    """The value of a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def seeds_name(seeds: list[int]) -> str:
    """Seeds, ascending; consecutive ones as a range, `0-3`."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
