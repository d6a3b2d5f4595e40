"""Weights from a folder or drawn by name: exact names, readable errors, values that depend on nothing else."""

import json

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from stagecoach.models.common.materialise import (
    RandomWeights,
    SafetensorsFolder,
    WeightFile,
    keyed_init,
    load_base,
    meta_model,
    open_folder,
)

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "norm.weight": (3,), "table": (1, 6, 4)}


def save(folder, tensors, name="model.safetensors"):
    save_file(tensors, folder / name)
    return folder


def tensors(shapes=None):
    return {name: torch.randn(shape) for name, shape in (shapes or SHAPES).items()}


def test_missing_names_are_one_sentence_with_folder_and_names(tmp_path):
    values = tensors()
    del values["a.bias"]
    with pytest.raises(ValueError, match=r"1 names \('a.bias'\) of 4 weights missing") as error:
        SafetensorsFolder(save(tmp_path, values), SHAPES)
    assert str(tmp_path) in str(error.value)


def test_extra_names_are_one_sentence_with_file_and_names(tmp_path):
    with pytest.raises(ValueError, match=r"model.safetensors: 1 names \('stray'\) not in the model"):
        SafetensorsFolder(save(tmp_path, {**tensors(), "stray": torch.zeros(1)}), SHAPES)


def test_another_shape_names_the_tensor_and_both_shapes(tmp_path):
    with pytest.raises(ValueError, match=r"'a.weight' has shape \[4, 2\], the config expects \[3, 2\]"):
        SafetensorsFolder(save(tmp_path, {**tensors(), "a.weight": torch.zeros(4, 2)}), SHAPES)


def test_a_file_cut_short_is_named(tmp_path):
    save(tmp_path, tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"model.safetensors: not a readable safetensors file .* cut short"):
        SafetensorsFolder(tmp_path, SHAPES)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no .safetensors file found"):
        SafetensorsFolder(tmp_path, SHAPES)


def test_weights_spread_over_files_are_found_through_the_index(tmp_path):
    values = tensors()
    names = list(values)
    save(tmp_path, {n: values[n] for n in names[:2]}, "part-1.safetensors")
    save(tmp_path, {n: values[n] for n in names[2:]}, "part-2.safetensors")
    save(tmp_path, {"other": torch.zeros(1)}, "not_of_the_index.safetensors")
    where = {n: f"part-{1 + (i > 1)}.safetensors" for i, n in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    source = SafetensorsFolder(tmp_path, SHAPES)
    assert all(torch.equal(source.read(n), values[n]) for n in names)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("model.safetensors", "model.fp16.safetensors", "model.non_ema.safetensors"), "model.safetensors"),
        (("model.fp16.safetensors", "model.non_ema.safetensors"), "model.fp16.safetensors"),
        (("flux.1.safetensors",), "flux.1.safetensors"),
    ],
)
def test_of_files_that_hold_the_same_weights_again_one_is_read(tmp_path, names, read):
    for name in names:
        save(tmp_path, tensors(), name)
    assert [path.name for path in SafetensorsFolder(tmp_path, SHAPES).files] == [read]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": x, "epoch": 3}])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_of_torch_save_is_read_under_its_own_names(tmp_path, wrap, mapped):
    values, path = tensors(), tmp_path / "weights.pth"
    torch.save(
        wrap({f"net.{name}": value for name, value in values.items()} | {"net.dead": torch.zeros(2)}),
        path,
        _use_new_zipfile_serialization=mapped,
    )
    source = WeightFile(path, SHAPES, lambda name: None if name == "net.dead" else name.removeprefix("net."))
    assert all(torch.equal(source.read(name), values[name]) for name in SHAPES)


def test_what_is_wrong_with_a_file_is_said_with_the_files_name_for_a_tensor(tmp_path):
    save(tmp_path, {**tensors(), "a.weight": torch.zeros(4, 2)}, "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors: 'a\.weight' has shape \[4, 2\], .* \[3, 2\]"):
        WeightFile(tmp_path / "weights.safetensors", SHAPES)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth: a list found, expected tensors by name"):
        WeightFile(tmp_path / "list.pth", SHAPES)
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"module\.pth: not readable as weights that torch\.save wrote"):
        WeightFile(tmp_path / "module.pth", SHAPES)


