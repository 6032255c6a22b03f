import dataclasses
import errno
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxssl import checkpoint
from jaxssl.checkpoint import CheckpointReader, Checkpoints
from jaxssl.errors import UserError
from jaxssl.upgrade import FORMAT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: nnx.State
    rest: nnx.State
    optimizer: object
    key: jax.Array


class Net(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))


def make_state(seed, devices=1):
    _, params, rest = nnx.split(Net(nnx.Rngs(seed)), nnx.Param, ...)
    optimizer = optax.sgd(0.1, momentum=0.9).init(params)
    state = State(jnp.int32(seed), params, rest, optimizer, jax.random.key(seed))
    return jax.device_put(state, NamedSharding(mesh_of(devices), PartitionSpec()))


def template_of(state, devices=1):
    sharding = NamedSharding(mesh_of(devices), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert bits(x) == bits(y)


def save_steps(directory, steps, keep_last=10, keep_every=0):
    with Checkpoints(directory, keep_last, keep_every) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step))
    return CheckpointReader(directory)


def test_a_state_comes_back_bit_for_bit_on_other_device_counts(tmp_path):
    state = make_state(3, devices=8)
    with Checkpoints(tmp_path, 3, 0) as checkpoints:
        assert checkpoints.save(3, state)
        checkpoints.wait()
        step, on_one = checkpoints.restore(template_of(state, devices=1))
        assert step == 3
        assert_equal(on_one, state)
        assert all(leaf.sharding.num_devices == 1 for leaf in jax.tree.leaves(on_one))
        checkpoints.save(4, on_one)
    step, on_two = CheckpointReader(tmp_path).restore(template_of(state, devices=2))
    assert step == 4
    assert_equal(on_two, state)
    assert all(leaf.sharding.num_devices == 2 for leaf in jax.tree.leaves(on_two))


def test_sharded_leaves_keys_and_odd_dtypes_are_exact(tmp_path):
    rows = NamedSharding(mesh_of(8), PartitionSpec("data"))
    state = {
        "queue": jax.device_put(jnp.arange(64.0).reshape(16, 4), rows),
        "keys": jax.device_put(jax.random.split(jax.random.key(1), 8), rows),
        "rbg": jax.random.key(5, impl="rbg"),
        "half": jnp.array([1.5, -0.0, 3e38], jnp.bfloat16),
        "flag": jnp.array([True, False]),
        "numpy": np.arange(5, dtype=np.int16),
        "python": 7,
        "list": [jnp.uint32(2**32 - 1), (jnp.float16(1e-7),)],
    }
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(0, {**state, "rbg": jax.device_put(state["rbg"], jax.devices()[0])})
    halves = NamedSharding(mesh_of(2), PartitionSpec("data"))
    template = jax.eval_shape(lambda: state)
    template["queue"] = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=halves)
    _, restored = CheckpointReader(tmp_path).restore(template)
    assert restored["queue"].sharding == halves
    assert_equal(restored, jax.tree.map(jnp.asarray, state))


