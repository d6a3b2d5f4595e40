"""First weights: from where they should, part by part, the same hash in every stage, one sentence for what is wrong."""

import json

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetSpatioTemporalConditionModel
from safetensors.torch import save_file

from stagecoach.models.dance_with_music.base import fill_base, open_base
from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.network import build_network

TINY, SVD = SIZES["tiny"], SIZES["tiny-svd"]
TO_ANIMATEDIFF = (
    (".motion_modules.0.", ".motion_modules.0.temporal_transformer."),
    (".motion_modules.1.", ".motion_modules.1.temporal_transformer."),
    ("attn1.", "attention_blocks.0."),
    ("attn2.", "attention_blocks.1."),
    ("norm1.", "norms.0."),
    ("norm2.", "norms.1."),
    ("norm3.", "ff_norm."),
)


def shake(model, seed=5):
    """Gains and biases at random too, so that none can be mixed up unseen."""
    g = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g) / 10
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders and files as they are published."""
    root = tmp_path_factory.mktemp("published")
    unet = shake(UNet2DConditionModel(**TINY.unet.unet2d()))
    unet.save_pretrained(root / "unet")
    unet.save_pretrained(root / "half", variant="fp16")
    shake(unet, 6)
    torch.save(
        {
            name: value
            for name, value in unet.state_dict().items()
            if not name.startswith(("conv_norm_out", "conv_out"))
        },
        root / "reference_unet.pth",
    )
    motion = shake(
        MotionAdapter(
            block_out_channels=TINY.unet.widths,
            motion_layers_per_block=1,
            motion_num_attention_heads=TINY.motion.heads,
            motion_norm_num_groups=TINY.unet.groups,
            motion_max_seq_length=32,
        )
    )
    motion.save_pretrained(root / "motion")
    state = {}
    for name, value in motion.state_dict().items():
        for ours, theirs in TO_ANIMATEDIFF:
            name = name.replace(ours, theirs)
        state[name.replace("pos_embed", "attention_blocks.0.pos_encoder")] = value
    torch.save({"state_dict": state}, root / "mm_sd_v15_v2.ckpt")
    svd = shake(UNetSpatioTemporalConditionModel(**SVD.unet.spatio_temporal()))
    svd.save_pretrained(root / "svd")
    held = dict(svd.state_dict())
    for name in list(held):
        if ".transformer_blocks.0.attn2.to_" in name and name.endswith(("k.weight", "v.weight")):
            held[name.replace("attn2.to_", "attn2.processor.id_to_")] = torch.full_like(held[name], 7.0)
    torch.save(held, root / "unet.pth")
    return root


def with_weights(config, random=False, **paths):
    weights = config.weights.model_copy(
        update={name: path if isinstance(path, dict) else str(path) for name, path in paths.items()}
    )
    return config.model_copy(update={"weights": weights, "allow_random_init": random})


def load(config, stage, dtype=torch.float32):
    network = build_network(config, stage, dtype=dtype)
    fill_base(network, config, "cpu")
    return network


def published(root, **more):
    return with_weights(TINY, **{"denoising_unet": root / "unet", "motion": root / "motion", **more})


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_nothing_stays_on_the_meta_device_and_only_what_trains_is_kept_in_fp32(size, stage):
    network = load(SIZES[size], stage, torch.bfloat16)
    base = [p for name, p in network.named_parameters() if name.startswith(("denoising_unet", "reference_unet"))]
    assert all(t.device.type == "cpu" for t in (*network.parameters(), *network.buffers()))
    assert all(p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16) for p in base)
    assert any(p.requires_grad for p in base) == (stage > 1)


def test_the_denoisers_weights_are_the_folders_and_what_has_none_starts_as_its_copy(files):
    network = load(published(files), 2)
    stored = UNet2DConditionModel.from_pretrained(files / "unet").state_dict()
    denoiser, reference = network.denoising_unet.state_dict(), network.reference_unet.state_dict()
    adapters = {name for name in denoiser if ".id_to_" in name}
    assert set(denoiser) - adapters == set(stored)
    assert all(torch.equal(denoiser[name], stored[name]) for name in stored)
    assert adapters
    assert all(torch.equal(denoiser[name], stored[name.replace("processor.id_to_", "to_")]) for name in adapters)
    assert set(stored) - set(reference) == {
        f"{tail}.{part}" for tail in ("conv_norm_out", "conv_out") for part in ("weight", "bias")
    }
    assert all(torch.equal(reference[name], stored[name]) for name in reference)
    # A copy, not the same storage: the two train apart.
    assert denoiser["conv_in.weight"].data_ptr() != reference["conv_in.weight"].data_ptr()


def test_weights_in_16_bits_are_read_where_there_are_no_others(files):
    (path,) = (files / "half").glob("*.safetensors")
    assert path.name == "diffusion_pytorch_model.fp16.safetensors"
    half, plain = (load(published(files, denoising_unet=files / name), 2) for name in ("half", "unet"))
    assert torch.equal(half.denoising_unet.conv_in.weight, plain.denoising_unet.conv_in.weight)


def test_a_reference_net_of_its_own_is_read_from_champs_file(files):
    network = load(published(files, reference_unet=files / "reference_unet.pth"), 2)
    stored = torch.load(files / "reference_unet.pth", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in network.reference_unet.state_dict().items())
    assert not torch.equal(network.denoising_unet.conv_in.weight, stored["conv_in.weight"])


@pytest.mark.parametrize("name", ["motion", "mm_sd_v15_v2.ckpt"])
def test_motion_modules_of_32_frames_load_into_longer_ones(files, name):
    network = load(published(files, motion=files / name), 3)
    stored = MotionAdapter.from_pretrained(files / "motion").state_dict()
    found = {key: value for key, value in network.denoising_unet.state_dict().items() if ".motion_modules." in key}
    assert set(found) == {key for key in stored if not key.endswith(".pe")}
    assert all(torch.equal(value, stored[key]) for key, value in found.items())
    tables = [value for key, value in network.named_buffers() if key.endswith(".pe")]
    assert {table.shape[1] for table in tables} == {TINY.motion.max_frames}


def test_motion_modules_without_weights_change_nothing():
    outs = [p for name, p in load(TINY, 3).named_parameters() if ".motion_modules." in name and ".proj_out." in name]
    assert outs
    assert not any(p.any() for p in outs)


@pytest.mark.parametrize(("name", "copied"), [("svd", True), ("unet.pth", False)])
def test_stable_animators_file_brings_the_identity_adapters_too(files, name, copied):
    network = load(with_weights(SVD, denoising_unet=files / name), 2)
    attn = network.denoising_unet.mid_block.attentions[0].transformer_blocks[0].attn2
    expected = attn.to_v.weight if copied else torch.full_like(attn.to_v.weight, 7.0)
    assert torch.equal(attn.processor.id_to_v.weight, expected)
    assert torch.equal(network.denoising_unet.conv_in.weight, torch.load(files / "unet.pth")["conv_in.weight"])


def test_own_parts_are_read_as_an_adapter_has_them(files, tmp_path):
    trained = shake(load(TINY, 2))
    paths = {}
    for part, prefix in (("m2p", "m2p."), ("face_tokens", "face_tokens."), ("pose", "guidance.encoders.pose.")):
        paths[part] = tmp_path / f"{part}.safetensors"
        save_file({name: p.data for name, p in trained.named_parameters() if name.startswith(prefix)}, paths[part])
    config = published(files, m2p=paths["m2p"], face_tokens=paths["face_tokens"], guidance={"pose": str(paths["pose"])})
    network = load(config, 2)
    for part in ("m2p", "face_tokens", "guidance"):
        pairs = zip(getattr(network, part).parameters(), getattr(trained, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match=r"weights\.guidance names 'hands', expected among guidance\.types, pose"):
        open_base(published(files, guidance={"hands": str(paths["pose"])}))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_frozen_weight_of_the_base_is_placed_once_and_none_that_trains(stage):
    network, placed = build_network(TINY, stage), []

    def on_loaded(unit):
        assert all(p.device.type == "cpu" for p in unit.parameters())
        placed.append(unit)

    fill_base(network, TINY, "cpu", on_loaded)
    covered = [id(p) for unit in placed for p in unit.parameters()]
    frozen = {
        id(p)
        for name, p in network.named_parameters()
        if name.startswith(("denoising_unet", "reference_unet")) and not p.requires_grad
    }
    assert len(covered) == len(set(covered))
    assert set(covered) == frozen


def test_the_hash_is_that_of_all_parts_in_every_stage(files):
    config = published(files)
    digests = {fill_base(build_network(config, stage), config, "cpu") for stage in (1, 2, 3)}
    other = published(files, reference_unet=files / "reference_unet.pth")
    assert len(digests) == 1
    assert fill_base(build_network(other, 1), other, "cpu") not in digests


def test_the_first_stage_already_names_what_a_later_one_would_miss(files):
    with pytest.raises(ValueError, match=r"^weights\.denoising_unet is not set, expected a local folder"):
        load(with_weights(TINY), 1)
    with pytest.raises(ValueError, match=r"^weights\.motion is not set"):
        load(with_weights(TINY, denoising_unet=files / "unet"), 1)
    with pytest.raises(ValueError, match=r"nowhere\.pth: not readable as weights that .*No such file"):
        load(published(files, reference_unet="nowhere.pth"), 1)


def test_another_model_is_refused_by_name(files, tmp_path):
    short = torch.load(files / "reference_unet.pth", weights_only=True)
    del short["conv_in.bias"]
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"short\.pth: 1 names \('conv_in\.bias'\) of \d+ weights missing"):
        open_base(published(files, reference_unet=tmp_path / "short.pth"))
    with pytest.raises(ValueError, match=r"unet\.pth: \d+ names .* not in the model that the config describes"):
        open_base(published(files, reference_unet=files / "unet.pth"))
    data = (files / "reference_unet.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.pth: not readable as weights that torch\.save wrote .* cut short"):
        open_base(published(files, reference_unet=tmp_path / "cut.pth"))
    more = TINY.unet.model_copy(update={"heads": 8})
    with pytest.raises(ValueError, match=r"unet/config\.json: attention_head_dim is 4, .* expects 8"):
        open_base(published(files).model_copy(update={"unet": more}))
    settings = json.loads((files / "motion" / "config.json").read_text())
    assert settings["motion_num_attention_heads"] == 4
    heads = TINY.motion.model_copy(update={"heads": 8})
    with pytest.raises(ValueError, match=r"motion/config\.json: motion_num_attention_heads is 4, .* expects 8"):
        open_base(published(files).model_copy(update={"motion": heads}))


def test_a_sentence_tells_where_each_part_is_from(files):
    assert (
        open_base(TINY).where
        == "denoising_unet drawn at random, reference_unet drawn at random, motion drawn at random"
    )
    assert open_base(with_weights(SVD, denoising_unet=files / "unet.pth")).where == (
        f"denoising_unet from {files / 'unet.pth'}, identity_adapter from {files / 'unet.pth'}"
    )
