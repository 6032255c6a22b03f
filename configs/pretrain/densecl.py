"""DenseCL (arXiv:2011.09157), ResNet-50 on ImageNet.

    python -m jaxssl.pretrain --config configs/pretrain/densecl.py --workdir runs/densecl

Recipe: the authors' ImageNet config: MoCo-v2's views, SGD .03 at batch 256, momentum .9, decay
1e-4, cosine, 200 epochs, queues of 65,536, teacher decay .999, temperature .2, heads
2048-2048-128 with biases and without BatchNorm, ShuffleBN over 8 devices, dense loss of weight .5.
Their COCO config differs in 800 epochs at a rate of .3:
densecl.py:dataset=coco/2017,epochs=800 --config.hyper.learning_rate.value=.3
Cost: not yet measured on an accelerator.
Published: detection on VOC alone, AP 56.7 after COCO (MoCo-v2 54.7).
Expected here: not yet measured.

Arguments: dataset, batch, epochs, width, size (views, pixels), queue, policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, canonical, head_group, view_group, view_policy
from jaxssl.augment.augmentation import moco_v2


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        dataset="imagenet2012",
        batch=256,
        epochs=200.0,
        width=64,
        size=224,
        queue=65536,
        policy="multi_view",
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = given.dataset
    config.epochs = given.epochs
    config.views = view_group(moco_v2(given.size))
    view_policy(config, given.policy)
    canonical(config, given.size)
    config.normalize.mean = (0.485, 0.456, 0.406)
    config.normalize.std = (0.229, 0.224, 0.225)
    config.encoder.name = "resnet50"
    config.encoder.stem = "imagenet"
    config.encoder.width = given.width
    config.encoder.bn_groups = 8
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.value = 0.03  # at 256
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = 0.2  # of the cosine similarities
    config.hyper.ema = 0.999  # share of itself that the teacher keeps a step
    config.hyper.dense_weight = 0.5  # share of the dense loss; the rest is MoCo's

    method = config.method = ConfigDict()
    method.name = "densecl"
    method.queue_size = given.queue  # keys kept in each queue, a multiple of the images a step
    method.shuffle = True  # permute the teacher's batch over the BatchNorm groups
    for name in ("head", "dense_head"):
        head = method[name] = head_group(out_dim=128)
        head.hidden_norm = False
        head.hidden_bias = True
        head.output_bias = True
    return config.lock()
