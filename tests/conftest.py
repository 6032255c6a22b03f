"""Test session: 8 virtual CPU devices, run-time shape checks, a persistent compilation cache."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Every annotated function of the package checks its arrays' shapes and dtypes while tests run.
install_import_hook("jaxssl", "beartype.beartype")
