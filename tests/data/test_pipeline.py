"""The pipeline: order, blocks, resumption, padding, threads and processes."""

import dataclasses
import itertools
import multiprocessing.context
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxssl.data.pipeline import eval_batches, order, repeats, train_batches, training_rows
from jaxssl.data.sources import ArraySource, FolderSource, array_source, load
from jaxssl.errors import UserError
from jaxssl.interruption import SIGNALS
from jaxssl.randomness import Split


@pytest.fixture
def digits(data_config):
    return load(data_config("digits", validation_fraction=0.1, train_examples=50), "train")


def train(source, *, batch_size=8, start_step=0, num_steps=20, process=(0, 1), **options):
    """All batches of a short training stream."""
    return list(
        train_batches(
            source,
            data_seed=3,
            batch_size=batch_size,
            start_step=start_step,
            num_steps=num_steps,
            process_index=process[0],
            process_count=process[1],
            **options,
        )
    )


def evaluate(source, *, batch_size=16, process=(0, 1), **options):
    return list(
        eval_batches(
            source,
            batch_size=batch_size,
            process_index=process[0],
            process_count=process[1],
            **options,
        )
    )


def flat(batch):
    """A batch with its targets beside the rest."""
    return {**{key: batch[key] for key in batch if key != "targets"}, **batch["targets"]}


def join(batches):
    """Batches one after the other, as one."""
    flattened = [flat(batch) for batch in batches]
    return {key: np.concatenate([batch[key] for batch in flattened]) for key in flattened[0]}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


# The order.


def test_order_is_a_permutation_that_seed_and_epoch_alone_change():
    orders = {(seed, epoch): order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1, 2)}
    for rows in orders.values():
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(np.sort(rows), np.arange(100))
    for one, other in itertools.combinations(orders.values(), 2):
        assert np.mean(one == other) < 0.1
    order.cache_clear()
    np.testing.assert_array_equal(order(1, 2, 100), orders[1, 2])


def test_order_never_changes():
    # Part of every published result: NumPy's Philox, sorted.
    assert order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert order(2**32 - 1, 5, 8).tolist() == [3, 2, 5, 1, 4, 0, 6, 7]


def test_first_rows_of_an_epoch_are_uniform():
    counts = np.bincount([order(seed, 0, 10)[0] for seed in range(2000)], minlength=10)
    # Chi-squared with 9 degrees of freedom, 99.9th percentile.
    assert np.sum((counts - 200) ** 2 / 200) < 27.9


@pytest.mark.parametrize(("batch_size", "n"), [(4, 12), (5, 12), (7, 12), (12, 12), (30, 12)])
def test_training_rows_cut_one_sequence_of_whole_epochs(batch_size, n):
    sequence = [(row, epoch) for epoch in range(20) for row in order(9, epoch, n)]
    for step in range(7):
        rows, epochs = training_rows(step, batch_size, n, 9)
        assert (rows.dtype, epochs.dtype) == (np.int64, np.int32)
        expected = sequence[step * batch_size : (step + 1) * batch_size]
        assert list(zip(rows, epochs, strict=True)) == expected


# Training batches.


def test_training_batches_are_the_rows_of_their_steps(digits):
    for step, batch in enumerate(train(digits)):
        rows, epochs = training_rows(step, 8, len(digits), 3)
        keys = {"image", "index", "split", "epoch", "original_size", "content", "targets"}
        assert set(batch) == keys
        np.testing.assert_array_equal(batch["image"], digits.images[rows])
        np.testing.assert_array_equal(batch["index"], digits.positions[rows])
        np.testing.assert_array_equal(batch["epoch"], epochs)
        np.testing.assert_array_equal(batch["targets"]["label"], digits.targets["label"][rows])
        assert batch["image"].dtype == np.uint8
        for values in (batch["index"], batch["epoch"], batch["targets"]["label"]):
            assert values.dtype == np.int32
        assert batch["original_size"].dtype == np.int32
        assert batch["original_size"].shape == (8, 2)


