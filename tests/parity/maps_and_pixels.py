"""What PyTorch gives for losses of maps, of priors and of pixels, on inputs and weights of a seed.

Run by hand, where PyTorch, timm and lightly are; the suite reads what it writes and needs none:

    python tests/parity/maps_and_pixels.py

with torch 2.14.1, timm 1.0.31 and lightly 1.6.0 on the CPU, in float64. It writes
tests/parity/maps_and_pixels.npz: of each case the inputs, the weights, the loss and the gradient
with respect to each. MAE is lightly's. Dense contrastive learning, DenseCL's dense half, the
generalised loss and the VAE, which lightly does not have, are written here from the papers.
"""

import pathlib
import warnings

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import heads
from lightly.models.modules.masked_autoencoder_timm import MAEDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from methods import BATCH, HIDDEN, IN, LABELS, OUT, Case, jointly, mlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

WHERE = pathlib.Path(__file__).parent / "maps_and_pixels.npz"
CELLS, QUEUE, LATENT = 4, 16, 3
TEMPERATURE, SHARE = 0.3, 0.25


def plain_head() -> nn.Module:
    return heads.MoCoProjectionHead(IN, HIDDEN, OUT)


def unit(x: torch.Tensor) -> torch.Tensor:
    return functional.normalize(x, dim=-1)


def both_heads(case: Case) -> tuple[torch.Tensor, ...]:
    """Maps x [B, P, D] of two views, projections z of their means, h of each cell."""
    x1, x2 = case.views(2, CELLS)
    z = jointly(case.network("head", plain_head()), [x1.mean(1), x2.mean(1)])
    dense = case.network("dense_head", plain_head())
    h = [dense(x.reshape(-1, IN)).reshape(BATCH, CELLS, OUT) for x in (x1, x2)]
    return x1, x2, *z, *h


def dense_contrastive(seed: int, matching: str) -> dict[str, np.ndarray]:
    """Eq. 2: cells against all cells but those of their own view of the image."""
    case = Case(seed)
    x1, x2, z1, z2, h1, h2 = both_heads(case)
    cells = unit(torch.stack([h1, h2])).reshape(-1, OUT)
    view, image, cell = np.unravel_index(np.arange(2 * BATCH * CELLS), (2, BATCH, CELLS))
    own = (view[:, None] == view) & (image[:, None] == image)
    other = (view[:, None] != view) & (image[:, None] == image)
    if matching == "index":
        positive = (other & (cell[:, None] == cell)).argmax(1)
    else:
        maps = unit(torch.stack([x1, x2]).detach()).reshape(-1, IN)
        cosines = (maps @ maps.T).masked_fill(~torch.from_numpy(other), -torch.inf)
        positive = cosines.argmax(1).numpy()
    logits = (cells @ cells.T / TEMPERATURE).masked_fill(torch.from_numpy(own), -torch.inf)
    dense = functional.cross_entropy(logits, torch.from_numpy(positive))
    instance = NTXentLoss(temperature=TEMPERATURE)(z1, z2)
    return case.finish((1 - SHARE) * instance + SHARE * dense)


def dense_contrastive_index() -> dict[str, np.ndarray]:
    return dense_contrastive(21, "index")


def dense_contrastive_cosine() -> dict[str, np.ndarray]:
    return dense_contrastive(22, "cosine")


def dense_align_uniform() -> dict[str, np.ndarray]:
    """.7 L_a + 1.3 L_u, cells of one index, t = 1.5."""
    case = Case(23)
    _, _, z1, z2, h1, h2 = both_heads(case)

    def term(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = unit(a), unit(b)
        images = torch.cat([a, b]).transpose(0, 1)  # cells, then images of both views
        squared = (images[:, :, None] - images[:, None]).square().sum(-1)
        number = torch.arange(BATCH).repeat(2)
        others = squared[:, number[:, None] != number]
        return -0.7 * (a * b).sum(-1).mean() + 1.3 * torch.exp(-1.5 * others).mean().log()

    instance = term(z1[:, None], z2[:, None])
    return case.finish((1 - SHARE) * instance + SHARE * term(h1, h2))


def densecl() -> dict[str, np.ndarray]:
    """Eq. 3: MoCo's loss, and of each cell of the query that of the key's cell most like it."""
    case = Case(24)
    x1, x2 = case.views(2, CELLS)
    names = ("head", "dense_head")
    head, dense = (case.network(name, plain_head()) for name in names)
    teachers = [case.network(f"teacher_{name}", plain_head(), False) for name in names]
    queue, dense_queue = (unit(case.fixed(name, QUEUE, OUT)) for name in ("queue", "dense_queue"))
    with torch.no_grad():
        k = unit(teachers[0](x2.mean(1)))
        k_cells = unit(teachers[1](x2.reshape(-1, IN)).reshape(BATCH, CELLS, OUT))
        match = (unit(x1) @ unit(x2).transpose(1, 2)).argmax(2)
        k_cells = torch.stack([cells[m] for cells, m in zip(k_cells, match, strict=True)])

    def info_nce(q: torch.Tensor, k: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        q = unit(q)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], 1) / TEMPERATURE
        return functional.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))

    instance = info_nce(head(x1.mean(1)), k, queue)
    cells = info_nce(dense(x1.reshape(-1, IN)), k_cells.reshape(-1, OUT), dense_queue)
    return case.finish((1 - SHARE) * instance + SHARE * cells)