def test_the_state_may_be_donated_at_once(tmp_path):
    update = jax.jit(lambda x: jax.tree.map(lambda a: a * -3.0 + 1.0, x), donate_argnums=0)
    first = {"w": jnp.arange(2.0**20), "v": jnp.ones((256, 256))}
    expected = jax.device_get(jax.tree.map(jnp.copy, first))
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(0, first)
        state = first
        for _ in range(20):
            state = update(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        _, restored = checkpoints.restore(jax.eval_shape(lambda: expected))
    assert_equal(jax.device_get(restored), expected)


def test_keeps_the_last_and_the_regular_ones(tmp_path):
    reader = save_steps(tmp_path, [2, 4, 6, 8, 9, 10, 11], keep_last=2, keep_every=4)
    assert reader.steps() == [4, 8, 10, 11]
    for step in reader.steps():
        found, state = reader.restore(template_of(make_state(0)), step)
        assert found == step
        assert_equal(state, make_state(step))


def test_saving_a_step_again_changes_nothing_and_an_earlier_one_is_refused(tmp_path):
    with Checkpoints(tmp_path, 5, 0) as checkpoints:
        assert checkpoints.save(5, make_state(5))
        assert not checkpoints.save(5, make_state(6))
        with pytest.raises(UserError, match=r"has step 5 already, so step 4"):
            checkpoints.save(4, make_state(4))
    _, state = CheckpointReader(tmp_path).restore(template_of(make_state(0)))
    assert_equal(state, make_state(5))


def test_part_of_a_state_is_restored_alone(tmp_path):
    state = make_state(3, devices=8)
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(3, state)
    whole = template_of(state, devices=2)
    part = {"params": {"encoder": dict(whole.params)["encoder"]}}
    step, restored = CheckpointReader(tmp_path).restore_partial(part)
    assert step == 3
    expected = jax.tree.leaves(dict(state.params)["encoder"])
    found = jax.tree.leaves(restored)
    assert len(found) == 4
    for x, y in zip(found, expected, strict=True):
        assert bits(x) == bits(y)
        assert x.sharding.num_devices == 2
    with pytest.raises(UserError, match="params/decoder is not in it"):
        CheckpointReader(tmp_path).restore_partial(
            {"params": {"decoder": jax.ShapeDtypeStruct((1,), jnp.float32)}}
        )


def test_another_structure_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3), "b": jnp.zeros(2)})
    reader = CheckpointReader(tmp_path)
    with pytest.raises(UserError, match=r"c is not in it; b is in it alone; use"):
        reader.restore({"a": jnp.zeros(3), "c": jnp.zeros(2)})
    with pytest.raises(UserError, match=r"a is float32\[3\] in it and float32\[4\] here"):
        reader.restore({"a": jnp.zeros(4), "b": jnp.zeros(2)})
    with pytest.raises(UserError, match=r"a is float32\[3\] in it and int32\[3\] here"):
        reader.restore({"a": jnp.zeros(3, jnp.int32), "b": jnp.zeros(2)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value):
    good = {"a": jnp.zeros(3), "inner": {"b": jnp.zeros(2)}, "n": jnp.int32(1)}
    bad = {**good, "inner": {"b": jnp.array([0.0, value])}}
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(7, good)
        with pytest.raises(UserError, match=r"step 8 is not finite \(first in inner/b\)"):
            checkpoints.save(8, bad)
    assert CheckpointReader(tmp_path).steps() == [7]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damage_to_any_file_is_found(tmp_path, warnings_logged):
    """Whatever happens to whichever file, the step before is what comes back."""
    reader = save_steps(tmp_path, [1, 2])
    template = template_of(make_state(0))
    newest = tmp_path / "2"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    kinds = {path.relative_to(newest).parts[0] for path in files}
    assert kinds >= {"state", "leaves.json", "manifest.json", "commit_success.txt"}
    assert len(files) > 8
    for path in files:
        original = path.read_bytes()
        name = path.relative_to(newest).as_posix()
        # What Orbax writes after the manifest holds nothing that is read: only its loss counts.
        after = name in ("_CHECKPOINT_METADATA", "commit_success.txt")
        for harm in [pathlib.Path.unlink] + ([] if after else [flip, truncate]):
            harm(path)
            warnings_logged.clear()
            step, state = reader.restore(template)
            assert step == 1, f"{harm.__name__} {name}"
            assert_equal(state, make_state(1))
            assert len(warnings_logged) == 1
            assert "passed over for the one before" in warnings_logged[0]
            with pytest.raises(UserError, match="is damaged"):
                reader.restore(template, step=2)
            path.write_bytes(original)
    warnings_logged.clear()
    assert reader.restore(template)[0] == 2
    assert warnings_logged == []


def test_an_added_or_a_half_copied_file_is_found(tmp_path, warnings_logged):
    reader = save_steps(tmp_path, [1, 2])
    (tmp_path / "2" / "state" / "d" / "stray").write_text("x")
    assert reader.restore(template_of(make_state(0)))[0] == 1
    assert "state/d/stray does not belong to it" in warnings_logged[0]


def test_a_checkpoint_of_a_newer_format_is_left_as_it_is(tmp_path, warnings_logged):
    """Whatever else a newer format may hold."""
    save_steps(tmp_path, [1, 2])
    newer = (FORMAT + 1, FORMAT + 2)
    contents = ('{"format": %d, "step": 2, "files": {}}', '{"format": %d, "parts": []}')
    for content in (text % form for text, form in zip(contents, newer, strict=True)):
        (tmp_path / "2" / "manifest.json").write_text(content)
        (tmp_path / "2" / "leaves.json").unlink(missing_ok=True)
        with Checkpoints(tmp_path, 1, 0) as checkpoints:
            for step in (None, 2):
                with pytest.raises(
                    UserError, match=r"checkpoint .*2 was written by a newer jaxssl"
                ):
                    checkpoints.restore(template_of(make_state(0)), step)
            assert checkpoints.restore(template_of(make_state(0)), 1)[0] == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
        assert (tmp_path / "2" / "manifest.json").read_text() == content
    assert warnings_logged == []


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    save_steps(tmp_path, [1, 2])

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "manifest.json")

    monkeypatch.setattr("jaxssl.manifest.hashlib.file_digest", refuse)
    with pytest.raises(PermissionError):
        CheckpointReader(tmp_path).restore(template_of(make_state(0)))


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_step_that_its_run_removes_while_it_is_read_is_chosen_again(
    tmp_path, monkeypatch, warnings_logged, moment
):
    save_steps(tmp_path / "run", [1])
    save_steps(tmp_path / "later", [2])
    read, damage = checkpoint._read, checkpoint.damage_of
    calls = []

    def go_on():
        """As a run does that keeps its last checkpoint alone."""
        if not calls:
            shutil.copytree(tmp_path / "later" / "2", tmp_path / "run" / "2")
            shutil.rmtree(tmp_path / "run" / "1")
        calls.append(moment)

    def while_hashed(folder):
        if moment == "before":
            go_on()
        return damage(folder)

    def while_read(folder, *rest):
        if moment == "within":
            go_on()
        state = read(folder, *rest)
        if moment == "after":
            go_on()
        return state

    monkeypatch.setattr(checkpoint, "damage_of", while_hashed)
    monkeypatch.setattr(checkpoint, "_read", while_read)
    step, state = CheckpointReader(tmp_path / "run").restore(template_of(make_state(0)))
    assert step == 2
    assert_equal(state, make_state(2))
    assert len(calls) == 2
    assert warnings_logged == []


