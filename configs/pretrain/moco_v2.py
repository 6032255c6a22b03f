"""MoCo-v2 (arXiv:2003.04297), ResNet-18: the authors' CIFAR-10 demo.

    python -m jaxssl.pretrain --config configs/pretrain/moco_v2.py --workdir runs/moco_v2

Recipe: batch 512, SGD .06, momentum .9, decay 5e-4 on everything, cosine by epoch counted from
one, no warm-up; one linear layer to 128; queue 4096, teacher decay .99, temperature .1; crops from
.08, no blur; BatchNorm in 8 groups, the teacher's batch shuffled. Likely the recipe behind the
ResNet-18 numbers of "Is Self-Supervised Learning More Robust Than Supervised Learning?".
Published: kNN (k=200, T=.1, on the 128-d output) 82.6 / 86.3 / 88.7 % after 200 / 400 / 800 epochs,
symmetric 85.3 / 88.5 / 89.7 %, on the test split after training on all 50,000 images: add
--config.data.validation_fraction=0 --config.evals.knn.split=test; here 5,000 are held out.
The demo sums the two directions of its symmetric loss, here they are averaged.
Cost: not yet measured on an accelerator.
Expected here: not yet measured at full width; see "What to expect" in the README for width 16.

Arguments: dataset, batch, epochs, width, size (views, pixels), queue, symmetric, policy (of the
views).
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, canonical, head_group, view_group, view_policy
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
        policy="multi_view",
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = given.dataset
    config.epochs = given.epochs
    config.hyper.learning_rate.granularity = "epoch_from_one"
    config.views = view_group(moco_cifar(given.size))
    view_policy(config, given.policy)
    canonical(config, given.size)
    config.normalize.mean = (0.4914, 0.4822, 0.4465)
    config.normalize.std = (0.2023, 0.1994, 0.2010)
    config.encoder.width = given.width
    config.encoder.bn_groups = 8
    config.hyper.learning_rate.value = 0.06
    config.hyper.temperature = 0.1  # of the cosine similarities
    config.hyper.ema = 0.99  # share of itself that the teacher keeps a step
    config.evals.knn.layer = "projection"

    method = config.method = ConfigDict()
    method.name = "moco_v2"
    method.queue_size = given.queue  # keys kept, a multiple of the keys a step
    method.symmetric = given.symmetric  # both views query and both enter the queue
    method.shuffle = True  # permute the teacher's batch over the BatchNorm groups
    head = method.head = head_group(out_dim=128)
    head.num_layers = 1
    head.hidden_norm = False
    head.hidden_bias = True
    head.output_bias = True
    return config.lock()
