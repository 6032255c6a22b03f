import numpy as np
import pytest

from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluation.classifier import (
    About,
    LinearClassifier,
    class_accuracies,
    names_of_classes,
    scores,
)

ABOUT = About(
    class_names=("Käfer", "b"),
    layer="teacher",
    target="label",
    encoder_sha256="ab",
    fitted_on={"fit": "lbfgs", "grid": [1e-5, 1.0]},
    chosen={"l2": 1e-5},
)


def example() -> LinearClassifier:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((3,), (3,), (3, 2), (2,))]
    arrays[1] = np.float32([0.5, np.inf, 2.0])
    return LinearClassifier(*arrays)


def test_a_classifier_comes_back_as_it_was(tmp_path):
    path = tmp_path / "made" / "classifier.npz"
    example().save(path, ABOUT)
    classifier, about = LinearClassifier.load(path)
    assert about == ABOUT
    for found, expected in zip(classifier, example(), strict=True):
        np.testing.assert_array_equal(found, expected)
    with np.load(path) as file:  # nothing of ours is needed to read it
        assert file["class_names"].tolist() == ["Käfer", "b"]
        assert str(file["layer"]) == "teacher"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive", "other"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "classifier.npz"
    if content == "other":
        np.savez(path, kernel=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="is no classifier of jaxssl"):
        LinearClassifier.load(path)


def test_logits_are_the_formula_on_any_mesh():
    classifier = example()
    x = np.random.default_rng(1).normal(size=(13, 3)).astype(np.float32)
    standard = (np.float64(x) - classifier.mean) / classifier.scale
    expected = standard @ classifier.kernel + classifier.bias
    for mesh in (None, data_mesh(1), data_mesh(8)):
        found = classifier.logits(x, mesh)
        assert found.shape == (13, 2)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_balanced_accuracy_gives_each_class_the_same_say():
    """Ninety images of one class and ten of another, which is never predicted."""
    logits = np.tile(np.float32([1, 0, 0]), (100, 1))
    labels = np.repeat([0, 2], [90, 10])
    found = scores(logits, labels, ("cat", "dog", "cat"))
    assert found["top1"] == 0.9
    assert found["balanced"] == 0.5
    assert found["by_class"] == [
        {"class": 0, "name": "cat", "top1": 1.0},
        {"class": 2, "name": "cat", "top1": 0.0},
    ]
    # A class that the classifier never saw, and a set without names.
    labels[-1] = 7
    assert class_accuracies(logits, labels)[7] == 0
    assert scores(logits, labels, None)["by_class"][-1] == {"class": 7, "name": "7", "top1": 0.0}
    assert names_of_classes(("a",), 3) == ("a", "1", "2")