def test_epochs_are_whole_and_batches_straddle_them(digits):
    batches = train(digits, batch_size=8, num_steps=25)  # 200 rows: 4 epochs of 50
    sequence = join(batches)
    for epoch in range(4):
        seen = sequence["index"][sequence["epoch"] == epoch]
        np.testing.assert_array_equal(np.sort(seen), digits.positions)
    assert [sorted(set(batch["epoch"])) for batch in batches[5:8]] == [[0], [0, 1], [1]]


def test_resuming_at_a_step_is_the_tail_of_the_whole(digits):
    whole = train(digits, num_steps=20)
    for start in (0, 1, 6, 19, 20):
        tail = train(digits, start_step=start, num_steps=20)
        assert len(tail) == 20 - start
        for batch, expected in zip(tail, whole[start:], strict=True):
            assert_equal(flat(batch), flat(expected))


def test_processes_read_contiguous_blocks_of_the_same_batches(digits):
    whole = train(digits)
    for count in (2, 4):
        parts = [train(digits, process=(index, count)) for index in range(count)]
        for step, batch in enumerate(whole):
            assert_equal(join([part[step] for part in parts]), join([batch]))


def test_the_batch_size_only_cuts_the_sequence_elsewhere(digits):
    assert_equal(
        join(train(digits, batch_size=8, num_steps=15)),
        join(train(digits, batch_size=12, num_steps=10)),
    )


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetching_changes_nothing(digits, prefetch):
    assert_equal(join(train(digits, prefetch=prefetch)), join(train(digits)))


class Marks:
    """Images that depend on index and epoch, as those of a composed set do."""

    def gather(self, rows, epochs=None):
        batch = super().gather(rows, epochs)
        image = batch["image"].copy()
        image[:, 0, 0, 0] = batch["index"] * 7 + batch["epoch"]
        return {**batch, "image": image}


class MarkedArray(Marks, ArraySource):
    pass


class MarkedFolder(Marks, FolderSource):
    pass


def marked(source):
    kind = MarkedArray if isinstance(source, ArraySource) else MarkedFolder
    fields = [field.name for field in dataclasses.fields(source) if field.init]
    return kind(**{name: getattr(source, name) for name in fields})


def test_records_read_one_by_one_make_the_same_batches(data_config, folder):
    config = data_config("folder", folder, 8)
    kept, lazy = load(config, "train"), load(config, "train", memory_limit_bytes=0)
    for options in ({}, {"prefetch": 0}, {"process": (1, 2)}):
        expected = join(train(kept, num_steps=6, **options))
        assert_equal(join(train(lazy, num_steps=6, **options)), expected)
        assert_equal(
            join(train(lazy, start_step=4, num_steps=6, **options)),
            join(train(kept, start_step=4, num_steps=6, **options)),
        )
        assert_equal(join(evaluate(lazy, **options)), join(evaluate(kept, **options)))


def test_a_source_is_told_the_epoch_of_every_image(digits):
    sequence = join(train(marked(digits)))
    expected = (sequence["index"] * 7 + sequence["epoch"]).astype(np.uint8)
    assert len(set(sequence["epoch"])) > 1
    np.testing.assert_array_equal(sequence["image"][:, 0, 0, 0], expected)
    assert digits.images[:, 0, 0, 0].max() == 0  # the source itself is untouched


@pytest.fixture
def workers_under_signals(monkeypatch):
    """Has each worker process sent, as it starts, what a terminal sends to all of a group."""
    start, workers = multiprocessing.context.SpawnProcess.start, []

    def start_and_send(self):
        start(self)
        workers.append(self.pid)
        send_signals(self.pid)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start_and_send)
    return workers


def send_signals(process):
    for number in SIGNALS:
        os.kill(process, number)


