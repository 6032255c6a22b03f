"""What is known of the platform when a program is traced, and how XLA is told to use a CPU.

XLA's defaults leave half of a CPU unused. What helps is of two kinds: options, which a program
gives to its own top-level ``jax.jit`` (inner ones may have none), and forms of the same mathematics
(`jaxssl.models.conv`, `jaxssl.models.norm`), chosen where `target` is "cpu".
"""

import functools

import jax
from jax.sharding import Mesh

CPU_OPTIONS = {
    # YNNPACK, which convolutions go to by default, is slower than Eigen at most sizes that training
    # has and often uses a single thread.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # That pass takes the optimisation barriers of `jaxssl.models` out before they have any effect.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


def target() -> str:
    """The platform for which what is being traced will be compiled: "cpu", "gpu", "tpu".

    That of the mesh around it (see `jaxssl.distributed.on_mesh`), which need not be of devices that
    this machine has; without one, that of JAX's default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def compiler_options(mesh: Mesh | None = None) -> dict[str, str]:
    """Options for a top-level ``jax.jit``: on a CPU those that make its program fast.

    None elsewhere, and none where ``jax_disable_most_optimizations`` asks for a quick compilation,
    which they would slow down.

    Args:
      mesh: of the devices that it runs on; None: JAX's default device.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    if platform != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return {}
    return dict(known_cpu_options())


@functools.cache
def known_cpu_options() -> dict[str, str]:
    """Those of `CPU_OPTIONS` that this version of XLA knows; it is asked once."""
    return {name: value for name, value in CPU_OPTIONS.items() if _is_known(name, value)}


def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
