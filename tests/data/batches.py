"""What the tests of data sets share."""

import numpy as np


def everything(source):
    """All examples as one batch."""
    return source.gather(np.arange(len(source)))


def assert_same_batch(left, right):
    assert left.keys() == right.keys()
    assert left["targets"].keys() == right["targets"].keys()
    for batch in (left, right):
        assert batch["image"].dtype == np.uint8
        for key in ("index", "split", "epoch", "original_size", "content"):
            assert batch[key].dtype == np.int32
    for key in set(left) - {"targets"}:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)
    for key in left["targets"]:
        np.testing.assert_array_equal(left["targets"][key], right["targets"][key], err_msg=key)