def test_worker_processes_change_nothing_outlive_signals_and_report_a_broken_file(
    data_config, folder, tmp_path, workers_under_signals
):
    shutil.copytree(folder / "train", tmp_path / "train")
    lazy = load(data_config("folder", tmp_path, 8), "train", memory_limit_bytes=0)
    last = lazy.files[order(3, 0, len(lazy))[-1]]
    pathlib.Path(last).write_bytes(b"no image")
    reached = (len(lazy) - 1) // 4  # batches of the first epoch without the broken file
    lazy = marked(lazy)
    expected = train(lazy, batch_size=4, num_steps=reached)
    batches = train_batches(
        lazy,
        data_seed=3,
        batch_size=4,
        start_step=0,
        num_steps=20,
        process_index=0,
        process_count=1,
        workers=2,
    )
    first = next(batches)
    assert len(workers_under_signals) == 2
    for worker in workers_under_signals:
        send_signals(worker)
    assert_equal(join([first, *itertools.islice(batches, reached - 1)]), join(expected))
    with pytest.raises(UserError, match=rf"{re.escape(last)} is not a readable image"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_broken_file_is_reported_from_a_thread(data_config, tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "broken.jpg").write_bytes(b"no image")
    broken = load(data_config("folder", tmp_path, 8), "train", memory_limit_bytes=0)
    with pytest.raises(UserError, match=r"broken\.jpg is not a readable image"):
        train(broken, batch_size=1)


def test_sets_without_labels_have_no_targets(data_config, folder):
    plain = array_source("plain", Split.TRAIN, np.zeros((9, 4, 4, 3), np.uint8), {})
    lazy = load(data_config("folder", folder, 8), "train", memory_limit_bytes=0)
    lazy = dataclasses.replace(lazy, targets={}, num_classes=None)
    for source in (plain, lazy):
        assert all(batch["targets"] == {} for batch in train(source, num_steps=2))
        assert all(batch["targets"] == {} for batch in evaluate(source))


# Evaluation batches.


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_reads_every_example_once_in_order(digits, count):
    parts = [evaluate(digits, process=(index, count)) for index in range(count)]
    assert {len(part) for part in parts} == {4}  # 50 examples in batches of 16
    assert {len(batch["mask"]) for part in parts for batch in part} == {16 // count}
    whole = join([join(list(blocks)) | {"targets": {}} for blocks in zip(*parts, strict=True)])
    assert whole["mask"].dtype == bool
    np.testing.assert_array_equal(whole["mask"], np.arange(64) < 50)
    np.testing.assert_array_equal(whole["index"][:50], digits.positions)
    np.testing.assert_array_equal(whole["image"][:50], digits.images)
    np.testing.assert_array_equal(whole["label"][:50], digits.targets["label"])
    np.testing.assert_array_equal(whole["index"][50:], np.full(14, digits.positions[-1]))
    assert not whole["epoch"].any()


def test_an_evaluation_batch_that_fits_is_not_padded(digits):
    batches = evaluate(digits, batch_size=25)
    assert len(batches) == 2
    assert all(batch["mask"].all() for batch in batches)


# Images twice in a batch.


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(50, 8, 60), (12, 12, 9), (13, 12, 40)])
def test_repeats_are_those_of_the_batches(n, batch_size, steps):
    counts = [
        batch_size - len(set(training_rows(step, batch_size, n, 5)[0])) for step in range(steps)
    ]
    found = repeats(n, batch_size, 5, steps)
    assert found.batches == sum(count > 0 for count in counts)
    mean = np.mean([count for count in counts if count]) if any(counts) else 0
    assert found.images == pytest.approx(mean)
    assert found.exact
    told = f"in them: {found.batches} of {steps:,}, with {mean:.1f} such images on average;"
    assert told in found.in_words(steps)


def test_repeats_of_a_long_run_are_sampled(monkeypatch):
    from jaxssl.data import pipeline

    counts = [16 - len(set(training_rows(step, 16, 100, 1)[0])) for step in range(6000)]
    asked = []
    part = pipeline._part
    monkeypatch.setattr(pipeline, "_part", lambda *key: asked.append(key) or part(*key))
    found = repeats(100, 16, 1, 6000)  # 960 borders
    assert len(asked) == 2 * pipeline.MAX_BORDERS
    assert f"in them: about {found.batches} of 6,000, with" in found.in_words(6000)
    # Four standard deviations of a share of 100 borders, and of a mean over those.
    holding = [count for count in counts if count]
    cut = 720  # borders that lie within a batch: three quarters
    share = len(holding) / cut
    assert found.batches == pytest.approx(
        720 * share, abs=720 * 4 * (share * (1 - share) / 100) ** 0.5
    )
    assert found.images == pytest.approx(
        np.mean(holding), abs=4 * np.std(holding) / np.sqrt(share * 100)
    )


