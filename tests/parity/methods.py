"""What lightly's losses give on lightly's heads, forward and gradient, on inputs from a seed.

Run by hand, where PyTorch and lightly are; the suite reads what it writes and needs neither:

    python tests/parity/methods.py

with torch 2.14.1 and lightly 1.6.0 on the CPU, in float64. It writes tests/parity/methods.npz: of
each case the inputs, the weights, the loss and the gradient with respect to each. Where lightly has
no such loss, PyTorch's cross-entropy computes it, as the papers' codes do.
"""

import pathlib

import numpy as np
import torch
from lightly.loss import (
    BarlowTwinsLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    VICRegLoss,
)
from lightly.loss.hypersphere_loss import HypersphereLoss
from lightly.loss.lejepa_loss import SIGReg, lejepa_invariance_loss
from lightly.models.modules import heads
from torch import nn
from torch.nn import functional

WHERE = pathlib.Path(__file__).parent / "methods.npz"
BATCH, IN, HIDDEN, OUT = 8, 6, 5, 4
LABELS = (0, 1, 0, 2, 1, 0, 3, 2)


class Case:
    """Inputs and networks drawn from the case's own seed, and what they give."""

    def __init__(self, seed: int):
        self.draw = np.random.default_rng(seed)
        self.saved: dict[str, np.ndarray] = {}
        self.leaves: dict[str, torch.Tensor] = {}

    def fixed(self, name: str, *shape: int) -> torch.Tensor:
        """Drawn, saved, without gradient."""
        self.saved[name] = self.draw.normal(size=shape)
        return torch.from_numpy(self.saved[name])

    def views(self, count: int = 2, *cells: int) -> list[torch.Tensor]:
        """Features of each view, [B, D], or [B, P, D] of P cells."""
        found = []
        for number in range(1, count + 1):
            features = self.fixed(f"x{number}", BATCH, *cells, IN).requires_grad_()
            self.leaves[f"x{number}"] = features
            found.append(features)
        return found

    def network(
        self, name: str, net: nn.Module, trained: bool = True, scale: float = 1.0
    ) -> nn.Module:
        """The network in float64 and in training mode, with drawn parameters."""
        net = net.double().train()
        layers = dict(net.named_parameters())
        for path, parameter in layers.items():
            self.saved[f"{name}/{path}"] = scale * self.draw.normal(size=parameter.shape)
            parameter.data = torch.from_numpy(self.saved[f"{name}/{path}"])
            parameter.requires_grad_(trained)
        if trained:
            self.leaves |= {f"{name}/{path}": parameter for path, parameter in layers.items()}
        return net

    def finish(self, loss: torch.Tensor) -> dict[str, np.ndarray]:
        loss.backward()
        found = dict(self.saved, loss=loss.detach().numpy())
        for name, leaf in self.leaves.items():
            slope = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            found[f"gradient/{name}"] = slope.numpy()
        return found


def mlp(*, norm: bool = False) -> nn.Module:
    """A head of two layers."""
    return heads.SimCLRProjectionHead(IN, HIDDEN, OUT, num_layers=2, batch_norm=norm)


