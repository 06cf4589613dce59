"""Diffusion over trajectories: noise schedule, denoiser, guidance and samplers; it knows nothing of agents."""
