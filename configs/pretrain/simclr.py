"""SimCLR (arXiv:2002.05709), ResNet-18.

    python -m jaxssl.pretrain --config configs/pretrain/simclr.py --workdir runs/simclr

Recipe: the CIFAR-10 benchmark of lightly (SGD .06 B/128, momentum .9, decay 5e-4 on everything,
cosine, no warm-up, temperature .5, head 512-512-128, colour strength .5, no blur), which reports
kNN (k=200, T=.1) of .847 after 200 epochs at batch 128 and .879 after 800 at batch 512, best epoch
on the test split. Here 5,000 of the 50,000 training images are held out for choices; that benchmark
trains on all of them and reads the test split, which is

    python -m jaxssl.pretrain --config configs/pretrain/simclr.py:batch=128 --workdir runs/anchor \
        --config.data.validation_fraction=0 --config.evals.knn.split=test

Cost: not yet measured on an accelerator.
Expected here: not yet measured at full width; see "What to expect" in the README for width 16.

Arguments: dataset, batch, epochs, width, size (views, pixels), policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, canonical, simclr_group, view_group, view_policy
from jaxssl.augment.augmentation import simclr_cifar


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg, dataset="cifar10", batch=512, epochs=200.0, width=64, size=32, policy="multi_view"
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = given.dataset
    config.epochs = given.epochs
    config.views = view_group(simclr_cifar(given.size))
    view_policy(config, given.policy)
    canonical(config, given.size)
    config.encoder.width = given.width
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.value = 0.12  # at 256: .06 at 128
    config.hyper.temperature = 0.5  # of the cosine similarities
    config.method = simclr_group(out_dim=128)
    config.method.head.output_norm = "bn"
    return config.lock()