def test_a_step_that_was_asked_for_and_is_removed_meanwhile_is_one_sentence(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])
    read = checkpoint._read

    def while_read(folder, *rest):
        shutil.rmtree(folder)
        return read(folder, *rest)

    monkeypatch.setattr(checkpoint, "_read", while_read)
    with pytest.raises(UserError, match=r"--step=1 of .* is gone: choose another"):
        CheckpointReader(tmp_path).restore(template_of(make_state(0)), 1)


def test_what_is_left_is_promised_only_if_there_is_something(tmp_path):
    bad = {"a": jnp.array([np.nan])}
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        with pytest.raises(UserError, match=r"not finite .*; none was saved before\.$"):
            checkpoints.save(8, bad)
        checkpoints.save(7, {"a": jnp.zeros(1)})
        checkpoints.wait()
        with pytest.raises(UserError, match=r"the checkpoint of step 7 is intact\.$"):
            checkpoints.save(8, bad)


def test_as_in_the_cloud_a_checkpoint_is_sealed_where_it_stays(tmp_path, monkeypatch):
    """Orbax's way of writing there, on this disk: its name from the beginning."""
    options = ocp.CheckpointManagerOptions

    def as_in_the_cloud(**settings):
        from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath

        return options(**settings, temporary_path_class=CommitFileTemporaryPath)

    monkeypatch.setattr(ocp, "CheckpointManagerOptions", as_in_the_cloud)
    monkeypatch.setattr(checkpoint, "is_local", lambda path: False)
    reader = save_steps(tmp_path, [1, 2])
    (tmp_path / "3" / "state").mkdir(parents=True)  # killed in its midst
    assert reader.steps() == [1, 2]
    step, state = reader.restore(template_of(make_state(0)))
    assert step == 2
    assert_equal(state, make_state(2))


def test_a_checkpoint_under_another_steps_name_is_found(tmp_path, warnings_logged):
    reader = save_steps(tmp_path, [1, 2])
    (tmp_path / "2").rename(tmp_path / "5")
    assert reader.restore(template_of(make_state(0)))[0] == 1
    assert "manifest.json is of step 2" in warnings_logged[0]