def generalized_logsumexp() -> dict[str, np.ndarray]:
    """Table 1's first row in the form of the authors' notebook, times 1000."""
    case = Case(25)
    z1, z2 = map(unit, jointly(case.network("head", mlp(norm=True)), case.views()))
    z = torch.cat([z1, z2])
    spread = (torch.logsumexp(z @ z.T / 0.8, dim=1) - np.log(OUT)).mean()
    return case.finish(1000 * ((z1 - z2).square().mean() / 2 + 0.1 * spread))


def generalized_normal() -> dict[str, np.ndarray]:
    """Sliced Wasserstein distance of both views to a sample of the normal, along a given basis."""
    case = Case(26)
    z1, z2 = jointly(case.network("head", mlp(norm=True)), case.views())
    basis = torch.linalg.qr(case.fixed("basis", OUT, OUT))[0]
    sample = case.fixed("sample", 2 * BATCH, OUT)
    ours, prior = (torch.sort(x @ basis, dim=0)[0] for x in (torch.cat([z1, z2]), sample))
    case.saved["basis"] = basis.numpy()
    return case.finish((z1 - z2).square().mean() / 2 + 5 * (ours - prior).square().mean())


def supervised() -> dict[str, np.ndarray]:
    case = Case(27)
    classifier = case.network("classifier", nn.Linear(IN, 4))
    labels = torch.tensor(LABELS).repeat(2)
    return case.finish(functional.cross_entropy(classifier(torch.cat(case.views())), labels))


def rows_first(rows: int, columns: int, dim: int) -> np.ndarray:
    """MoCo-v3's fixed positions, and zero for the class token."""
    quarter = dim // 4
    waves = 1 / 10_000 ** (np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(rows * columns), columns)
    parts = [f(place[:, None] * waves) for place in (row, column) for f in (np.sin, np.cos)]
    return np.concatenate([np.zeros((1, dim)), np.concatenate(parts, axis=1)])[None]


def mae() -> dict[str, np.ndarray]:
    """Nine patches of 4x4 pixels, of which four are seen; targets normalised."""
    case, patch, kept, dim = Case(28), 4, 4, 8
    images = case.fixed("images", BATCH, 2, 3 * patch, 3 * patch)
    order = np.stack([case.draw.permutation(9) for _ in range(BATCH)])
    case.saved["order"] = order
    seen, hidden = (torch.from_numpy(1 + part) for part in np.split(order, [kept], axis=1))
    seen = torch.cat([torch.zeros(BATCH, 1, dtype=torch.long), seen], dim=1)  # the class token
    vit = VisionTransformer(3 * patch, patch, 2, num_classes=0, embed_dim=dim, depth=2, num_heads=2)
    encoder = MaskedVisionTransformerTIMM(vit)
    case.network("encoder", vit, scale=0.5)
    decoder = MAEDecoderTIMM(9, patch, 2, dim, dim, decoder_depth=1, decoder_num_heads=2)
    case.network("decoder", decoder, scale=0.5)
    for found in (case.leaves, case.saved):
        del found["decoder/decoder_pos_embed"]
    decoder.decoder_pos_embed = nn.Parameter(
        torch.from_numpy(rows_first(3, 3, dim)), requires_grad=False
    )
    tokens = decoder.embed(encoder.double().encode(images, idx_keep=seen))
    whole = utils.repeat_token(decoder.mask_token, (BATCH, 10))
    whole = decoder.decode(utils.set_at_index(whole, seen, tokens))
    prediction = decoder.predict(utils.get_at_index(whole, hidden))
    target = utils.get_at_index(utils.patchify(images, patch), hidden - 1)
    return case.finish(functional.mse_loss(prediction, utils.normalize_mean_var(target)))


class Down(nn.Module):
    """ConvN with a width of 2, for 16 pixels and 2 channels."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((2, 2), (2, 4), (4, 4))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in sizes)
        self.dense = nn.Linear(16, 8, bias=False)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        flat = x.permute(0, 2, 3, 1).flatten(1)  # rows, columns, channels
        return functional.relu(self.norm(self.dense(flat)))


class Up(nn.Module):
    """Its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((4, 4), (4, 2), (2, 2))
        self.dense = nn.Linear(LATENT, 16, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(a, eps=1e-3) for a, _ in sizes)
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 3, 2, 1, output_padding=1, bias=n == 2)
            for n, (a, b) in enumerate(sizes)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.dense(z).reshape(len(z), 2, 2, 4).permute(0, 3, 1, 2)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(functional.relu(norm(x)))
        return x


def vae() -> dict[str, np.ndarray]:
    """The negative bound in nats an image, beta .7, with the noise given."""
    case = Case(29)
    case.saved["images"] = case.draw.uniform(size=(BATCH, 2, 16, 16))
    images, noise = torch.from_numpy(case.saved["images"]), case.fixed("noise", BATCH, LATENT)
    pooled = case.network("encoder", Down(), scale=0.5)(images)
    mean = case.network("mean", nn.Linear(8, LATENT), scale=0.5)(pooled)
    log_variance = case.network("log_variance", nn.Linear(8, LATENT), scale=0.5)(pooled)
    posterior = Normal(mean, torch.exp(log_variance / 2))
    logits = case.network("decoder", Up(), scale=0.5)(mean + posterior.stddev * noise)
    nats = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum()
    return case.finish((nats + 0.7 * divergence) / BATCH)


CASES = (
    dense_contrastive_index,
    dense_contrastive_cosine,
    dense_align_uniform,
    densecl,
    generalized_logsumexp,
    generalized_normal,
    supervised,
    mae,
    vae,
)


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    arrays = {f"{case.__name__}/{n}": v for case in CASES for n, v in case().items()}
    np.savez_compressed(WHERE, **arrays)
    print(f"{len(CASES)} cases, {WHERE.stat().st_size} bytes in {WHERE}")