def test_a_base_that_is_not_set_is_an_error_unless_it_may_be_random():
    layer = (nn.Linear, {"in_features": 2, "out_features": 3})
    assert open_folder(None, *layer, True, "a layer").read("weight").shape == (3, 2)
    with pytest.raises(ValueError, match=r"^vae\.base is not set, expected the local path of a layer"):
        open_folder(None, *layer, False, "a layer", "vae.base")


def test_the_digest_is_that_of_the_content(tmp_path):
    values = tensors()
    first = SafetensorsFolder(save(tmp_path, values), SHAPES).digest()
    assert SafetensorsFolder(tmp_path, SHAPES).digest() == first
    values["table"][0, 0, 0] += 1
    assert SafetensorsFolder(save(tmp_path, values), SHAPES).digest() != first


def test_random_weights_depend_on_their_name_only():
    one, other = RandomWeights(SHAPES), RandomWeights({"table": (1, 6, 4), "b.weight": (3, 2), "a.weight": (3, 2)})
    torch.randn(3)
    assert torch.equal(one.read("a.weight"), other.read("a.weight"))
    assert not torch.equal(other.read("b.weight"), other.read("a.weight"))
    assert torch.equal(one.read("norm.weight"), torch.ones(3))
    assert torch.equal(one.read("a.bias"), torch.zeros(3))


def test_what_is_on_the_meta_device_is_filled_in_its_dtype_and_nothing_else():
    module = nn.ModuleDict({"a": nn.Linear(2, 3, device="meta"), "own": nn.Linear(1, 1)})
    module["a"].weight.requires_grad_(False)
    module["a"].weight.data = module["a"].weight.data.bfloat16()
    own, source, loaded = module["own"].weight, RandomWeights(SHAPES), []
    assert load_base(module, source, lambda name: name, "cpu", loaded.append) == source.digest()
    assert torch.equal(module["a"].weight, source.read("a.weight").bfloat16())
    assert module["a"].bias.dtype == torch.float32
    assert not module["a"].weight.requires_grad
    assert module["a"].bias.requires_grad
    assert module["own"].weight is own
    assert loaded == []


def test_what_stays_on_the_meta_device_is_named():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 3)
            self.register_buffer("computed", torch.zeros(2), persistent=False)

    with pytest.raises(ValueError, match=r"1 names \('computed'\) of Table still on the meta device .*drawn at random"):
        load_base(meta_model(Table, {}), RandomWeights(SHAPES), lambda name: name, "cpu")


def test_a_folder_of_diffusers_is_loaded_with_its_persistent_buffers(tmp_path):
    settings = {
        "sample_size": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 6,
    }
    saved = SD3Transformer2DModel(**settings)
    saved.save_pretrained(tmp_path)
    model, loaded = meta_model(SD3Transformer2DModel, settings, torch.bfloat16), []
    assert model.pos_embed.pos_embed.is_meta
    source = open_folder(str(tmp_path), SD3Transformer2DModel, settings, False, "SD3")
    load_base(model, source, lambda name: name, "cpu", loaded.append)
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert torch.equal(model.pos_embed.pos_embed, stored["pos_embed.pos_embed"].bfloat16())
    expected = SD3Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).state_dict()
    found = model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in expected.items())
    assert {id(p) for unit in loaded for p in unit.parameters()} == {id(p) for p in model.parameters()}


def test_keyed_init_depends_on_the_name_and_leaves_the_outer_randomness_alone():
    torch.manual_seed(1)
    expected = torch.randn(2)
    torch.manual_seed(1)
    with keyed_init("head"):
        first = nn.Linear(3, 3).weight
    assert torch.equal(torch.randn(2), expected)
    with keyed_init("head"):
        assert torch.equal(nn.Linear(3, 3).weight, first)
    with keyed_init("tail"):
        assert not torch.equal(nn.Linear(3, 3).weight, first)
