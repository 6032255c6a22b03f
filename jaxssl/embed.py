"""Embeds images: ``python -m jaxssl.embed --run RUN --data.name=images ... --out F.npz``.

checkpoint -> frozen layer -> one vector an image, in a ``.npz``: of a folder or any other set that
a config can name, with or without labels, or of a split of the run's own data. From Python, of any
images::

    import jaxssl
    encoder = jaxssl.load("runs/x")
    vectors = encoder.features(images)

Images are what the run's test images are: brought to its size, corrupted as its were, normalised.
"""

import dataclasses
import functools
import json
import os
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from jaxssl import cli, distributed
from jaxssl.data.examples import Source, array_source, identity
from jaxssl.data.folders import FolderSource
from jaxssl.data.sources import check_view_size, load, pretraining_split
from jaxssl.data.splits import SPLITS, corrupted
from jaxssl.errors import UserError, choose
from jaxssl.evaluation.classifier import write_npz
from jaxssl.evaluation.features import (
    Embed,
    FeatureSet,
    check_finite,
    extract,
    whole_batch,
)
from jaxssl.evaluation.frozen import Restored, check_layer, make_test_view, restored_method
from jaxssl.evaluation.probe_data import (
    WHERE_TRAINED,
    Place,
    check_channels,
    data_settings,
    flags_of,
    with_data,
)
from jaxssl.randomness import Split
from jaxssl.run_directory import check_outside, read_config, read_info
from jaxssl.storage import Path, as_path, check_writable
from jaxssl.words import counted

_OWN_FLAGS = {"data_dir": "--data_dir", "compose.digits_dir": "--digits_dir"}


def default_config() -> ConfigDict:
    """Settings of the program."""
    config = ConfigDict()
    config.layer = (
        "pooled"  # of the method: "projection", "teacher", "stage4" ...; a map is averaged
    )
    config.split = "train"  # of the set; a folder that has no splits is all "train"
    config.batch_size = 512  # images a pass
    config.distributed = False  # join the processes of a job of several first
    return config


