"""SimCLR on the real handwritten digits that scikit-learn ships, in minutes on two cores.

    make quickstart

1,294 of 1,797 images of 8x8 pixels train the encoder, drawn up to 16x16 by the crop; 360 test it.
Paper: SimCLR (arXiv:2002.05709); crops alone, no flips (digits have a direction) and no colour.
Cost and expected numbers: see "What to expect" in the README.

Arguments: size (views, pixels), epochs, seed.
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, view_group
from jaxssl.augment.augmentation import Augmentation


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(arg, size=16, epochs=150.0, seed=0, batch=256, width=32)
    config = base_config()
    config.seed = given.seed
    config.batch_size = given.batch
    config.data.name = "digits"
    config.data.image_size = 8
    config.schedule.epochs = given.epochs
    config.schedule.warmup_epochs = 5.0
    view = Augmentation(size=given.size, crop_scale=(0.4, 1.0), flip_p=0.0)
    config.views = view_group((view, view))
    encoder = config.encoder = ConfigDict()
    encoder.name = "convn"  # the small net of the MNIST experiments of arXiv:2011.02803
    encoder.image_size = given.size  # side of the views, pixels
    encoder.width = given.width  # channels of the first convolution; the paper's code has 32
    encoder.padding = "same"  # "valid" (the paper's, for 28 pixels) or "same"
    encoder.bn_momentum = 0.9  # share of the old running statistics kept a step
    encoder.bn_epsilon = 1e-5  # added to the variance
    encoder.bn_groups = 1  # contiguous groups of the batch with statistics of their own
    encoder.kernel_init = "fan_in_truncated_normal"  # or "fan_out_normal"
    encoder.dtype = "float32"  # compute dtype, or "bfloat16"; parameters are float32
    config.hyper.learning_rate = 0.1
    config.hyper.temperature = 0.2
    config.monitor.protocol = "dino"

    method = config.method = ConfigDict()
    method.name = "simclr"
    head = method.head = ConfigDict()
    head.num_layers = 2
    head.hidden_dim = 0  # 0: as wide as its input
    head.out_dim = 64
    head.hidden_norm = True  # BatchNorm between a hidden layer and its ReLU
    head.hidden_bias = False
    head.output_norm = "bn"  # "none", "bn", "bn_no_center", "bn_no_affine"
    head.output_bias = False
    head.init = "fan_in_uniform"  # see jaxssl.models.heads.DENSE_INITS
    return config.lock()
