"""The peer of `end_to_end.py`: SimCLR from lightly's parts on CPU PyTorch, as its examples go.

    python benchmarks/end_to_end_lightly.py FOLDER SEED WORKERS

FOLDER holds ``arrays.npz`` and ``recipe.json``; ``result.json`` is written there. Imports nothing
of jaxssl. lightly has no ConvN, so that one is written here.
"""

import itertools
import json
import math
import os
import pathlib
import random
import resource
import sys
import time
from typing import Any

import lightly
import numpy as np
import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.utils.benchmarking.knn import knn_predict
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

CORES = len(os.sched_getaffinity(0))
CLASSES = 10


class InMemory(Dataset):
    """Arrays as a data set of PIL images; lightly sets ``transform``."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images = images.squeeze(-1) if images.shape[-1] == 1 else images
        self.labels = labels
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class ConvN(nn.Sequential):
    """Three 3x3 convolutions of stride 2 and a dense layer, each with BatchNorm and ReLU."""

    def __init__(self, width: int, size: int):
        layers: list[nn.Module] = []
        sizes = [1, width, 2 * width, 2 * width]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [
                nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            size = (size - 1) // 2 + 1
        layers += [
            nn.Flatten(),
            nn.Linear(size * size * sizes[-1], 4 * width, bias=False),
            nn.BatchNorm1d(4 * width),
            nn.ReLU(inplace=True),
        ]
        super().__init__(*layers)


def backbone(net: dict[str, Any], size: int) -> tuple[nn.Module, int]:
    """An encoder, pooled, and the size of its output."""
    if net["name"] == "convn":
        return ConvN(net["width"], size), 4 * net["width"]
    resnet = ResNetGenerator("resnet-18", width=net["width"] / 64)
    resnet.linear = nn.Identity()
    return resnet, 8 * net["width"]


def transform(recipe: dict[str, Any]) -> Any:
    """Two views."""
    size = recipe["size"]
    if recipe["colour"]:
        return SimCLRTransform(
            input_size=size,
            cj_strength=0.5,
            gaussian_blur=0.0,
            min_scale=recipe["crop_scale"][0],
            normalize=None,
        )
    crop = transforms.RandomResizedCrop(size, scale=tuple(recipe["crop_scale"]))
    view = transforms.Compose([crop, transforms.ToTensor()])
    return MultiViewTransform([view, view])


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate: linear from 0, then a cosine to 0."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def features(encoder: nn.Module, data: InMemory, recipe: dict[str, Any]) -> torch.Tensor:
    """Normalised features of a split, [N, D]."""
    size = recipe["size"]
    view = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])
    loader = DataLoader(LightlyDataset.from_torch_dataset(data, transform=view), recipe["batch"])
    encoder.eval()
    found = [encoder(images.to(memory_format=torch.channels_last)) for images, _, _ in loader]
    return nn.functional.normalize(torch.cat(found), dim=1)


def train(
    encoder: nn.Module, head: nn.Module, data: InMemory, recipe: dict[str, Any], workers: int
) -> tuple[int, float]:
    """Trains in place; images seen and the last loss."""
    loader = DataLoader(
        LightlyDataset.from_torch_dataset(data, transform=transform(recipe)),
        batch_size=recipe["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    epochs = max(round(recipe["epochs"]), 1)
    steps = epochs * len(loader)
    criterion = NTXentLoss(temperature=recipe["temperature"])
    optimizer = torch.optim.SGD(
        [*encoder.parameters(), *head.parameters()],
        lr=recipe["learning_rate"],
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
    )
    warmup = recipe["warmup_epochs"] * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: rate_at(k, steps, warmup))
    seen = 0
    for _ in range(epochs):
        for views, _, _ in loader:
            x0, x1 = (view.to(memory_format=torch.channels_last) for view in views)
            loss = criterion(head(encoder(x0)), head(encoder(x1)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seen += len(x0)
    return seen, loss.item()


def cpu_seconds() -> float:
    """Of this process and those it waited for."""
    used = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    folder, seed, workers = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    recipe = json.loads((folder / "recipe.json").read_text())
    given = dict(np.load(folder / "arrays.npz"))
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    torch.set_num_threads(CORES)
    start, spent = time.perf_counter(), cpu_seconds()
    sets = {k: InMemory(given[f"{k}_images"], given[f"{k}_labels"]) for k in ("train", "test")}
    encoder, dim = backbone(recipe["net"], recipe["size"])
    head = SimCLRProjectionHead(dim, recipe["head"]["hidden"] or dim, recipe["head"]["out"])
    for net in (encoder, head):
        net.to(memory_format=torch.channels_last)
    seen, loss = train(encoder, head, sets["train"], recipe, workers)
    bank, queries = (features(encoder, sets[split], recipe) for split in ("train", "test"))
    labels = {split: torch.from_numpy(sets[split].labels).long() for split in sets}
    predicted = knn_predict(
        queries,
        bank.T.contiguous(),
        labels["train"],
        CLASSES,
        recipe["knn"]["k"],
        recipe["knn"]["temperature"],
    )
    found = {
        "knn": float((predicted[:, 0] == labels["test"]).float().mean()),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": cpu_seconds() - spent,
        "parameters": sum(p.numel() for net in (encoder, head) for p in net.parameters()),
        "images_seen": seen,
        "last_loss": loss,
        "versions": {"torch": torch.__version__, "lightly": lightly.__version__},
    }
    (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
