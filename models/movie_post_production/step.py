"""One training forward of MoviePostProduction: sampling, prediction, losses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stagecoach.data.movie_post_production.schema import FOREGROUND
from stagecoach.models.common.noise import Noised
from stagecoach.models.common.reduce import sum_count
from stagecoach.models.family import Batch, Progress
from stagecoach.models.movie_post_production import losses
from stagecoach.models.movie_post_production.config import PATCH, MoviePostConfig
from stagecoach.models.movie_post_production.identity import loss as identity
from stagecoach.models.movie_post_production.layout.instances import Instances, make_instances, on_device
from stagecoach.models.movie_post_production.layout.regions import token_cover
from stagecoach.models.movie_post_production.losses import Metrics, distribution, reference_metrics
from stagecoach.models.movie_post_production.stages import FEEDBACK_STAGE, IDENTITY_STAGE, identity_weight, layout_scale

Result = dict[str, dict]


def training_step(network: torch.nn.Module, batch: Batch, progress: Progress) -> Result:
    """``{"losses": {name: fp32 [B]}, "metrics": {name: (sum, count)}}`` of one micro-batch.

    Every stage gives ``flow_matching``, ``in_box`` and ``alpha_prior``; stages 2 and 3 ``dino_identity`` besides.
    Noise, t, what is withheld and the references that the identity loss looks at are keyed by the sample; the same
    modules are called regardless of what was drawn and however many references there are.
    """
    config: MoviePostConfig = network.config
    constants = config.losses
    latent = batch["latent"].float()
    process = losses.make_process(constants.flow_matching, token_count(latent))
    noised = process.noised(batch, latent, process.draw(batch, "t"), "noise")
    t = noised.level
    instances = make_instances(batch, config, progress)
    prediction = predict(network, batch, instances, noised.x, t, constants.flow_matching.guidance_scale, progress)
    instances = on_device(instances, latent.device)
    velocity, alpha, valid = prediction["velocity"], prediction["alpha"], instances["valid"]
    error = noised.error(velocity)
    terms = {
        "flow_matching": error,
        "in_box": losses.in_box_error(velocity, noised.target, covered_latents(instances, latent)),
        "alpha_prior": losses.alpha_prior(alpha.float(), instances["depth"], valid, constants.alpha_prior),
    }
    metrics: Metrics = {
        "loss/reconstruction": sum_count(error),
        "timestep_mean": sum_count(t),
        **distribution("timesteps", t, torch.ones_like(t, dtype=torch.bool)),
        **reference_metrics(prediction, valid),
    }
    if network.stage >= IDENTITY_STAGE:
        share = process.share_up_to(constants.identity.t_max)
        terms["dino_identity"], measured = _identity(
            config, progress.helpers, batch, instances, prediction, noised, share
        )
        weighted = terms["dino_identity"] * identity_weight(config).at(progress)
        metrics |= measured | {"loss/dino_identity_weighted": sum_count(weighted)}
    if network.stage >= FEEDBACK_STAGE:
        foreground = prediction["active"] & (alpha >= FOREGROUND)
        metrics["feedback_magnitude"] = sum_count(prediction["feedback"], foreground)
    return {"losses": terms, "metrics": metrics}


def predict(
    network: torch.nn.Module,
    batch: Batch,
    instances: Instances,
    x_t: Tensor,
    t: Tensor,
    guidance: float,
    progress: Progress,
) -> dict[str, Tensor]:
    """What the network makes of ``x_t`` ``[B, 16, h, w]`` at ``t`` ``[B]`` in [0, 1] with the batch's captions."""
    given = torch.full_like(t, guidance)
    scale = layout_weight(network.config, progress)
    return network.predict(x_t, t, given, batch["t5"], batch["pooled"], instances, scale)


def layout_weight(config: MoviePostConfig, progress: Progress) -> float:
    """On the layout residual; below 1 while stage 1 fades it in."""
    return layout_scale(config).at(progress) if progress.stage == 1 else 1.0


def without_references(instances: Instances) -> Instances:
    """The same pictures as if they had no references: FLUX's own prediction."""
    return instances | {"layout_given": torch.zeros_like(instances["layout_given"])}


def covered_latents(instances: Instances, latent: Tensor) -> Tensor:
    """bool ``[B, h, w]``: the latents in any valid box, by whole tokens."""
    h, w = (side // PATCH for side in latent.shape[-2:])
    covered = token_cover(instances["boxes"], instances["valid"], h, w).any(1).unflatten(1, (h, w))
    return covered.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


def token_count(latent: Tensor) -> int:
    """Tokens of a latent ``[B, C, h, w]``."""
    return latent.shape[-2] * latent.shape[-1] // PATCH**2


def _identity(
    config: MoviePostConfig,
    helpers: Mapping[str, torch.nn.Module],
    batch: Batch,
    instances: Instances,
    prediction: dict[str, Tensor],
    noised: Noised,
    share: float,
) -> tuple[Tensor, Metrics]:
    """Loss ``[B]`` and metrics of the cosines it is made of. Asked for are foreground references that the network was
    shown, in pictures at most as noisy as ``t_max``. These are a ``share`` of all, by which their loss is divided: in
    the mean over all pictures its weight is then the one that the recipe gives, at any resolution."""
    constants = config.losses.identity
    alpha = prediction["alpha"].detach().float()
    shown = prediction["active"] & instances["dino_given"]
    candidates = shown & (alpha >= FOREGROUND) & (noised.level <= constants.t_max)[:, None]
    slots = identity.draw_slots(batch, "identity", candidates, constants.crops, config.instance.max_refs)
    estimate = noised.estimate(prediction["velocity"])
    cosine = identity.similarity(
        estimate,
        slots.take(instances["boxes"]),
        slots.take(instances["dino"]),
        helpers["vae"],
        helpers["dino"],
        constants,
    )
    metrics = {
        "dino_similarity_mean": sum_count(cosine, slots.used),
        "identity_share": sum_count(slots.used.any(1).float()),
    }
    return identity.identity_loss(cosine, slots.take(alpha), slots.used) / max(share, 1e-6), metrics
