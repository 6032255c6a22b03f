"""MoCo-v2 (arXiv:2003.04297), ResNet-18: the authors' CIFAR-10 demo.

    python -m jaxssl.pretrain --config configs/pretrain/moco_v2.py --workdir runs/moco_v2

Recipe: batch 512, SGD .06, momentum .9, decay 5e-4 on everything, cosine by epoch counted from
one, no warm-up; one linear layer to 128; queue 4096, teacher decay .99, temperature .1; crops from
.08, no blur; BatchNorm in 8 groups, the teacher's batch shuffled. Likely the recipe behind the
ResNet-18 numbers of "Is Self-Supervised Learning More Robust Than Supervised Learning?".
Published: kNN (k=200, T=.1, on the 128-d output) 82.6 / 86.3 / 88.7 % after 200 / 400 / 800 epochs,
symmetric 85.3 / 88.5 / 89.7 %, on the test split. The demo sums the two directions of its symmetric
loss, here they are averaged.
Cost: not yet measured on an accelerator.
Expected here: not yet measured at full width; see "What to expect" in the README for width 16.

Arguments: dataset, batch, epochs, width, size (views, pixels), queue, symmetric.
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, view_group
from jaxssl.augment.augmentation import moco_cifar


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        dataset="cifar10",
        batch=512,
        epochs=200.0,
        width=64,
        size=32,
        queue=4096,
        symmetric=False,
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = given.dataset
    config.schedule.epochs = given.epochs
    config.schedule.granularity = "epoch_from_one"
    config.views = view_group(moco_cifar(given.size))
    config.normalize.mean = (0.4914, 0.4822, 0.4465)
    config.normalize.std = (0.2023, 0.1994, 0.2010)
    config.encoder.width = given.width
    config.encoder.bn_groups = 8
    config.hyper.learning_rate = 0.06
    config.hyper.temperature = 0.1  # of the cosine similarities
    config.hyper.ema = 0.99  # share of itself that the teacher keeps a step
    config.monitor.layer = "projection"

    method = config.method = ConfigDict()
    method.name = "moco_v2"
    method.queue_size = given.queue  # keys kept, a multiple of the keys a step
    method.symmetric = given.symmetric  # both views query and both enter the queue
    method.shuffle = True  # permute the teacher's batch over the BatchNorm groups
    head = method.head = ConfigDict()
    head.num_layers = 1
    head.hidden_dim = 0  # 0: as wide as its input
    head.out_dim = 128
    head.hidden_norm = False  # BatchNorm between a hidden layer and its ReLU
    head.hidden_bias = True
    head.output_norm = "none"  # or "bn", "bn_no_center", "bn_no_affine"
    head.output_bias = True
    head.init = "fan_in_uniform"  # see jaxssl.models.heads.DENSE_INITS
    return config.lock()