def jointly(net: nn.Module, views: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Both views through the network at once."""
    return net(torch.cat(views)).chunk(len(views))


def simclr() -> dict[str, np.ndarray]:
    case = Case(1)
    z = jointly(case.network("head", mlp(norm=True)), case.views())
    return case.finish(NTXentLoss(temperature=0.2)(*z))


def moco_v2() -> dict[str, np.ndarray]:
    case = Case(2)
    x1, x2 = case.views()
    q = case.network("head", heads.MoCoProjectionHead(IN, HIDDEN, OUT))(x1)
    with torch.no_grad():
        k = case.network("teacher_head", heads.MoCoProjectionHead(IN, HIDDEN, OUT), False)(x2)
    loss = NTXentLoss(temperature=0.1, memory_bank_size=(16, OUT))
    loss.memory_bank.bank = functional.normalize(case.fixed("queue", 16, OUT), dim=1)
    return case.finish(loss(q, k))


def supcon() -> dict[str, np.ndarray]:
    case = Case(3)
    z1, z2 = jointly(case.network("head", heads.MoCoProjectionHead(IN, HIDDEN, OUT)), case.views())
    z = functional.normalize(torch.cat([z1, z2]), dim=1)
    itself = torch.eye(2 * BATCH, dtype=torch.bool)
    log_p = functional.log_softmax((z @ z.T / 0.1).masked_fill(itself, -torch.inf), dim=1)
    labels = torch.tensor(LABELS).repeat(2)
    positive = (labels[:, None] == labels) & ~itself
    per_anchor = log_p.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)
    return case.finish(-per_anchor.mean())


def align_uniform() -> dict[str, np.ndarray]:
    case = Case(4)
    z = jointly(case.network("head", mlp(norm=True)), case.views())
    return case.finish(HypersphereLoss(t=2.0, lam=1.0, alpha=2.0)(*z))


def lejepa() -> dict[str, np.ndarray]:
    case = Case(5)
    z = torch.stack(jointly(case.network("head", mlp(norm=True)), case.views(4)))
    directions = functional.normalize(case.fixed("directions", OUT, 256), dim=0)

    class Sketch(SIGReg):
        def _generate_unit_vectors(self, *args: object) -> torch.Tensor:
            return directions

    invariance = lejepa_invariance_loss(all_proj=z, global_proj=z)
    return case.finish(0.02 * Sketch().double()(z) + 0.98 * invariance)


def moco_v3() -> dict[str, np.ndarray]:
    case = Case(6)
    x = case.views()
    head = case.network("head", heads.MoCoProjectionHead(IN, HIDDEN, OUT, 3, batch_norm=True))
    predictor = case.network("predictor", heads.BYOLPredictionHead(OUT, HIDDEN, OUT))
    teacher = heads.MoCoProjectionHead(IN, HIDDEN, OUT, 3, batch_norm=True)
    teacher = case.network("teacher_head", teacher, False)
    q = [functional.normalize(predictor(head(view)), dim=1) for view in x]
    with torch.no_grad():
        k = [functional.normalize(teacher(view), dim=1) for view in x]
    own = torch.arange(BATCH)
    first = functional.cross_entropy(q[0] @ k[1].T / 0.2, own)
    second = functional.cross_entropy(q[1] @ k[0].T / 0.2, own)
    return case.finish(2 * 0.2 * (first + second))


def byol() -> dict[str, np.ndarray]:
    """lightly's loss is a quarter of BYOL's, less one."""
    case = Case(7)
    x = case.views()
    head = case.network("head", heads.BYOLProjectionHead(IN, HIDDEN, OUT))
    predictor = case.network("predictor", heads.BYOLPredictionHead(OUT, HIDDEN, OUT))
    teacher = case.network("teacher_head", heads.BYOLProjectionHead(IN, HIDDEN, OUT), False)
    p = [predictor(head(view)) for view in x]
    with torch.no_grad():
        t = [teacher(view) for view in x]
    loss = NegativeCosineSimilarity()
    return case.finish(4 * (1 + 0.5 * (loss(p[0], t[1]) + loss(p[1], t[0]))))


def simsiam() -> dict[str, np.ndarray]:
    case = Case(8)
    head = case.network("head", heads.SimSiamProjectionHead(IN, HIDDEN, OUT))
    predictor = case.network("predictor", heads.SimSiamPredictionHead(OUT, HIDDEN, OUT))
    z = [head(view) for view in case.views()]
    p = [predictor(projection) for projection in z]
    loss = NegativeCosineSimilarity()
    return case.finish(0.5 * (loss(p[0], z[1].detach()) + loss(p[1], z[0].detach())))


def barlow_twins() -> dict[str, np.ndarray]:
    case = Case(9)
    head = case.network("head", heads.BarlowTwinsProjectionHead(IN, HIDDEN, OUT))
    return case.finish(BarlowTwinsLoss(lambda_param=0.0051)(*(head(x) for x in case.views())))


def vicreg() -> dict[str, np.ndarray]:
    case = Case(10)
    head = case.network("head", heads.VICRegProjectionHead(IN, HIDDEN, OUT))
    return case.finish(VICRegLoss()(*(head(x) for x in case.views())))


CASES = (
    simclr,
    moco_v2,
    supcon,
    align_uniform,
    lejepa,
    moco_v3,
    byol,
    simsiam,
    barlow_twins,
    vicreg,
)


if __name__ == "__main__":
    arrays = {f"{case.__name__}/{n}": v for case in CASES for n, v in case().items()}
    np.savez_compressed(WHERE, **arrays)
    print(f"{len(CASES)} cases, {WHERE.stat().st_size} bytes in {WHERE}")