def test_a_batch_larger_than_the_set_is_refused(digits):
    with pytest.raises(UserError, match=r"--config\.batch_size=51 is more than .* has, 50 images,"):
        train(digits, batch_size=51)
    assert len(train(digits, batch_size=50)) == 20
    assert len(evaluate(digits, batch_size=64)) == 1


def test_batches_are_put_together_ahead_of_the_caller(data_config, folder, monkeypatch):
    import threading

    threads = []
    put_together = np.concatenate

    def noting(arrays, *args, **kwargs):
        threads.append(threading.current_thread())
        return put_together(arrays, *args, **kwargs)

    lazy = load(data_config("folder", folder, 8), "train", memory_limit_bytes=0)
    batches = train_batches(
        lazy,
        data_seed=3,
        batch_size=4,
        start_step=0,
        num_steps=3,
        process_index=0,
        process_count=1,
    )
    monkeypatch.setattr(np, "concatenate", noting)
    assert len(list(batches)) == 3
    assert threads
    assert threading.current_thread() not in threads


# Errors, and the end.


def test_bad_input_is_refused_at_once(digits):
    options = {"data_seed": 0, "start_step": 0, "num_steps": 1}
    with pytest.raises(UserError, match=r"a batch of 9 images .* does not divide over 2 processes"):
        train_batches(digits, batch_size=9, process_index=0, process_count=2, **options)
    with pytest.raises(UserError, match=r"a batch of 9 images .* does not divide over 2 processes"):
        eval_batches(digits, batch_size=9, process_index=0, process_count=2)
    empty = digits.take(np.arange(0))
    with pytest.raises(UserError, match="digits has no examples"):
        train_batches(empty, batch_size=8, process_index=0, process_count=1, **options)


SCRIPT = """
    import sys
    from ml_collections import ConfigDict
    from jaxssl.data.pipeline import train_batches
    from jaxssl.data.sources import load

    def main():
        config = ConfigDict({"name": "folder", "data_dir": sys.argv[1], "image_size": 8,
                             "validation_fraction": 0.0, "train_examples": 0,
                             "test_fraction": 0.0, "classes": "", "unreadable": "refuse",
                             "fit": "crop", "background": (255, 255, 255), "scale": (),
                             "jpeg_margin": 0.0})
        held = []
        for memory_limit_bytes, workers in ((0, 0), (2**31, 0), (0, 1)):
            source = load(config, "train", memory_limit_bytes=memory_limit_bytes)
            batches = train_batches(
                source, data_seed=0, batch_size=8, start_step=0, num_steps=10**9,
                process_index=0, process_count=1, prefetch=4, workers=workers)
            next(batches)
            held.append(batches)
        return held

    if __name__ == "__main__":
        held = main()
        print("end")
        raise SystemExit(3)
"""


def test_a_program_that_leaves_its_iterators_open_ends(folder, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-W", "error", str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    # Shared memory that worker processes had filled ahead may be left to Python to clean up.
    cleaning = ("resource_tracker", "warnings.warn(")
    lines = [line for line in done.stderr.splitlines() if not any(c in line for c in cleaning)]
    assert (done.returncode, done.stdout, lines) == (3, "end\n", [])


@pytest.mark.parametrize("in_memory", [True, False])
def test_closing_an_iterator_ends_its_threads(data_config, folder, in_memory):
    import threading

    limit = 2**31 if in_memory else 0
    source = load(data_config("folder", folder, 8), "train", memory_limit_bytes=limit)
    before = set(threading.enumerate())
    batches = train_batches(
        source,
        data_seed=0,
        batch_size=8,
        start_step=0,
        num_steps=10**9,
        process_index=0,
        process_count=1,
    )
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=10)
    assert not [thread for thread in started if thread.is_alive()]
