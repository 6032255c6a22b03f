"""What programs ask of the compiler on a CPU, and that they do without where they must."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxssl import compilation
from jaxssl.compilation import compiler_options, known_cpu_options, target
from jaxssl.distributed import data_mesh, on_mesh


@pytest.fixture
def asked_anew():
    known_cpu_options.cache_clear()
    yield
    known_cpu_options.cache_clear()


def test_a_program_on_a_cpu_gets_every_option(thorough):
    """This version of XLA knows them all: one that goes missing would go unnoticed."""
    assert compiler_options() == compiler_options(data_mesh(2)) == compilation.CPU_OPTIONS
    assert jax.jit(lambda x: x + 1, compiler_options=compiler_options())(1) == 2


def test_an_option_that_xla_does_not_know_is_left_out_and_asked_for_once(
    thorough, asked_anew, monkeypatch
):
    known = compilation.CPU_OPTIONS
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1", **known})
    asked, is_known = [], compilation._is_known

    def counting(*option):
        asked.append(option)
        return is_known(*option)

    monkeypatch.setattr(compilation, "_is_known", counting)
    assert compiler_options() == compiler_options() == known
    assert len(asked) == 1 + len(known)


def test_quick_compilation_and_other_devices_get_none(monkeypatch, thorough):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == {}
    monkeypatch.undo()
    jax.config.update("jax_disable_most_optimizations", True)
    assert compiler_options() == {}


def test_the_target_is_the_platform_of_the_mesh_around():
    assert target() == "cpu"
    assert on_mesh(target, data_mesh(2))() == "cpu"
    chip = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((4,), ("data",), abstract_device=chip)):
        assert target() == "tpu"
