"""The identity loss: it is reached by gradients, blind to padding, and a step along them raises the cosine."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stagecoach.data.encoding.image_encoders import DinoEncoder
from stagecoach.data.movie_post_production.builder import FamilyBuilder
from stagecoach.data.movie_post_production.crops import cut
from stagecoach.data.movie_post_production.synthetic import write_synthetic
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.movie_post_production.config import SIZES, DinoConfig, IdentityConfig, VaeConfig
from stagecoach.models.movie_post_production.helpers import check_helpers, make_dino, make_helpers
from stagecoach.models.movie_post_production.identity import loss as identity
from stagecoach.models.movie_post_production.identity.tiles import crop_weights, pixel_boxes, resample

BOXES = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.6, 0.1, 0.9, 0.8]]])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    write_synthetic(folder / "raw", 4, [(128, 128)], seed=5)
    FamilyBuilder().write_encoders(folder / "raw", folder / "encoders", seed=0)
    return folder / "encoders"


@pytest.fixture(scope="module")
def helpers(encoders):
    own = {"vae": VaeConfig(base=str(encoders / "vae")), "dino": DinoConfig(base=str(encoders / "dino"))}
    return tuple(make_helpers(SIZES["tiny"].model_copy(update=own), 2, "cpu", torch.float32).values())


@pytest.fixture(scope="module")
def picture():
    from stagecoach.data.figures import render

    return render(5, 0, 128, 128)


def keyed(uids) -> dict:
    return {"uid": torch.tensor(list(uids)), "rng_key": rng_keys(0, 2, uids)}


def test_features_of_a_crop_are_those_that_the_builder_caches(encoders, helpers, picture):
    """Crop, antialiased bicubic resize, normalisation and class token of the loss, on pixels, against the builder's."""
    from PIL import Image

    pixels = torch.from_numpy(picture.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    boxes = torch.tensor([picture.boxes])
    crops = resample(pixels, *crop_weights(pixel_boxes(boxes, 128, 128), 128, 128, 28))[0]
    found = helpers[1](crops)
    cached = DinoEncoder(encoders / "dino", torch.device("cpu")).encode(
        [cut(Image.fromarray(picture.image), box, (28, 28)) for box in picture.boxes]
    )
    assert F.cosine_similarity(found, torch.stack(cached)).min() > 0.9995


def test_a_picture_decoded_from_its_own_latent_shows_its_references(encoders, helpers, picture):
    """D17: latents as the builder writes them, (z - shift) scale of pixels in -1..1, decode to the picture."""
    from stagecoach.data.encoding.latent_encoders import LatentEncoder

    latent = LatentEncoder(encoders / "vae", torch.device("cpu")).encode([picture.image])[0]
    decoded = (helpers[0](latent[None])[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(decoded - picture.image).mean() < 12


@pytest.mark.parametrize("decode", ["crop", "full"])
def test_gradients_of_the_velocity_stay_around_the_boxes_and_a_step_along_them_raises_the_cosine(helpers, decode):
    """D7, R14(j)."""
    torch.manual_seed(0)
    config = IdentityConfig(decode=decode, tile=8, margin=1)
    x_t, t = torch.randn(1, 16, 16, 16), torch.tensor([0.4])
    velocity = torch.randn(1, 16, 16, 16, requires_grad=True)
    references = F.normalize(torch.randn(1, 2, 16), dim=-1)

    def cosine(v):
        latent = x_t - t.view(-1, 1, 1, 1) * v
        return identity.similarity(latent, BOXES[:, :1], references[:, :1], *helpers, config)

    before = cosine(velocity)
    loss = identity.identity_loss(before, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(1 - before.item())
    loss.sum().backward()
    gradient = velocity.grad[0].abs().sum(0)
    assert (gradient[4:8, 4:8] > 0).all()
    if decode == "crop":
        outside = gradient.clone()
        outside[1:11, 1:11] = 0
        assert (outside == 0).all()
    step = 1e-2 / velocity.grad.norm()
    assert cosine(velocity.detach() - step * velocity.grad) > before


def test_crops_of_a_window_are_nearly_those_of_the_whole_picture(encoders, helpers, picture):
    from stagecoach.data.encoding.latent_encoders import LatentEncoder

    latent = LatentEncoder(encoders / "vae", torch.device("cpu")).encode([picture.image])[0][None]
    boxes = torch.tensor([picture.boxes])
    whole = identity.decoded_crops(latent, boxes, helpers[0], 28, IdentityConfig(decode="full"))
    parts = identity.decoded_crops(latent, boxes, helpers[0], 28, IdentityConfig(tile=14, margin=3))
    assert (whole - parts).abs().mean() < 0.02


def test_the_loss_is_the_mean_over_a_samples_references_and_alpha_gets_no_gradient():
    """D20 and the guide's formula: no loop, padding of any value has no influence (D9), an image without references
    gives 0."""
    cosine = torch.tensor([[0.5, 0.0, torch.nan], [0.2, 0.2, 0.2]], requires_grad=True)
    alpha = torch.tensor([[0.8, 0.6, 0.9], [0.7, 0.7, 0.7]], requires_grad=True)
    used = torch.tensor([[True, True, False], [False, False, False]])
    loss = identity.identity_loss(cosine, alpha, used)
    assert loss.tolist() == pytest.approx([(0.8 * 0.5 + 0.6 * 1) / 2, 0])
    loss.sum().backward()
    assert alpha.grad is None
    assert cosine.grad.tolist() == [pytest.approx([-0.4, -0.3, 0]), [0, 0, 0]]


def test_slots_are_drawn_uniformly_among_candidates_and_do_not_depend_on_the_batch():
    """R14(e): neither further padding nor other samples change which references are drawn."""
    candidates = torch.tensor([[True, False, True, True, True, False]]).expand(400, 6)
    slots = identity.draw_slots(keyed(range(400)), "identity", candidates, 2, 50)
    assert slots.used.all()
    assert set(slots.index.flatten().tolist()) == {0, 2, 3, 4}
    assert (slots.index[:, 0] != slots.index[:, 1]).all()
    counts = slots.index.flatten().bincount(minlength=6)
    assert counts[[0, 2, 3, 4]].min() > 150
    padded = torch.cat([candidates[7:8], torch.zeros(1, 20, dtype=torch.bool)], 1)
    alone = identity.draw_slots(keyed([7]), "identity", padded, 2, 50)
    assert alone.index.tolist() == slots.index[7:8].tolist()


def test_a_sample_with_fewer_candidates_than_slots_has_empty_ones():
    candidates = torch.tensor([[False, True], [False, False]])
    slots = identity.draw_slots(keyed(range(2)), "identity", candidates, 4, 50)
    assert slots.index.shape == (2, 4)
    assert slots.index.max() <= 1
    assert slots.used.sum(1).tolist() == [1, 0]
    values = torch.tensor([[10.0, 11.0], [20.0, 21.0]])
    assert slots.take(values)[0, 0].item() == 11


def test_helpers_are_frozen_strict_and_named_when_missing(encoders):
    decoder = make_helpers(SIZES["tiny"], 1, "cpu", torch.bfloat16)["vae"]
    assert not any(p.requires_grad for p in decoder.parameters())
    assert decoder(torch.zeros(1, 16, 2, 3)).shape == (1, 3, 16, 24)
    vae, dino = VaeConfig(base=str(encoders / "vae")), DinoConfig(base=str(encoders / "dino"))
    four = SIZES["tiny"].backbone.model_copy(update={"latent_channels": 4})
    with pytest.raises(ValueError, match=r"vae\.base is not set, expected the local folder"):
        make_helpers(SIZES["flux-dev"], 1, "cpu", torch.float32)
    with pytest.raises(ValueError, match=r"dino\.base is not set"):
        check_helpers(SIZES["flux-dev"].model_copy(update={"vae": vae}))
    with pytest.raises(ValueError, match="vectors of 16 numbers found, expected 1024"):
        make_dino(SIZES["flux-dev"].model_copy(update={"dino": dino}), "cpu", torch.float32)
    with pytest.raises(ValueError, match="vectors of 16 numbers found, expected 1024"):
        check_helpers(SIZES["tiny"].model_copy(update={"dino": dino, "instance": SIZES["flux-dev"].instance}))
    with pytest.raises(ValueError, match="VAE of 16 channels"):
        make_helpers(SIZES["tiny"].model_copy(update={"vae": vae, "backbone": four}), 1, "cpu", torch.float32)
