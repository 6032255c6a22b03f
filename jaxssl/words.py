"""Numbers with their nouns, as messages say them."""

_HISSING = ("s", "x", "ch", "sh")


def counted(count: int, noun: str) -> str:
    """A number and what it counts: ``1 image``, ``1,294 images``, ``2 classes``, ``0 boxes``.

    Args:
      count: how many, at least 0.
      noun: what, in the singular, with a regular plural.
    """
    plural = "" if count == 1 else "es" if noun.endswith(_HISSING) else "s"
    return f"{count:,} {noun}{plural}"
