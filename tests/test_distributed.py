"""What is said of a job that cannot work, before it starts to."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxssl import distributed
from jaxssl.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def alone(monkeypatch):
    """No launcher's environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_mesh_takes_the_first_devices_or_all():
    assert distributed.data_mesh().size == jax.device_count()
    assert list(distributed.data_mesh(2).devices) == jax.devices()[:2]


def test_devices_are_ordered_by_owner_in_whatever_order_they_come():
    here = jax.devices()
    assert list(distributed.data_mesh(devices=here[::-1]).devices) == here
    assert list(distributed.data_mesh(2, devices=here[5:2:-1]).devices) == here[3:5]


def test_only_the_data_axis_divides_a_batch():
    members = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("member", "data"))
    distributed.check_batch_size(6, members)
    with pytest.raises(UserError, match=r"batch_size=7 does not divide over 2 devices.* such as 6"):
        distributed.check_batch_size(7, members)
    batch = distributed.global_batch(members, {"image": np.zeros((6, 3)), "index": np.arange(6)})
    assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in batch.values()} == {3}


def test_one_layout_for_state_and_batch():
    mesh = distributed.data_mesh(2)
    state = {"w": np.zeros((4, 2), np.float32), "rest": [np.zeros(3, np.int32)]}
    for tree in (distributed.layout(mesh, state), distributed.layout(mesh, state, rows=True)):
        assert jax.tree.structure(tree) == jax.tree.structure(state)
    assert distributed.layout(mesh, state)["rest"][0].is_fully_replicated
    rows = distributed.templates(mesh, {"x": np.zeros((4, 2), np.float32)}, rows=True)["x"]
    assert (rows.shape, rows.dtype) == ((4, 2), np.float32)
    assert rows.sharding.shard_shape((4, 2)) == (2, 2)


def test_alone_nothing_is_exchanged():
    assert distributed.agree("a number", lambda: (1, 2)) == (1, 2)
    assert distributed.gather("a number", 3) == [3]
    distributed.check_equal("a number", 3)
    distributed.all_or_none("a number", None)
    with pytest.raises(UserError, match=r"^process 0 of 1 sees nothing\.$"):
        distributed.all_or_none("a number", "sees nothing.")


def test_values_that_differ_are_told_or_where_they_differ(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda what, value: [value, value, 5])
    with pytest.raises(UserError, match=r"^a number is 3 on process 0 and 5 on process 2: start"):
        distributed.check_equal("a number", 3)
    with pytest.raises(UserError, match=r"^numbers of process 0 and of process 2 differ \(3 < 5"):
        distributed.check_equal("numbers", 3, lambda one, other: [f"{one} < {other}"])


@pytest.mark.parametrize("number", [-1, 10**6])
def test_a_number_of_devices_that_cannot_be_is_named(number):
    with pytest.raises(UserError, match=rf"={number} .*0 for all"):
        distributed.data_mesh(number)


@pytest.mark.parametrize(
    ("owners", "number", "shares"),
    [
        ((0, 1), 1, "1 of 2 devices give process 1 of 2 a share of 0 and process 0 one of 1"),
        ((0, 0, 1, 1), 3, "3 of 4 devices give process 1 of 2 a share of 1"),
        ((1, 0, 1), 0, "3 of 3 devices give process 0 of 2 a share of 1"),
    ],
)
def test_every_process_needs_the_same_share_of_the_mesh(monkeypatch, owners, number, shares):
    devices = [types.SimpleNamespace(process_index=o, id=i) for i, o in enumerate(owners)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=shares):
        distributed.data_mesh(number)


def test_without_a_job_to_join_the_launcher_and_the_flag_are_named(alone):
    def nobody():
        raise ValueError("coordinator_address should be defined.")

    alone.setattr(jax.distributed, "initialize", nobody)
    with pytest.raises(UserError, match=r"coordinator_address.*launch/local\.py.*run\.distributed"):
        distributed.initialize()


def test_a_job_cannot_be_joined_after_the_first_use_of_a_device(alone):
    jax.devices()
    for name, value in zip(VARIABLES, ("127.0.0.1:1", "2", "1"), strict=True):
        alone.setenv(name, value)
    with pytest.raises(UserError, match=r"RuntimeError: .* must be called before"):
        distributed.initialize()


def test_half_of_the_launchers_environment_is_named(alone):
    alone.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS"):
        distributed.initialize()


def test_several_processes_without_the_flag_are_refused(alone):
    distributed.check_launched(False)
    alone.setenv("JAX_NUM_PROCESSES", "1")
    distributed.check_launched(False)
    alone.setenv("JAX_NUM_PROCESSES", "2")
    distributed.check_launched(True)
    with pytest.raises(UserError, match=r"2 processes.*--config\.run\.distributed"):
        distributed.check_launched(False)
