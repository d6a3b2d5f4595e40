"""The three stages: which modules train, and for which losses.

The freeze matrix (x trains, - is not built, the rest is frozen):

    module                                      layout   modulation_identity   feedback
    backbone
    alpha_predictor, null_references              x              x
    instance_encoder, instance_text               x              x
    layout_head, *.layout_out (W_b)               x              x
    LoRA                                          x              x
    modulation_head, *.modulation                 -              x
    transformer_blocks.*.feedback                 -              -                x

What earlier stages trained is there in later ones and in their adapters, LoRA included.
"""

from stagecoach.models.common.lora import lora_patterns
from stagecoach.models.family import AllowNoGradient, Metric, Schedule, StageSpec, Trainable, loss_terms, trainables
from stagecoach.models.movie_post_production.config import DOUBLE_TARGETS, SINGLE_TARGETS, MoviePostConfig

IDENTITY_STAGE = 2
"""The first stage with modulation and the identity loss."""
FEEDBACK_STAGE = 3
MODULATION = ("modulation_head", "transformer_blocks.*.modulation")
FEEDBACK = ("transformer_blocks.*.feedback",)

METRICS = (
    *(Metric(name) for name in ("loss/reconstruction", "loss/dino_identity_weighted")),
    Metric("dino_similarity_mean", "cosine", True),
    *(
        Metric(name, higher_is_better=None)
        for name in ("timestep_mean", "alpha_mean", "alpha_fg_ratio", "identity_share", "feedback_magnitude")
    ),
    *(Metric(f"val_{name}", higher_is_better=None) for name in ("alpha_mean", "alpha_fg_ratio")),
    *(
        Metric(f"val_{name}{end}", unit, higher, f"val_{name}_baseline")
        for name, unit, higher in (
            ("flow_loss", "", False),
            ("in_box_error", "", False),
            ("in_box_colour_error", "of full brightness", False),
            ("dino_similarity", "cosine", True),
        )
        for end in ("", "_swapped")
    ),
)

ALLOW_NO_GRADIENT = (
    AllowNoGradient(
        "null_references.*",
        "learned nulls stand in for crops that are missing or withheld, which a short check may not meet",
    ),
    AllowNoGradient("instance_text.*", "shards whose text was precomputed hold no text of the objects"),
)


def make_stages(config: MoviePostConfig) -> tuple[StageSpec, ...]:
    """Stage 1: flow matching. Stages 2 and 3: identity besides. The in-box term and the prior of alpha where their
    weights are set, which they are not by default."""
    layout = _layout(config)
    constants = config.losses
    flow = loss_terms({"flow_matching": constants.flow_matching_weight, "in_box": constants.in_box_weight})
    prior = loss_terms({"alpha_prior": alpha_prior_weight(config)})
    identity = loss_terms({"dino_identity": identity_weight(config)})
    both = layout + trainables(MODULATION)
    return (
        StageSpec(1, "layout", layout, flow + prior, allow_no_gradient=ALLOW_NO_GRADIENT),
        StageSpec(2, "modulation_identity", both, flow + identity + prior, allow_no_gradient=ALLOW_NO_GRADIENT),
        StageSpec(3, "feedback", trainables(FEEDBACK), flow + identity),
    )


def identity_weight(config: MoviePostConfig) -> Schedule:
    """Weight of the identity loss: from 0 over the first steps of a stage, then constant."""
    constants = config.losses
    if constants.identity.warmup == 0:
        return Schedule(constants.identity_weight)
    return Schedule(0.0, constants.identity_weight, "linear", 0.0, constants.identity.warmup)


def alpha_prior_weight(config: MoviePostConfig) -> float:
    """0 where ``losses.alpha_prior`` is none."""
    return 0.0 if config.losses.alpha_prior == "none" else config.losses.alpha_prior_weight


def layout_scale(config: MoviePostConfig) -> Schedule:
    """On the layout residual in stage 1: it is faded in where ``layout.warmup`` says so."""
    if config.layout.warmup == 0:
        return Schedule(1.0)
    return Schedule(0.0, 1.0, "linear", 0.0, config.layout.warmup)


def _layout(config: MoviePostConfig) -> tuple[Trainable, ...]:
    patterns = [
        "alpha_predictor",
        "null_references",
        "instance_encoder",
        "layout_head",
        "transformer_blocks.*.layout_out",
    ]
    if config.layout.single_blocks:
        patterns.append("single_transformer_blocks.*.layout_out")
    if config.instance.text:
        patterns.append("instance_text")
    return trainables(patterns) + trainables(lora_patterns(target_layers(config)), config.lora.lr_scale)


def target_layers(config: MoviePostConfig) -> list[str]:
    """Names of the linear layers that carry LoRA: those of the layout blocks, or of all.

    A pipeline that loads the LoRA of ``lora.scope: global`` paints what the trained network paints without references.
    That of ``layout_branch`` was trained inside the boxes alone; a pipeline, which knows no boxes, runs the same layers
    with it on the whole picture.
    """
    lora, layout, backbone = config.lora, config.layout, config.backbone
    everywhere = lora.scope == "global"
    doubles = range(backbone.double_blocks) if everywhere else layout.double_blocks
    singles = range(backbone.single_blocks) if everywhere else layout.single_blocks
    kinds = (("transformer_blocks", doubles, DOUBLE_TARGETS), ("single_transformer_blocks", singles, SINGLE_TARGETS))
    return [
        f"{kind}.{i}.{target if target.startswith(('norm', 'ff', 'proj')) else f'attn.{target}'}"
        for kind, blocks, known in kinds
        for i in blocks
        for target in lora.targets
        if target in known
    ]
