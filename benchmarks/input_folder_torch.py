"""The peer of `input_folder.py`: torchvision's ImageFolder, fed by PyTorch's DataLoader.

python benchmarks/input_folder_torch.py FOLDER SIZE BATCH WORKERS
"""

import sys

from input_folder import read
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder


def main() -> None:
    folder, (size, batch, workers) = sys.argv[1], map(int, sys.argv[2:])
    bicubic = transforms.InterpolationMode.BICUBIC
    view = transforms.Compose(
        [
            transforms.Resize(size, interpolation=bicubic),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    data = ImageFolder(f"{folder}/train", transform=view)
    # Without end: between two epochs its workers would stand still.
    sampler = RandomSampler(data, replacement=True, num_samples=10**9)
    loader = DataLoader(data, batch_size=batch, sampler=sampler, num_workers=workers)
    read(iter(loader), lambda one: len(one[1]), lambda: None)


if __name__ == "__main__":
    main()
