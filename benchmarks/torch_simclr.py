"""The training step of `benchmarks/train_step.py` in PyTorch: eager, channels_last.

ResNet-18 with CIFAR stem (arXiv:1512.03385), projection head and NT-Xent of SimCLR
(arXiv:2002.05709). Modules bear the names they have in jaxssl, so that weights copy by name.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class ConvNorm(nn.Module):
    """A square convolution without bias, then BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised, no activation."""
        return self.norm(self.conv(x))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which projects where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = nn.ModuleList(
            [ConvNorm(inputs, outputs, 3, stride), ConvNorm(outputs, outputs, 3, 1)]
        )
        changes = inputs != outputs or stride != 1
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        first, second = self.branch
        y = second(functional.relu(first(x), inplace=True))
        return functional.relu(y + self.shortcut(x), inplace=True)


class Encoder(nn.Module):
    """ResNet-18 for images of 32 pixels, pooled."""

    def __init__(self, width: int):
        super().__init__()
        self.stem = ConvNorm(3, width, 3, 1)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(
            nn.ModuleList([Block(a, b, 1 if stage == 0 else 2), Block(b, b, 1)])
            for stage, (a, b) in enumerate(itertools.pairwise(sizes))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pooled features of [N, C, H, W]."""
        x = functional.relu(self.stem(x), inplace=True)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x.mean((2, 3))


class Head(nn.Module):
    """Dense, BatchNorm, ReLU, dense, BatchNorm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(inputs, inputs, bias=False)])
        self.hidden_norms = nn.ModuleList([nn.BatchNorm1d(inputs)])
        self.output = nn.Linear(inputs, outputs, bias=False)
        self.output_norm = nn.BatchNorm1d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Projections."""
        x = functional.relu(self.hidden_norms[0](self.hidden[0](x)), inplace=True)
        return self.output_norm(self.output(x))


class Net(nn.Module):
    """Encoder and head."""

    def __init__(self, width: int, out_dim: int):
        super().__init__()
        self.encoder = Encoder(width)
        self.head = Head(8 * width, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Projections of images."""
        return self.head(self.encoder(x))


def nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent of 2B projections, the second views after the first."""
    z = functional.normalize(z.float())
    similarities = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return functional.cross_entropy(similarities, partner)


def load(net: Net, weights: dict[str, np.ndarray]) -> None:
    """Copies jaxssl's parameters, by their paths, into the net; all must be there, and no other."""
    own = dict(net.named_parameters())
    renamed = {}
    for path, array in weights.items():
        name = path.replace("/", ".").replace("kernel", "weight").replace("scale", "weight")
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        renamed[name] = torch.from_numpy(array.transpose(order).copy())
    if own.keys() != renamed.keys():
        raise ValueError(f"only one net has {sorted(own.keys() ^ renamed.keys())}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(renamed[name])


def make_step(
    views: tuple[np.ndarray, ...],
    weights: dict[str, np.ndarray],
    *,
    width: int,
    dtype: str,
    temperature: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Callable[[], torch.Tensor], int]:
    """A step on one batch, that returns the loss before the update; and the net's parameters.

    Args:
      views: two float32 [B, H, W, C].
      weights: parameters of jaxssl's net by path, to start from.
      width: channels of the first stage.
      dtype: a key of `DTYPES`; bfloat16 by autocast.
      temperature: of NT-Xent.
      learning_rate: of SGD, constant.
      momentum: of SGD.
      weight_decay: of SGD, on every parameter.
    """
    torch.set_float32_matmul_precision("high")  # TF32 where there is, as XLA does by itself
    torch.backends.cudnn.benchmark = True
    net = Net(width, weights["head/output/kernel"].shape[1])
    load(net, weights)
    net = net.to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    # A transposed [B, H, W, C] array is channels_last already.
    images = [torch.from_numpy(view.transpose(0, 3, 1, 2)).to(DEVICE) for view in views]

    def step() -> torch.Tensor:
        with torch.autocast(DEVICE, DTYPES[dtype], enabled=dtype != "float32"):
            projections = net(torch.cat(images))
        loss = nt_xent(projections, temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, sum(parameter.numel() for parameter in net.parameters())


def matmul(n: int, dtype: str) -> Callable[[], torch.Tensor]:
    """The product of two square matrices."""
    a, b = torch.randn(2, n, n).to(DEVICE, DTYPES[dtype])
    return lambda: a @ b


def wait() -> None:
    """Waits until the device has done all it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
