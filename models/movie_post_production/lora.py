"""Which layers of FLUX carry LoRA."""

from stagecoach.models.movie_post_production.config import DOUBLE_TARGETS, SINGLE_TARGETS, MoviePostConfig


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
