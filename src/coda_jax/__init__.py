"""CODA: coordination via on-policy diffusion for multi-agent offline RL."""
