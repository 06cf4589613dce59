"""What all tests run under: strict numerics, two host devices, a shared cache of compiled programs."""

import logging
import os
import pathlib

# Also where an accelerator exists; before the first import of jax. `JAX_PLATFORMS=cuda` runs the tests there.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import mujoco
from jaxtyping import install_import_hook

# Shapes and dtypes at public boundaries are checked in tests only. The hook must stand before the first import.
install_import_hook("coda_jax", "beartype.beartype")

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)  # enough to shard over; takes effect as long as no backend runs

# Compiled programs outlive a test run, apart from those of real runs.
_CACHE = os.environ.get("CODA_JAX_TEST_CACHE") or pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "coda-jax-tests"
)
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(_CACHE, "xla")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Without a handler, MuJoCo appends its warnings to MUJOCO_LOG.TXT in the working folder.
mujoco.set_mju_user_warning(logging.getLogger("mujoco").warning)  # pyright: ignore[reportAttributeAccessIssue]

# Compiling makes a first example slow; the same examples in every run.
hypothesis.settings.register_profile("coda_jax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("coda_jax")
