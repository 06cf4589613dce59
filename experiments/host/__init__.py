"""Host-side support of the commands: console, errors, files, caches, checkpoints, run folders, plots."""
