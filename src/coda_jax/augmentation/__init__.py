"""Sources of synthetic trajectories: the protocol (`base`), and one value of it a file."""