def test_a_run_goes_on_after_a_damaged_checkpoint(tmp_path, warnings_logged):
    save_steps(tmp_path, [1, 2, 3])
    flip(tmp_path / "3" / "leaves.json")
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        step, state = checkpoints.restore(template_of(make_state(0)))
        assert step == 2
        assert_equal(state, make_state(2))
        checkpoints.save(3, make_state(3))
        checkpoints.save(4, make_state(4))
    assert CheckpointReader(tmp_path).steps() == [3, 4]
    assert (tmp_path / "3.damaged").is_dir()
    _, state = CheckpointReader(tmp_path).restore(template_of(make_state(0)), step=3)
    assert_equal(state, make_state(3))


def test_no_checkpoint_left_or_none_of_ours(tmp_path, warnings_logged):
    template = template_of(make_state(0))
    with pytest.raises(UserError, match="holds no checkpoint"):
        CheckpointReader(tmp_path / "absent").restore(template)
    (tmp_path / "foreign" / "12").mkdir(parents=True)
    (tmp_path / "foreign" / "12" / "weights.bin").write_text("x")
    with pytest.raises(UserError, match="holds no checkpoint"):
        CheckpointReader(tmp_path / "foreign").restore(template)
    reader = save_steps(tmp_path / "own", [1, 2])
    with pytest.raises(UserError, match=r"--step=7 is not in .*: choose one of \[1, 2\]"):
        reader.restore(template, step=7)
    for step in (1, 2):
        (tmp_path / "own" / str(step) / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"has 2 checkpoints and none that is sound"):
        reader.restore(template)


def test_an_unfinished_directory_does_not_count_and_is_cleared(tmp_path):
    save_steps(tmp_path, [1])
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    (unfinished / "state" / "_METADATA").write_text("{")
    assert CheckpointReader(tmp_path).restore(template_of(make_state(0)))[0] == 1
    assert unfinished.exists()  # a reader may look at a run that is still writing
    reader = save_steps(tmp_path, [2])
    assert not unfinished.exists()
    assert_equal(reader.restore(template_of(make_state(0)))[1], make_state(2))


@pytest.mark.parametrize(("keep_last", "keep_every"), [(0, 0), (1, -1)])
def test_retention_is_checked(tmp_path, keep_last, keep_every):
    with pytest.raises(UserError, match=r"keep_(last=0|every_steps=-1) must be at least"):
        Checkpoints(tmp_path, keep_last, keep_every)


def test_the_same_name_twice_is_refused(tmp_path):
    with Checkpoints(tmp_path, 1, 0) as checkpoints, pytest.raises(ValueError, match="called a/b"):
        checkpoints.save(1, {"a": {"b": jnp.zeros(1)}, "a/b": jnp.zeros(1)})


def test_a_directory_that_is_moved_ends_the_run_and_is_not_made_again(tmp_path):
    directory = tmp_path / "run" / "checkpoints"
    directory.mkdir(parents=True)
    state = {"w": jnp.arange(4.0)}

    def lost():
        return None if directory.parent.exists() else "the run was moved"

    said = r"^stopped because the run was moved while .* saved step 3 as the last: .* --workdir"
    with Checkpoints(directory, 5, 0, lost) as checkpoints:
        checkpoints.save(3, state)
        checkpoints.wait()
        directory.parent.rename(tmp_path / "moved")
        with pytest.raises(UserError, match=said):
            checkpoints.save(6, state)
    assert not directory.parent.exists()
    assert CheckpointReader(tmp_path / "moved" / "checkpoints").steps() == [3]
    with Checkpoints(directory, 5, 0, lost) as fresh, pytest.raises(UserError, match="saved no s"):
        fresh.check_owned()


def test_a_save_that_was_under_way_when_the_directory_was_lost_is_not_promised(tmp_path):
    clauses = iter([None])  # ours when the save begins, and never again
    with Checkpoints(tmp_path, 5, 0, lambda: next(clauses, "it was taken")) as checkpoints:
        checkpoints.save(3, {"w": jnp.arange(4.0)})
        with pytest.raises(UserError, match=r"^stopped because it was taken .* saved no step"):
            checkpoints.wait()
    assert CheckpointReader(tmp_path).steps() == []
