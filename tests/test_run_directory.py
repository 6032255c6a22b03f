import json
import types

import ml_collections
import numpy as np
import pytest
from old_run import copied
from support import unchecked
from tiny import config_for

from jaxssl import embed, preview
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.probe_data import Place, data_settings
from jaxssl.linear_probe import linear_probe
from jaxssl.pretrain import pretrain
from jaxssl.run_directory import (
    FORMAT,
    check_outside,
    claim,
    config_differences,
    has_config,
    read_config,
    run_info,
    write_config,
)


def example():
    config = ml_collections.ConfigDict()
    config.seed = 3
    config.rate = 0.1 + 0.2
    config.whole = 1.0
    config.name = "résumé"
    config.nothing = None
    config.flag = True
    config.groups = ((r".*/bias", 0.0), (r".*", 1e-6))
    config.empty = ()
    config.run = ml_collections.ConfigDict({"log_every": 10, "stop": None})
    config.nest = ml_collections.ConfigDict({"a": {"b": 1, "c": 2}, "bare": {}})
    return config


def test_a_config_comes_back_equal_and_locked(tmp_path):
    write_config(tmp_path / "new", example(), {"commit": "abc"})
    config = read_config(tmp_path / "new")
    assert config.to_dict() == example().to_dict()
    assert type(config.groups[0]) is tuple
    assert type(config.whole) is float
    assert type(config.flag) is bool
    with pytest.raises(AttributeError):
        config.unheard_of = 1
    assert config_differences(config, example()) == []
    assert json.loads((tmp_path / "new" / "config.json").read_text())["commit"] == "abc"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


def data_in(folder, **compose):
    data = {"data_dir": str(folder), **({"compose": compose} if compose else {})}
    return ml_collections.ConfigDict(data)


def test_nothing_is_written_among_the_data_or_around_them(tmp_path):
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data / "train")
    for inside in (data, data / "runs" / "a", tmp_path / "link" / "a"):
        with pytest.raises(UserError, match=r"--workdir=.* lies inside .*data_dir\): name a p"):
            check_outside(inside, "--workdir", data_in(data))
    with pytest.raises(UserError, match=r"data, which .*\), lies inside --workdir=.*: name an"):
        check_outside(tmp_path, "--workdir", data_in(data))
    with pytest.raises(UserError, match=r"\(--config\.data\.compose\.digits_dir\)"):
        check_outside(data, "--workdir", data_in("", digits_dir=str(tmp_path), size=3))
    for folder in ("", data, f"{data}-2", "gs://bucket/data", tmp_path / "run-2"):
        check_outside(tmp_path / "run", "--workdir", data_in(folder, size=3))


def test_every_program_that_writes_looks_where(tmp_path):
    run = copied("simclr", tmp_path / "photos")
    config = config_for("simclr")
    with config.unlocked():
        config.data.data_dir = str(tmp_path / "photos")
    inside = rf"{tmp_path}/photos.* lies inside {tmp_path}/photos, which holds the data"
    with pytest.raises(UserError, match=f"--workdir={inside} .--config.data.data_dir"):
        pretrain(config, tmp_path / "photos" / "new")
    other = data_settings()
    other.update(name="images", data_dir=str(tmp_path / "photos"))
    with pytest.raises(UserError, match=f"--run={inside} .--data.data_dir"):
        linear_probe(run, None, probe.default_config(), baselines=False, data=other)
    for data, place, flag in (
        (other, Place(), "--data.data_dir"),
        (embed.embed_data_settings(), Place(str(tmp_path / "photos")), "--data_dir"),
    ):
        with pytest.raises(UserError, match=f"--out={inside} .{flag}"):
            embed.check_out(tmp_path / "photos" / "x.npz", run, data, place)
    values = types.SimpleNamespace(config=config, out=str(tmp_path / "photos" / "x.png"))
    with pytest.raises(UserError, match=f"--out={inside} .--config.data.data_dir"):
        unchecked(preview._main)(values)


