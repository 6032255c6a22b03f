"""Test session: 8 virtual CPU devices, run-time shape checks, a persistent compilation cache."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices share the cores: on a busy machine some come so late to a collective that XLA would
# take them for dead and end the process.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
    " --xla_cpu_collective_call_terminate_timeout_seconds=1200"
)
CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Every annotated function of the package checks its arrays' shapes and dtypes while tests run.
install_import_hook("jaxssl", "beartype.beartype")
