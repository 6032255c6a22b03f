"""SimCLR on DigitOnImageNet (arXiv:2011.02803, section 5.1): a digit that competes with the scene.

    python -m jaxssl.pretrain --config configs/pretrain/digit_on_image.py:unique_digits=256 \
        --workdir runs/digit_on_image
    python -m jaxssl.linear_probe --run runs/digit_on_image --probe.target=digit

Recipe: nine copies of one MNIST digit on each image before augmentation, one fixed digit an image
out of the first K, ResNet-50, batch 1024, SimCLR's ImageNet views, LARS .075 sqrt(batch), head of
two layers to 128, 100 epochs; probed on both the scene and the digit, with all digits. Images are
resized to 224 before the digits are laid on them, as in the authors' code.
Cost: not yet measured on an accelerator.
Published: curves alone (figure 6); no values.
Expected here: not yet measured.

Arguments: base (data set), unique_digits, digits (data set), image_size, digit_size, size (views,
pixels), batch, epochs, encoder, width, temperature, policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, lars_group, simclr_group, view_group, view_policy
from jaxssl.augment.augmentation import simclr_imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        base="imagenet2012",
        unique_digits=256,
        digits="mnist",
        image_size=224,
        digit_size=28,
        size=224,
        batch=1024,
        epochs=100.0,
        encoder="resnet50",
        width=64,
        temperature=0.1,
        policy="multi_view",
    )
    config = base_config()
    config.batch_size = given.batch
    config.epochs = given.epochs
    config.hyper.learning_rate.warmup_epochs = min(10.0, given.epochs / 10)
    config.data.name = "digit_on_image"
    config.data.image_size = given.image_size
    compose = config.data.compose = ConfigDict()
    compose.base = given.base  # the images
    compose.digits = given.digits  # labelled set of one-channel images that are laid on them
    compose.digits_dir = ""  # where that set lies, as data.data_dir
    compose.digit_size = given.digit_size  # pixels
    compose.unique_digits = given.unique_digits  # K in pretraining: the first K training digits
    compose.seed = 0  # of which image gets which digit
    config.views = view_group(simclr_imagenet(given.size))
    view_policy(config, given.policy)
    config.encoder.name = given.encoder
    config.encoder.width = given.width
    config.encoder.stem = "imagenet"
    config.optimizer = lars_group()
    config.optimizer.scaling = "sqrt"
    config.hyper.learning_rate.value = 0.075
    config.hyper.weight_decay = 1e-4
    config.hyper.temperature = given.temperature  # of the cosine similarities
    config.method = simclr_group(out_dim=128)
    return config.lock()
