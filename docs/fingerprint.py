"""Draws the README's picture of a fingerprint, docs/fingerprint.png, from the card of a run.

    make quickstart
    python -m jaxssl.pretrain --config configs/quickstart.py:method=supervised --workdir runs/labels
    python -m jaxssl.evaluate --run runs/quickstart --supervised runs/labels
    python docs/fingerprint.py runs/quickstart/evaluations/evaluate-2527-*/card.json

The card's page has the same plot in the colours of the reader's theme.
"""

import argparse
import json
import pathlib

from jaxssl.evaluation.plots import fingerprint_plot

OUT = pathlib.Path(__file__).parent / "fingerprint.png"


def main() -> None:
    """Draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", type=pathlib.Path, help="card.json with a fingerprint")
    parser.add_argument("--name", default="SimCLR", help="what to call the trained network")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    given = parser.parse_args()
    found = json.loads(given.card.read_text())["sections"]["fingerprint"]
    names = {"trained": given.name, "pixels": "raw pixels"}
    figure = fingerprint_plot({names.get(name, name): rows for name, rows in found.items()})
    figure.savefig(given.out, dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
