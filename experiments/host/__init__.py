"""What commands share on the host: console, errors, files, caches, checkpoints, run folders, plots."""