def test_a_failed_write_leaves_the_old_config(tmp_path, monkeypatch):
    write_config(tmp_path, example(), {})
    changed = example()
    changed.seed = 4

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxssl.run_directory.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_config(tmp_path, changed, {})
    assert read_config(tmp_path).seed == 3


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "config.a.b=nan must be"),
        (np.float32(1), "config.a.b is a float32"),
        ((1, (object(),)), "config.a.b is a object"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(tmp_path, value, said):
    config = ml_collections.ConfigDict({"a": {"b": 0}}, type_safe=False)
    config.a.b = value
    with pytest.raises(UserError, match=said):
        write_config(tmp_path, config, {})
    assert not has_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"config": {"a": 1', '{"config": 5}'])
def test_a_damaged_config_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json is damaged"):
        read_config(tmp_path)


@pytest.mark.parametrize("rest", ['"config": {}', '"settings": []'])
def test_a_config_of_a_newer_format_is_left_as_it_is(tmp_path, rest):
    text = f'{{"format": {FORMAT + 1}, {rest}}}'
    (tmp_path / "config.json").write_text(text)
    for meet in (read_config, lambda run: claim(run, example(), {}, {})):
        with pytest.raises(UserError, match=r"config\.json was written by a newer jaxssl"):
            meet(tmp_path)
    assert (tmp_path / "config.json").read_text() == text
    for form in ('"x"', '"2"', "null", "[2]", "0", "-1", "1.5", "true"):
        (tmp_path / "config.json").write_text(f'{{"format": {form}, "config": {{}}}}')
        with pytest.raises(UserError, match="is damaged"):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"hyper": {}}}')
    with pytest.raises(UserError, match=r"lacks what format 1 has \(KeyError: 'schedule'\)"):
        read_config(tmp_path)


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    write_config(tmp_path, example(), {})
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_config(tmp_path).name == "résumé"


def test_a_directory_without_a_config_is_no_run(tmp_path):
    assert not has_config(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="is not a run directory"):
            read_config(path)


def test_differences_name_the_keys_and_both_values():
    old, new = example(), example()
    new.nest.a.b = 5
    new.groups = ((r".*/bias", 0.0), (r".*", 1e-4))
    new.run.log_every = 99
    new.extra = "x"
    del new["flag"]
    assert config_differences(old, new) == [
        "extra: (absent) -> 'x'",
        "flag: True -> (absent)",
        "groups: (('.*/bias', 0.0), ('.*', 1e-06)) -> (('.*/bias', 0.0), ('.*', 0.0001))",
        "nest.a.b: 1 -> 5",
    ]
    assert config_differences(old, new, ignore=("extra", "flag", "groups", "nest.a")) == [
        "run.log_every: 10 -> 99"
    ]
    # `nest` is no prefix of `nestling`
    old.nestling, new.nestling = 1, 2
    assert "nestling: 1 -> 2" in config_differences(old, new, ignore=("nest",))


def test_info_names_the_code_and_the_hardware():
    info = run_info()
    assert info["device_count"] == 8
    assert info["platform"] == "cpu"
    names = {"python", "jaxssl", "jax", "flax", "orbax-checkpoint", "pillow", "libjpeg"}
    assert set(info["versions"]) >= names
    assert all(info["versions"].values())
    json.dumps(info)


def test_pixels_that_another_decoder_made_are_told_of(tmp_path):
    """A new libjpeg decodes the same file to other pixels: what to look at is in the message."""
    data = {"name": "x", "examples": 9, "content_sha256": "a", "targets_sha256": "b"}
    claim(tmp_path, example(), data, {})
    other = r"other data \(the images' content is not the same\)"
    with pytest.raises(UserError, match=other) as told:
        claim(tmp_path, example(), data | {"content_sha256": "c"}, {})
    assert "libjpeg" not in str(told.value)
    content = json.loads((tmp_path / "config.json").read_text())
    content["versions"]["libjpeg"] = "6b"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"; libjpeg was 6b and is \S+ now, which may"):
        claim(tmp_path, example(), data | {"content_sha256": "c"}, {})
    claim(tmp_path, example(), data, {})  # other decoders that decode alike are no reason
    resumed = [{"versions": content["versions"] | {"libjpeg": "7"}}]
    (tmp_path / "config.json").write_text(json.dumps(content | {"resumed": resumed}))
    with pytest.raises(UserError, match=r"libjpeg was 7 and is"):
        claim(tmp_path, example(), data | {"content_sha256": "c"}, {})
