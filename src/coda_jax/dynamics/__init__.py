"""Learned one-step models: an ensemble fitted to recorded steps, and the environment that it makes."""
