"""Dense contrastive learning (Moon, Kim and Choi, BMVC 2022; no arXiv number), ResNet-18.

    python -m jaxssl.pretrain --config configs/pretrain/dense_contrastive.py --workdir runs/dense

Recipe: STL-10, train and unlabelled images, views of 64 pixels; SGD .12 B/256, momentum .9, decay
1e-4, batch 768, 200 epochs, as Wang and Isola (arXiv:2005.10242), whose settings the paper says it
takes; their rate falls tenfold at epochs 155, 170 and 185 and ours by a cosine. Both heads are
512-512-128 (DenseCL, arXiv:2011.09157). The paper trains many models over temperatures and weights
that it does not print; a dense model has --config.hyper.dense_weight=1, an instance model 0.
Published: linear accuracy on STL-10 of up to 75.45 % (dense) and 76.16 % (instance); a random
network 28.04 %.
Cost: not yet measured on an accelerator.
Expected here: not yet measured.

Arguments: objective (info_nce, align_uniform), dataset, batch, epochs, width, size (views, pixels),
policy (of the views).
"""

from ml_collections import ConfigDict

from configs.common import arguments, base_config, canonical, head_group, view_group, view_policy
from jaxssl.augment.augmentation import Augmentation
from jaxssl.errors import choose


def get_config(arg: str | None = None) -> ConfigDict:
    given = arguments(
        arg,
        objective="info_nce",
        dataset="stl10",
        batch=768,
        epochs=200.0,
        width=64,
        size=64,
        policy="multi_view",
    )
    config = base_config()
    config.batch_size = given.batch
    config.data.name = given.dataset
    config.epochs = given.epochs
    view = Augmentation(
        size=given.size,
        crop_scale=(0.08, 1.0),
        crop_filter="bilinear",
        jitter_p=1.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.4,
        grayscale_p=0.2,
    )
    config.views = view_group((view, view))
    view_policy(config, given.policy)
    canonical(config, given.size)
    config.normalize.mean = (0.4409, 0.4279, 0.3868)
    config.normalize.std = (0.2683, 0.2610, 0.2687)
    config.encoder.width = given.width
    config.encoder.stem = "imagenet"
    config.optimizer.scaling = "linear"
    config.hyper.learning_rate.value = 0.12  # at 256
    config.hyper.weight_decay = 1e-4
    config.hyper.dense_weight = 1.0  # share of the dense loss; the rest is the instance loss's
    config.method = choose(
        "objective", given.objective, {"info_nce": info_nce, "align_uniform": align_uniform}
    )(config.hyper)
    for name in ("head", "dense_head"):
        head = config.method[name] = head_group(out_dim=128)
        head.hidden_norm = False
        head.hidden_bias = True
        head.output_bias = True
    return config.lock()


def info_nce(hyper: ConfigDict) -> ConfigDict:
    hyper.temperature = 0.2  # of the cosine similarities
    method = ConfigDict({"name": "dense_contrastive"})
    method.matching = "index"  # of cells: or "cosine", "set"
    method.plan = "entropic"  # of "set": transport by Sinkhorn, or "exact"
    method.plan_epsilon = 0.05  # regularisation of the entropic plan, in cosines
    method.plan_iterations = 50  # rounds of Sinkhorn
    method.negatives = "both_views"  # cells of other images in both views, or "other_view"
    method.positive_in_denominator = True
    return method


def align_uniform(hyper: ConfigDict) -> ConfigDict:
    hyper.alignment_weight = 1.0  # of L_a, minus the mean cosine of matching cells
    hyper.uniformity_weight = 1.0  # of L_u
    hyper.uniformity_t = 2.0  # inverse width of the Gaussian potential; the paper prints 1
    method = ConfigDict({"name": "dense_align_uniform"})
    method.pairs = "same_index"  # of cells of different images that repel, or "all_cells"
    return method
