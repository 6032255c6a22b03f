"""lightly's kNN and linear classifier on the files that `evaluation.py` has made of a run.

Its own Lightning modules and trainer, as its benchmarks use them; the linear classifier is trained
on the images themselves, which pass through the frozen encoder in every epoch.
"""

import logging
import pathlib
import sys
import warnings
from typing import Any

import numpy as np
import torch
import torch_simclr
from evaluation_peers import serve
from lightly.utils.benchmarking import KNNClassifier, LinearClassifier
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

CLASSES, K, TEMPERATURE, BATCH = 10, 200, 0.1, 256
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def loaders(folder: pathlib.Path) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training images in order and shuffled, and test images; SimCLR's recipe normalises none."""
    sets = []
    for split in ("train", "test"):
        images = np.load(folder / f"{split}_images.npy") / np.float32(255)
        labels = np.load(folder / f"{split}_labels.npy")
        planes = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        sets.append(TensorDataset(planes, torch.from_numpy(labels)))
    train, test = sets
    return (
        DataLoader(train, BATCH),
        DataLoader(train, BATCH, shuffle=True, drop_last=True),
        DataLoader(test, BATCH),
    )


def encoder(folder: pathlib.Path) -> torch.nn.Module:
    """The run's ResNet-18, with its parameters and running statistics."""
    weights = dict(np.load(folder / "weights.npz"))
    net = torch_simclr.Encoder("resnet18", weights["stem/conv/kernel"].shape[-1], "cifar")
    moving = {path: weights.pop(path) for path in list(weights) if path.endswith(("mean", "var"))}
    torch_simclr.load(net, weights)
    buffers = dict(net.named_buffers())
    for path, array in moving.items():
        place, _, kind = path.replace("/", ".").rpartition(".")
        buffers[f"{place}.running_{kind}"].copy_(torch.from_numpy(array))
    return net.eval()


def main() -> None:
    """Serves: kNN and the linear classifier, anew each time; tells kNN's accuracy."""
    folder, epochs = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    ordered, shuffled, test = loaders(folder)
    net = encoder(folder)

    def run() -> float:
        knn = KNNClassifier(net, CLASSES, K, TEMPERATURE, 0, 1, topk=(1,))
        (_, found) = Trainer(max_epochs=1, **QUIET).validate(knn, [ordered, test], verbose=False)
        linear = LinearClassifier(net, BATCH, 0.1, net.features, CLASSES, topk=(1,))
        Trainer(max_epochs=epochs, **QUIET).fit(linear, shuffled, test)
        return next(value for name, value in found.items() if "top1" in name)

    serve(run)


if __name__ == "__main__":
    main()
