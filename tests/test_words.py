import pytest

from jaxssl.words import counted


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1294, "image", "1,294 images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (2, "box", "2 boxes"),
        (3, "batch", "3 batches"),
        (2, "training image", "2 training images"),
    ],
)
def test_a_number_and_what_it_counts(count, noun, said):
    assert counted(count, noun) == said
