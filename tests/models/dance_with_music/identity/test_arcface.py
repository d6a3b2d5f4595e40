"""IResNet-100: the published network's size, names and arithmetic; frozen regardless of what is called."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from stagecoach.models.dance_with_music.identity.arcface import (
    DEPTHS,
    TINY_DEPTHS,
    TINY_WIDTHS,
    ArcFace,
    load_arcface,
    make_arcface,
)


def published_names(depths):
    """insightface's ``iresnet``, written out."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", "prelu.weight", "fc.weight", "fc.bias"]
    norms = ["bn1", "bn2", "features"]
    for i, depth in enumerate(depths, 1):
        for j in range(depth):
            unit = f"layer{i}.{j}"
            names += [f"{unit}.conv1.weight", f"{unit}.conv2.weight", f"{unit}.prelu.weight"]
            norms += [f"{unit}.bn1", f"{unit}.bn2", f"{unit}.bn3"]
            if j == 0:
                names.append(f"{unit}.downsample.0.weight")
                norms.append(f"{unit}.downsample.1")
    return set(names) | {f"{n}.{part}" for n in norms for part in norm}


def test_the_full_network_has_the_published_parameters_and_names():
    with torch.device("meta"):
        model = ArcFace()
    assert sum(p.numel() for p in model.parameters()) == 65_156_160
    assert set(model.state_dict()) == published_names(DEPTHS)


def norm(state, name, x):
    return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def by_hand(state, x):
    """The forward of insightface's ``iresnet`` with one unit per layer, from its state dict."""
    x = F.prelu(norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)), state["prelu.weight"])
    for unit in (f"layer{i}.0" for i in range(1, 5)):
        y = F.conv2d(norm(state, f"{unit}.bn1", x), state[f"{unit}.conv1.weight"], padding=1)
        y = F.prelu(norm(state, f"{unit}.bn2", y), state[f"{unit}.prelu.weight"])
        y = norm(state, f"{unit}.bn3", F.conv2d(y, state[f"{unit}.conv2.weight"], stride=2, padding=1))
        x = y + norm(state, f"{unit}.downsample.1", F.conv2d(x, state[f"{unit}.downsample.0.weight"], stride=2))
    x = F.linear(norm(state, "bn2", x).flatten(1), state["fc.weight"], state["fc.bias"])
    return norm(state, "features", x)


@pytest.fixture
def weights(monkeypatch):
    """Of a small network; every number random, so that none can be mixed up unseen."""
    monkeypatch.setattr(ArcFace.__init__, "__defaults__", (TINY_WIDTHS, TINY_DEPTHS))
    g = torch.Generator().manual_seed(3)
    return {
        name: 0.5 + torch.rand(value.shape, generator=g) if value.is_floating_point() else value
        for name, value in ArcFace().state_dict().items()
    }


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_loaded_weights_give_the_published_arithmetic_in_training_mode_too(weights, tmp_path, kind):
    path = tmp_path / f"glintr100.{kind}"
    save_file(weights, path) if kind == "safetensors" else torch.save(weights, path)
    model = load_arcface(str(path), "cpu").train()
    faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(4)).mul_(2).sub_(1).requires_grad_()
    vectors = model(faces)
    torch.testing.assert_close(vectors, by_hand(weights, faces), rtol=1e-4, atol=1e-4)
    assert vectors.shape == (2, 512)
    vectors.sum().backward()
    assert faces.grad.abs().max() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_weights_without_a_layer_are_named(weights, tmp_path):
    del weights["fc.bias"]
    torch.save(weights, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"short\.pth: 1 names \('fc\.bias'\) of .* missing"):
        load_arcface(str(tmp_path / "short.pth"), "cpu")


def test_faces_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected \[M, 3, 112, 112\]"):
        make_arcface("cpu")(torch.zeros(1, 3, 96, 112))
