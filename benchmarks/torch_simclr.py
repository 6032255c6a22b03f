"""The training step of `benchmarks/train_step.py` in PyTorch: channels_last, eager or compiled.

ResNet-18 and -50 (arXiv:1512.03385), projection head and NT-Xent of SimCLR (arXiv:2002.05709).
Modules bear the names they have in jaxssl, so that weights copy by name.
"""

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
    """Two or, in a bottleneck, three convolutions beside a shortcut.

    The shortcut projects where the shape changes; the stride is on a 3x3 convolution.
    """

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool):
        super().__init__()
        self.outputs = channels * (4 if bottleneck else 1)
        if bottleneck:
            layers = [
                ConvNorm(inputs, channels, 1, 1),
                ConvNorm(channels, channels, 3, stride),
                ConvNorm(channels, self.outputs, 1, 1),
            ]
        else:
            layers = [ConvNorm(inputs, channels, 3, stride), ConvNorm(channels, channels, 3, 1)]
        self.branch = nn.ModuleList(layers)
        changes = inputs != self.outputs or stride != 1
        self.shortcut = ConvNorm(inputs, self.outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        y = x
        for layer in self.branch[:-1]:
            y = functional.relu(layer(y), inplace=True)
        return functional.relu(self.branch[-1](y) + self.shortcut(x), inplace=True)


# Blocks in each stage, and whether they are bottlenecks.
LAYOUTS = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}


class Encoder(nn.Module):
    """A ResNet, pooled; ``stem`` is "cifar", 3x3, or "imagenet", 7x7 of stride 2 and a pooling."""

    def __init__(self, name: str, width: int, stem: str):
        super().__init__()
        self.pooled_stem = stem == "imagenet"
        self.stem = ConvNorm(3, width, 7, 2) if self.pooled_stem else ConvNorm(3, width, 3, 1)
        sizes, bottleneck = LAYOUTS[name]
        self.features = width
        stages = []
        for stage, size in enumerate(sizes):
            blocks = []
            for position in range(size):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(Block(self.features, width * 2**stage, stride, bottleneck))
                self.features = blocks[-1].outputs
            stages.append(nn.ModuleList(blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pooled features of [N, C, H, W]."""
        x = functional.relu(self.stem(x), inplace=True)
        if self.pooled_stem:
            x = functional.max_pool2d(x, 3, 2, 1)
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

    def __init__(self, encoder: Encoder, out_dim: int):
        super().__init__()
        self.encoder = encoder
        self.head = Head(encoder.features, out_dim)

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
    encoder: str = "resnet18",
    width: int,
    stem: str = "cifar",
    dtype: str,
    temperature: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    compiled: bool = False,
) -> tuple[Callable[[], torch.Tensor], int]:
    """A step on one batch, that returns the loss before the update; and the net's parameters.

    Args:
      views: two float32 [B, H, W, C].
      weights: parameters of jaxssl's net by path, to start from.
      encoder: a key of `LAYOUTS`.
      width: channels of the first stage.
      stem: see `Encoder`.
      dtype: a key of `DTYPES`; bfloat16 by autocast.
      temperature: of NT-Xent.
      learning_rate: of SGD, constant.
      momentum: of SGD.
      weight_decay: of SGD, on every parameter.
      compiled: forward, loss and backward by ``torch.compile``.
    """
    torch.set_float32_matmul_precision("high")  # TF32 where there is, as XLA does by itself
    torch.backends.cudnn.benchmark = True
    net = Net(Encoder(encoder, width, stem), weights["head/output/kernel"].shape[1])
    load(net, weights)
    net = net.to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    # A transposed [B, H, W, C] array is channels_last already.
    images = [torch.from_numpy(view.transpose(0, 3, 1, 2)).to(DEVICE) for view in views]

    def loss_of(images: list[torch.Tensor]) -> torch.Tensor:
        with torch.autocast(DEVICE, DTYPES[dtype], enabled=dtype != "float32"):
            projections = net(torch.cat(images))
        return nt_xent(projections, temperature)

    if compiled:
        loss_of = torch.compile(loss_of)

    def step() -> torch.Tensor:
        loss = loss_of(images)
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


def mebibytes() -> float:
    """The most memory that PyTorch has had on the device; 0 on a CPU, which does not tell."""
    return round(torch.cuda.max_memory_allocated() / 2**20, 1) if DEVICE == "cuda" else 0.0
