"""What lightly's DINO and SwAV and PyTorch's cross-entropy give on weights and features of a seed.

Run by hand, where PyTorch and lightly are; the suite reads what it writes and needs neither:

    python tests/parity/clustering.py

with torch 2.14.1 and lightly 1.6.0 on the CPU. It writes tests/parity/clustering.npz: features,
weights, losses, gradients and what is carried on, in float64.
"""

import pathlib

import numpy as np
import torch
from lightly.loss import DINOLoss, SwaVLoss
from lightly.loss.swav_loss import sinkhorn
from lightly.models.modules import DINOProjectionHead, SwaVProjectionHead, SwaVPrototypes

WHERE = pathlib.Path(__file__).parent / "clustering.npz"
DIM, HIDDEN, OUT, PROTOTYPES = 6, 8, 5, 7
VIEWS, GLOBAL, BATCH, QUEUE = 4, 2, 8, 24


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def filled(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The network in float64 with weights of the seed; those of a length keep it."""
    net = net.double()
    for number, (name, weight) in enumerate(net.named_parameters()):
        if not name.endswith("weight_g"):
            weight.data.copy_(draw(*weight.shape, seed=100 * seed + number))
    return net


def arrays(prefix: str, net: torch.nn.Module, gradient: bool = False) -> dict[str, np.ndarray]:
    found = {}
    for name, weight in net.named_parameters():
        value = weight.grad if gradient else weight.data
        if value is not None:
            found[f"{prefix}/{name}"] = value.detach().clone().numpy()
    return found


def dino(batch_norm: bool) -> dict[str, np.ndarray]:
    """Two steps of one centre, the student's gradient in each."""
    prefix = f"dino_{'bn' if batch_norm else 'plain'}"
    heads = [
        filled(DINOProjectionHead(DIM, HIDDEN, OUT, PROTOTYPES, batch_norm=batch_norm), seed)
        for seed in (1, 2)
    ]
    student, teacher = heads
    loss_of = DINOLoss(
        PROTOTYPES, teacher_temp=0.05, student_temp=0.1, center_momentum=0.75
    ).double()
    found = arrays(f"{prefix}/student", student) | arrays(f"{prefix}/teacher", teacher)
    for number in range(2):
        x = draw(VIEWS, BATCH, DIM, seed=10 + number)
        student.zero_grad()
        # All views at once, as the authors' MultiCropWrapper has it.
        s = student(x.reshape(-1, DIM)).reshape(VIEWS, BATCH, -1)
        with torch.no_grad():
            t = teacher(x[:GLOBAL].reshape(-1, DIM)).reshape(GLOBAL, BATCH, -1)
        loss = loss_of(list(t), list(s))
        loss.backward()
        found |= arrays(f"{prefix}/gradient{number}", student, gradient=True)
        found[f"{prefix}/features{number}"] = x.numpy()
        found[f"{prefix}/loss{number}"] = loss.detach().numpy()
        found[f"{prefix}/center{number}"] = loss_of.center.reshape(-1).numpy().copy()
    return found


def swav(queue: bool) -> dict[str, np.ndarray]:
    """One step; with a queue of unit vectors, whose assignments are dropped."""
    prefix = f"swav_{'queue' if queue else 'plain'}"
    head = filled(SwaVProjectionHead(DIM, HIDDEN, OUT), 3)
    prototypes = SwaVPrototypes(OUT, PROTOTYPES).double()
    prototypes.heads[0].bias.data.zero_()  # the authors' have none
    prototypes.heads[0].weight.data.copy_(draw(PROTOTYPES, OUT, seed=300))
    prototypes.normalize()
    x = draw(VIEWS, BATCH, DIM, seed=20)
    past = torch.nn.functional.normalize(draw(GLOBAL, QUEUE, OUT, seed=21), dim=2)
    z = torch.nn.functional.normalize(head(x.reshape(-1, DIM)), dim=1)
    scores = prototypes(z).reshape(VIEWS, BATCH, -1)
    extra = [prototypes(rows) for rows in past] if queue else None
    loss = SwaVLoss()(list(scores[:GLOBAL]), list(scores[GLOBAL:]), extra)
    loss.backward()
    return {
        f"{prefix}/features": x.numpy(),
        f"{prefix}/queue": past.numpy(),
        f"{prefix}/loss": loss.detach().numpy().reshape(()),
        f"{prefix}/assignments": sinkhorn(scores[0].detach()).numpy(),
        **arrays(f"{prefix}/head", head),
        **arrays(f"{prefix}/prototypes", prototypes.heads[0]),
        **arrays(f"{prefix}/gradient_head", head, gradient=True),
        **arrays(f"{prefix}/gradient_prototypes", prototypes.heads[0], gradient=True),
    }


def deepcluster() -> dict[str, np.ndarray]:
    """Cross-entropy of every view and set of centroids; one image has no label."""
    head = filled(SwaVProjectionHead(DIM, HIDDEN, OUT), 4)
    x = draw(VIEWS, BATCH, DIM, seed=30)
    centroids = torch.nn.functional.normalize(draw(3, PROTOTYPES, OUT, seed=31), dim=2)
    labels = torch.from_numpy(np.random.default_rng(32).integers(0, PROTOTYPES, (3, BATCH)))
    labels[:, 2] = -1
    z = torch.nn.functional.normalize(head(x.reshape(-1, DIM)), dim=1)
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=-1)
    losses = [
        cross_entropy(z @ centers.T / 0.1, of_set.repeat(VIEWS))
        for centers, of_set in zip(centroids, labels, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    return {
        "deepcluster/features": x.numpy(),
        "deepcluster/centroids": centroids.numpy(),
        "deepcluster/labels": labels.numpy(),
        "deepcluster/loss": loss.detach().numpy(),
        **arrays("deepcluster/head", head),
        **arrays("deepcluster/gradient_head", head, gradient=True),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(
        WHERE, **dino(False), **dino(True), **swav(False), **swav(True), **deepcluster()
    )
    print(f"{WHERE}: {WHERE.stat().st_size} bytes")
