"""Published files: every name and shape is one of ours at full size, and what is not as published is refused by name.

The two tables are those of the published modules, made on the meta device; acvlab's file holds such tensors, and maybe
those of the frozen Wan2.1.
"""

import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from stagecoach import FantasyWorldPipeline
from stagecoach.models.fantasy_world import published as loader
from stagecoach.models.fantasy_world.config import SIZES
from stagecoach.models.fantasy_world.family import FantasyWorldFamily
from stagecoach.models.fantasy_world.network import build_network
from stagecoach.models.fantasy_world.weight_names import UNUSED, VGGT_UNUSED, published_name, vggt_name
from stagecoach.models.weights import open_weights
from stagecoach.trainer.export import export_adapter
from stagecoach.trainer.generating.sample import Chosen
from stagecoach.trainer.start_point import open_start
from tests.models.fantasy_world.conftest import AGGREGATOR, with_base
from tests.models.fantasy_world.published_file import SMALL, UNUSED_TENSORS, published_weights, stored_shape

FULL = SIZES["wan2.1-14b"].model_copy(update={"compatibility": "published"})
FAMILY = FantasyWorldFamily()


def table(file: str) -> dict[str, tuple[int, ...]]:
    """A line: a name, in which 0-23 stands for one tensor each, and its shape."""
    found = {}
    for line in (Path(__file__).parent / file).read_text().splitlines():
        if line.startswith("#"):
            continue
        name, *shape = line.split()
        run = re.search(r"(\d+)-(\d+)", name)
        numbers = range(int(run[1]), int(run[2]) + 1) if run else [None]
        for number in numbers:
            found[name if run is None else name.replace(run[0], str(number))] = tuple(map(int, shape))
    return found


def test_every_tensor_of_the_published_model_has_its_place_and_shape():
    published, ours = table("published_names.txt"), loader.trained_shapes(FULL, 2)
    expected = {published_name(name, FULL.split): shape for name, shape in ours.items()}
    expected = {name: stored_shape(name, shape) for name, shape in expected.items()}
    assert len(expected) == len(ours) == 1821
    assert {name: shape for name, shape in published.items() if not UNUSED.fullmatch(name)} == expected
    assert len(published) == 1829
    assert sum(map(math.prod, published.values())) == 1_241_322_136 + 906_622_961
    unused = sum(math.prod(shape) for name, shape in published.items() if UNUSED.fullmatch(name))
    assert unused == 136_832 + 4 * 6 * 2048
    assert UNUSED.fullmatch("IRGBlock.3.x_dit.self_attn.q.weight")
    assert not UNUSED.fullmatch("IRGBlock.3.x_dit.cross_attn.processor.k_proj.group1.weight")


def test_every_tensor_of_vggt_1b_but_its_picture_encoder_and_tracks_has_its_place_and_shape():
    vggt, ours = table("vggt_names.txt"), loader.trained_shapes(FULL, 1)
    expected = {theirs: stored_shape(f"vggt.{theirs}", shape) for n, shape in ours.items() if (theirs := vggt_name(n))}
    assert vggt == expected
    assert sum(map(math.prod, vggt.values())) == 886_223_384
    for name in ("aggregator.patch_embed.blocks.0.norm1.weight", "track_head.tracker.fmap_norm.weight"):
        assert VGGT_UNUSED.fullmatch(name)
        assert not any(name == theirs for theirs in expected)


@pytest.fixture
def file(tmp_path, monkeypatch, base_folders):
    monkeypatch.setattr(loader, "SIZES", {loader.SIZE: with_base(AGGREGATOR, base_folders["aggregator"])})
    return tmp_path / "model.pth"


