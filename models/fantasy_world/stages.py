"""The two stages: which modules train, for which losses, and what they should reach.

The freeze matrix (x trains, - is not built, the rest is frozen):

    module                     latent_bridging   unified_co_optimisation
    stem, pcb
    latent_bridge                     x                    x
    special_tokens                    x                    x
    irg.*.geo_block                   x                    x
    dpt, camera_head                  x                    x
    irg.*.video_block                 -
    irg.*.cross_attention             -                    x
    camera_adapters                   -                    x
    out                               -
    pose_encoder (wan)                x                    x
    geometry_time (aggregator)        x                    x
    pose_encoder (aggregator)         -                    x

Next to the wan geometry the pose encoder feeds both streams; the aggregator's camera tokens take the poses themselves,
and its pose encoder feeds the video alone.

The readable notes of the paper disagree whether its second stage still trains the geometry branch; the seed trains it,
and so does this table.
"""

from stagecoach.models.family import ExitCriterion, Metric, StageSpec, loss_terms, trainables
from stagecoach.models.fantasy_world.config import FantasyWorldConfig

GEOMETRY = ("latent_bridge", "special_tokens", "irg.*.geo_block", "dpt", "camera_head")
EXCHANGE = ("irg.*.cross_attention", "camera_adapters")
OWN_GEOMETRY = {"wan": ("pose_encoder",), "aggregator": ("geometry_time",)}
OWN_EXCHANGE = {"wan": (), "aggregator": ("pose_encoder",)}

SCENE = "scene scale"
METRICS = (
    *(Metric(name, SCENE) for name in ("depth_loss", "point_loss", "val_point_error", "val_point_error_withheld")),
    *(Metric(name) for name in ("camera_loss", "camera_loss_given", "camera_loss_withheld")),
    *(Metric(name) for name in ("diffusion_loss", "val_diffusion_loss")),
    *(Metric(name, higher_is_better=None) for name in ("depth_confidence", "points_confidence")),
    *(Metric(f"val_depth_error{end}", SCENE, False, "val_depth_error_baseline") for end in ("", "_withheld")),
    *(
        Metric(f"val_{name}_error{end}", unit, False, f"val_{name}_error_baseline")
        for name, unit in (("camera", ""), ("path", ""), ("fov", "rad"))
        for end in ("", "_given")
    ),
)
EXITS = (ExitCriterion("depth_loss", 0.1), ExitCriterion("point_loss", 0.5), ExitCriterion("camera_loss", 0.05))


def make_stages(config: FantasyWorldConfig) -> tuple[StageSpec, ...]:
    """Latent bridging: L_depth + L_pmap + 3 L_camera. Unified co-optimisation: L_diff + lambda times that."""
    constants = config.losses
    geometry = GEOMETRY + OWN_GEOMETRY[config.geometry]
    exchange = EXCHANGE + OWN_EXCHANGE[config.geometry]
    weights = {"depth": constants.depth_weight, "points": constants.points_weight, "camera": constants.camera_weight}
    return (
        StageSpec(1, "latent_bridging", trainables(geometry), loss_terms(weights), EXITS),
        StageSpec(
            2,
            "unified_co_optimisation",
            trainables(geometry + exchange),
            loss_terms(
                {
                    "diffusion": constants.diffusion_weight,
                    **{name: constants.geometry_weight * weight for name, weight in weights.items()},
                }
            ),
            EXITS,
        ),
    )