def embed_data_settings() -> ConfigDict:
    """`data_settings`, but nothing is held out unless asked for."""
    data = data_settings()
    data.validation_fraction = 0.0
    return data


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """A layer of a checkpoint as a function of images.

    Attributes:
      layer: the layer.
      step: the step of the checkpoint.
      digest: SHA-256 of the encoder's parameters and statistics, as a probe's card has it.
      channels: of the images that the run was trained on.
    """

    layer: str
    step: int
    digest: str
    channels: int
    _restored: Restored
    _mesh: Mesh

    def features(
        self, images: UInt8[np.ndarray, "n h w c"], *, batch_size: int = 256
    ) -> Float[np.ndarray, "n d"]:
        """One vector an image, float32; a map is averaged over its positions.

        Args:
          images: uint8 [N, H, W, C] of any size, RGB if C is 3; see
            `jaxssl.augment.views.evaluation_view` for how they are brought to the run's size.
          batch_size: images a pass. Each combination of size and batch is compiled once.

        Raises:
          UserError: if they have another dtype or number of channels, there are none, or
            ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1.")
        try:
            images = np.asarray(images)
        except ValueError:
            raise UserError(
                "images differ in size and must be one uint8 array [N, H, W, C]: call once for "
                "each size, or bring them to one."
            ) from None
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != self.channels:
            raise UserError(
                f"images are {images.dtype} {list(images.shape)} and must be uint8 [N, H, W, "
                f"{self.channels}] with values from 0 to 255, as the run was trained on."
            )
        if not images.size:
            raise UserError(
                f"images have shape {list(images.shape)} [N, H, W, C]: give at least one, of at "
                "least one pixel."
            )
        source = array_source("images from Python", Split.TEST, images, {})
        return self.of(source, batch_size=min(batch_size, len(images))).features

    def of(self, source: Source, *, batch_size: int) -> FeatureSet:
        """The vectors, and the labels if there are, of a source as yet uncorrupted."""
        config = self._restored.config
        size = config.views.global_crops.size
        return extract(
            self._embed,
            corrupted(source, config.corruption, size),
            mesh=self._mesh,
            batch_size=whole_batch(batch_size, self._mesh),
        )

    @functools.cached_property
    def _embed(self) -> Embed:
        return self._restored.network.through(make_test_view(self._restored.config), self.layer)


def load_encoder(
    run: str | os.PathLike[str], step: int | None = None, layer: str = "pooled"
) -> FrozenEncoder:
    """A layer of a run's checkpoint; `jaxssl.load` is this.

    Args:
      run: directory of a pretraining run.
      step: which checkpoint; None: the newest sound one.
      layer: ``pooled``, ``projection``, ``teacher``, ``stage1`` ...

    Raises:
      UserError: if there is no such run, checkpoint or layer.
    """
    return _encoder(as_path(run, "run"), step, layer, "layer")


def _encoder(run: Path, step: int | None, layer: str, flag: str) -> FrozenEncoder:
    shape = read_info(run)["data"]["image_shape"]
    mesh = distributed.data_mesh()
    restored = restored_method(run, step, mesh)
    blank = array_source("a blank", Split.TEST, np.zeros((1, *shape), np.uint8), {})
    config = restored.config
    row = corrupted(blank, config.corruption, config.views.global_crops.size)
    layers = restored.network.layers(make_test_view(config), row.gather(np.zeros(1, np.int64)))
    check_layer(flag, layer, layers)
    digest = restored.network.encoder_digest()
    return FrozenEncoder(layer, restored.step, digest, shape[-1], restored, mesh)


def embed(
    run: Path,
    step: int | None,
    settings: ConfigDict,
    data: ConfigDict,
    place: Place = WHERE_TRAINED,
) -> dict[str, Any]:
    """What the program writes.

    Args:
      run: directory of a pretraining run.
      step: which checkpoint; None: the newest sound one.
      settings: see `default_config`.
      data: see `embed_data_settings`.
      place: where the run's own data lie now.

    Returns:
      ``features`` float32 [N, D]; ``index`` int [N], positions in the original split; ``files``
      [N], relative to the set's folder, if it is one; ``labels`` int32 [N] and ``class_names``, if
      it has them; ``layer``, ``step``, ``encoder_sha256``, and ``data``, JSON.

    Raises:
      UserError: for whatever the user can mend.
    """
    with flags_of(None if data.name else _OWN_FLAGS):
        source = distributed.all_can("the data", lambda: _opened(run, settings, data, place))
        encoder = _encoder(run, step, settings.layer, "--embed.layer")
        # Within, for files are decoded only now.
        found = encoder.of(source, batch_size=min(settings.batch_size, len(source)))
    check_finite(found, "image", "--embed.layer")
    made: dict[str, Any] = {"features": found.features, "index": source.positions}
    if isinstance(source, FolderSource):
        made["files"] = source.names
    if len(found.labels):
        made["labels"] = found.labels
        if source.class_names is not None:
            made["class_names"] = source.class_names
    return made | {
        "layer": encoder.layer,
        "step": encoder.step,
        "encoder_sha256": encoder.digest,
        "data": json.dumps(identity(source)),
    }


def _opened(run: Path, settings: ConfigDict, data: ConfigDict, place: Place) -> Source:
    """What `embed` embeds."""
    choose("--embed.split", settings.split, dict.fromkeys(SPLITS))
    if settings.batch_size < 1:
        raise UserError(f"--embed.batch_size={settings.batch_size} must be at least 1.")
    info = read_info(run)
    if info["data"].get("from_python") and not data.name:
        raise UserError(
            f"{run} was trained on data that came from Python: name a set by --data.name, or use "
            "jaxssl.load from Python."
        )
    config = with_data(read_config(run), data, place, embed_data_settings())
    split = pretraining_split(config.data) if settings.split == "pretrain" else settings.split
    source = load(config.data, split, memory_limit_bytes=0)
    if data.name:
        check_view_size(source, config.views.global_crops.size)
    check_channels(info, source)
    return source


def check_out(out: Path, run: Path, data: ConfigDict, place: Place) -> None:
    """Raises UserError unless a file may be written there; the others as those of `embed`."""
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"--out={out} must be a file whose name ends in .npz.")
    check_writable(out.parent, "--out")
    config = with_data(read_config(run), data, place, embed_data_settings())
    own_flags = ("--data.data_dir" if data.name else "--data_dir", "--digits_dir")
    check_outside(out, "--out", config.data, own_flags)


def _main(values: flags.FlagValues) -> None:
    run, out = as_path(values.run, "--run"), as_path(values.out, "--out")
    place = Place(values.data_dir, values.digits_dir)
    if not values.embed.distributed:
        check_out(out, run, values.data, place)
    distributed.check_launched(values.embed.distributed, "--embed.distributed")
    if values.embed.distributed:
        distributed.initialize("--embed.distributed")
        check = functools.partial(check_out, out, run, values.data, place)
        distributed.all_can("the file to write", check)  # whose end would not be heard of before
    cli.announce(f"embedding with layer {values.embed.layer} of {run} into {out}")
    made = embed(run, values.step, values.embed, values.data, place)
    if jax.process_index() == 0:
        write_npz(out, **made)
        count, size = made["features"].shape
        told = f"{counted(count, 'vector')} of {counted(size, 'component')}"
        print(f"{told}, layer {made['layer']}: {out}")


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Directory of a pretraining run.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint to read; the newest sound one if not given.")
    flags.DEFINE_string("out", None, ".npz file, written or overwritten.", required=True)
    flags.DEFINE_string("data_dir", "", "Where the run's own data lie now, if they were moved.")
    flags.DEFINE_string("digits_dir", "", "Where the digits of digit_on_image lie now.")
    cli.define_settings("embed", default_config())
    cli.define_settings("data", embed_data_settings())
    cli.launch(_main)
