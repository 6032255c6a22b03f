"""Part c: does the input keep up? The pipeline beside a cached batch, the views beside a step.

    python benchmarks/gpu/pipeline.py --out FILE.json [--toy]

Goals: fed by the pipeline ResNet-18 at 32 pixels and batch 512 keeps 95 % of the speed it has on a
batch that stays on the device; both views of a batch take at most a tenth of a ResNet-50 step at
224 pixels. Random pixels: nothing here depends on what they show.
"""

import argparse
import pathlib

from results import Results  # isort: skip  (puts the package on the path)

import input_step
import numpy as np
from side_by_side import environment, summarise
from train_step import CACHED, PIPELINE, against_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    results = Results(arguments.out, arguments.toy)
    results.add("environment", environment())
    toy = arguments.toy
    numbers = {"rounds": 1, "steps": 2} if toy else {"rounds": 7, "steps": 50}
    if "pipeline" not in results:
        given = {"batch": 16 if toy else 512, "dtype": "float32" if toy else "bfloat16"}
        times, _ = against_pipeline(4 if toy else 64, argparse.Namespace(**numbers, **given))
        rows = summarise(times, CACHED, given["batch"], 0.0, 1.0)
        share = rows[PIPELINE]["times_base"]
        goal = "met" if share >= 0.95 else "missed"
        results.add("pipeline", {"rows": rows, "share_of_cached": share, "goal_of_.95": goal})
    if "views" not in results:
        numbers["steps"] = 1 if toy else 10
        given = {"batch": 8, "size": 32, "width": 4, "dtype": "float32", "encoder": "resnet18"}
        if not toy:
            given |= {"batch": 256, "size": 224, "width": 64}
            given |= {"dtype": "bfloat16", "encoder": "resnet50"}
        side = round(given["size"] * 8 / 7)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (given["batch"], side, side, 3), np.uint8)
        namespace = argparse.Namespace(**numbers, **given)
        results.add("views", input_step.against_a_step(images, namespace))
    results.finish()


if __name__ == "__main__":
    main()