def test_a_published_file_opens_as_weights_do_and_exports(file, tmp_path):
    tensors = published_weights(SMALL)
    torch.save({name: value.bfloat16() for name, value in tensors.items()} | UNUSED_TENSORS, file)
    found = Chosen(str(file)).open()
    assert (found.kind, found.card.family, found.size, found.stage) == ("published", "fantasy_world", "wan2.1-14b", 2)
    assert found.config.compatibility == "published"
    assert found.dtypes == ("bf16",)
    values = found.tensors()
    assert len(values) == len(tensors)
    bridge = tensors["vggt.projection_head.weight"].bfloat16().float()
    assert torch.equal(values["latent_bridge.weight"], bridge[:, :, 0, 0, 0])
    behind = tensors["IRGBlock.1.x_dit.cross_attn.processor.k_proj.group1.bias"].bfloat16().float()
    assert torch.equal(values["camera_adapters.3.camera.bias"], behind)
    network = FantasyWorldPipeline.from_adapter(file).transformer.network
    assert network.config.published
    assert torch.equal(network.camera_adapters[3].camera.bias, behind)
    export_adapter(file, tmp_path / "own.safetensors", "bf16")
    own = open_weights(tmp_path / "own.safetensors")
    assert own.config == found.config
    assert all(torch.equal(value, values[name]) for name, value in own.tensors().items())


def test_weights_start_a_stage_of_their_own_arithmetic_alone(file):
    torch.save(published_weights(SMALL), file)
    plan = SimpleNamespace(index=2, family=FAMILY, recipe=SimpleNamespace(size="wan2.1-14b"), config=SMALL)
    assert open_start(plan, file, init=file).stage == 2  # a warm start
    plan.config = AGGREGATOR
    with pytest.raises(ValueError, match=r"model.pth: .*published, expected default.*set model.compatibility to pub"):
        open_start(plan, file, init=file)
    with pytest.raises(ValueError, match="published file of stage 2, expected 1"):
        open_weights(file, stages=[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("IRGBlock.2.x_agg.ls1.gamma"), r"missing 1 \(IRGBlock.2.x_agg.ls1.gamma\)"),
        (lambda w: w.update({"vggt.other.weight": torch.ones(1)}), r"left over 1 \(vggt.other.weight\)"),
        (
            lambda w: w.update({"vggt.camera_head.embed_pose.weight": torch.ones(3, 9)}),
            r"1 of another shape, first vggt.camera_head.embed_pose.weight \[3, 9\] where the network has \[64, 9\]",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(file, change, sentence):
    tensors = published_weights(SMALL)
    change(tensors)
    torch.save(tensors, file)
    with pytest.raises(ValueError, match=sentence):
        open_weights(file)


def test_a_file_of_no_known_layout_is_refused(file):
    torch.save({"weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="published weights in a layout that a family knows"):
        open_weights(file)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_stage_starts_from_vggt_and_keeps_its_own_values_elsewhere(tmp_path, base_folders, ending):
    shapes = loader.trained_shapes(SMALL, 1)
    g = torch.Generator().manual_seed(0)
    vggt = {t: torch.randn(stored_shape(f"vggt.{t}", s), generator=g) for n, s in shapes.items() if (t := vggt_name(n))}
    path = tmp_path / f"model.{ending}"
    partial(save_file if ending == "safetensors" else torch.save)(
        vggt | {"track_head.x": torch.ones(1), "aggregator.patch_embed.cls_token": torch.ones(1)}, path
    )
    config = with_base(SMALL, base_folders["aggregator"]).model_copy(update={"vggt": str(path)})
    assert str(path) in FAMILY.check_base(config)
    network, before = build_network(config, 1), build_network(config, 1)
    FAMILY.init_from_statistics(network, {})
    old, count = dict(before.named_parameters()), 0
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        theirs = vggt_name(name)
        if theirs is None:
            assert torch.equal(parameter, old[name])
        else:
            count += 1
            assert torch.equal(parameter, vggt[theirs].reshape(parameter.shape))
    assert count == len(vggt)
    vggt.pop("depth_head.norm.weight")
    torch.save(vggt, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match=r"missing 1 \(depth_head.norm.weight\)"):
        FAMILY.check_base(config.model_copy(update={"vggt": str(tmp_path / "cut.pt")}))
