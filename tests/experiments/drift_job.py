"""The main job in an environment without physics, in its own process, for tests that kill it."""

import os
import sys

import experiments.pipeline.fitting
from coda_jax.envs import mamujoco
from experiments.host import hosts
from experiments.mamujoco import main
from tests.drift import DRIFT

if __name__ == "__main__":
    mamujoco.make = lambda task: DRIFT
    experiments.pipeline.fitting.UPDATES_PER_CHUNK = 2
    hosts.JOIN_SECONDS = int(os.environ.get("JOIN_SECONDS", hosts.JOIN_SECONDS))
    main(sys.argv[1:])
