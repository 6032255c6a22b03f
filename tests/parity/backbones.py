"""What torchvision's and timm's ResNets and ViTs give, with weights drawn from their names.

Run by hand, where PyTorch, torchvision and timm are; the suite reads what it writes and needs none:

    python tests/parity/backbones.py

with torch 2.14.1, torchvision 0.29.1 and timm 1.0.31 on the CPU, in float64 and in evaluation mode.
It writes tests/parity/backbones.npz: of each network the names and shapes of its arrays, and the
digests of its maps and its pooled features.

torchvision has no ResNet-50 of twice the width: its "wide" ones widen the 3x3 convolutions alone.
"resnet50_doubled" is its class with every width doubled.
"""

import pathlib
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from by_name import as_text, digest, images, weights
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

WHERE = pathlib.Path(__file__).parent / "backbones.npz"
SIZE = 64


class Doubled(ResNet):
    """Stem and stages of twice the channels; no classifier."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        self.fc = nn.Identity()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, 128 if (name, value) == ("inplanes", 64) else value)

    def _make_layer(self, block: Any, planes: int, *args: Any, **settings: Any) -> nn.Sequential:
        return super()._make_layer(block, 2 * planes, *args, **settings)


def timm_vit(size: str) -> nn.Module:
    return timm.create_model(f"vit_{size}_patch16_224", img_size=SIZE, num_classes=10)


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        SIZE, 16, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=10
    )


RESNETS = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "resnet18_timm": lambda: timm.create_model("resnet18"),
    "resnet50": lambda: torchvision.models.resnet50(),
    "resnet50_doubled": Doubled,
}


def of_resnet(net: nn.Module) -> tuple[list[nn.Module], nn.Module | None]:
    """The modules that make maps, and the norm that follows them."""
    return [net.layer1, net.layer2, net.layer3, net.layer4], None


def of_timm(net: nn.Module) -> tuple[list[nn.Module], nn.Module | None]:
    return [net.blocks[n] for n in (2, 5, 8, 11)], net.norm


def of_torchvision(net: nn.Module) -> tuple[list[nn.Module], nn.Module | None]:
    return [net.encoder.layers[n] for n in (0, 2)], net.encoder.ln


def outputs(net: nn.Module, makers: list[nn.Module], norm: nn.Module | None) -> dict:
    """The digests of a forward pass: ``stage1`` ... and ``pooled``."""
    found: list[torch.Tensor] = []
    for module in makers:
        module.register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        net(torch.from_numpy(images(SIZE)).permute(0, 3, 1, 2))
        if norm is None:
            maps = [x.permute(0, 2, 3, 1) for x in found]
            pooled = maps[-1].mean((1, 2))
        else:
            tokens = [norm(x) for x in found]
            maps, pooled = [x[:, 1:] for x in tokens], tokens[-1][:, 0]
    stages = {f"stage{n}": digest(x.numpy()) for n, x in enumerate(maps, 1)}
    return {**stages, "pooled": digest(pooled.numpy())}


def case(net: nn.Module, parts: Any) -> dict[str, np.ndarray]:
    net = net.double().eval()
    shapes = {name: tuple(array.shape) for name, array in net.state_dict().items()}
    net.load_state_dict({k: torch.from_numpy(v) for k, v in weights(shapes).items()})
    return {"names": as_text(shapes), **outputs(net, *parts(net))}


if __name__ == "__main__":
    cases = {name: case(build(), of_resnet) for name, build in RESNETS.items()}
    cases |= {f"vit_{size}": case(timm_vit(size), of_timm) for size in ("tiny", "small")}
    cases["vit_torchvision"] = case(torchvision_vit(), of_torchvision)
    arrays = {f"{name}/{key}": x for name, found in cases.items() for key, x in found.items()}
    np.savez_compressed(WHERE, **arrays)
    print(f"{len(cases)} networks, {WHERE.stat().st_size} bytes in {WHERE}")
