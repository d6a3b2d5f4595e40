"""Names of the network's tensors -> names in published weights.

- FantasyWorld (github.com/Fantasy-AMAP/fantasy-world): ``model.pth`` of acvlab/FantasyWorld-Wan2.1-I2V-14B-480P.
- VGGT-1B (github.com/facebookresearch/vggt): aggregator and heads.
"""

import re

_NAMES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"^latent_bridge\.", "vggt.projection_head."),
        (r"^special_tokens\.(\w+)$", r"vggt.aggregator.\1_token"),
        (r"^geometry_time\.proj_in\.", "vggt.time_embedding.0."),
        (r"^geometry_time\.proj_mid\.", "vggt.time_embedding.2."),
        (r"^geometry_time\.proj_out\.", "vggt.time_projection.1."),
        (r"^irg\.(\d+)\.geo_block\.frame_block\.", r"vggt.aggregator.frame_blocks.\1."),
        (r"^irg\.(\d+)\.geo_block\.global_block\.", r"IRGBlock.\1.x_agg."),
        # The exchange: m1 is the video, m2 the geometry.
        (r"^irg\.(\d+)\.cross_attention\.", r"IRGBlock.\1.bicross_attention."),
        (r"\.bicross_attention\.video_gate$", ".bicross_attention.gamma_m1"),
        (r"\.bicross_attention\.geometry_gate$", ".bicross_attention.gamma_m2"),
        (r"\.bicross_attention\.video_match\.", ".bicross_attention.cross_attn.m1_proj."),
        (r"\.bicross_attention\.geometry_match\.", ".bicross_attention.cross_attn.m2_proj."),
        (r"\.bicross_attention\.video_value\.", ".bicross_attention.cross_attn.values_m1_proj."),
        (r"\.bicross_attention\.geometry_value\.", ".bicross_attention.cross_attn.values_m2_proj."),
        (r"\.bicross_attention\.video_out\.", ".bicross_attention.cross_attn.out_m1_proj."),
        (r"\.bicross_attention\.geometry_out\.", ".bicross_attention.cross_attn.out_m2_proj."),
        # Blocks of the aggregator and of the camera head.
        (r"\.modulation\.table$", ".modulation"),
        (r"\.attention\.layer_scale$", ".ls1.gamma"),
        (r"\.feed_forward\.layer_scale$", ".ls2.gamma"),
        (r"\.attention\.norm_([qk])\.", r".attn.\1_norm."),
        (r"\.attention\.norm\.", ".norm1."),
        (r"\.attention\.(qkv|proj)\.", r".attn.\1."),
        (r"\.feed_forward\.norm\.", ".norm2."),
        (r"\.feed_forward\.(fc[12])\.", r".mlp.\1."),
        # Camera control.
        (r"^pose_encoder\.full_rate\.", "camera_condition.pose_encoder.controlnet_encode_first."),
        (r"^pose_encoder\.half_rate\.", "camera_condition.pose_encoder.controlnet_encode_second."),
        (r"^pose_encoder\.patches\.", "camera_condition.pose_encoder.patch_embedding."),
        (r"^pose_encoder\.mix\.", "camera_condition.pose_encoder.fc."),
        (r"^(camera_adapters\.\d+)\.camera\.", r"\1.k_proj.group1."),
        (r"^(camera_adapters\.\d+)\.video_in\.", r"\1.k_proj.group2.0."),
        (r"^(camera_adapters\.\d+)\.video_out\.", r"\1.k_proj.group2.2."),
        (r"^(camera_adapters\.\d+)\.down\.", r"\1.v_proj.group2.0."),
        (r"^(camera_adapters\.\d+)\.up\.", r"\1.v_proj.group2.2."),
        # Camera head.
        (r"^camera_head\.frames\.expand\.", "vggt.camera_head.camera_time_upsample.expand_channels."),
        (r"^camera_head\.empty_pose$", "vggt.camera_head.empty_pose_tokens"),
        (r"^camera_head\.pose_modulation\.", "vggt.camera_head.poseLN_modulation.1."),
        (r"^camera_head\.branch_in\.", "vggt.camera_head.pose_branch.fc1."),
        (r"^camera_head\.branch_out\.", "vggt.camera_head.pose_branch.fc2."),
        (r"^camera_head\.", "vggt.camera_head."),
        # Dense heads.
        (r"^dpt\.heads\.depth\.", "vggt.depth_head."),
        (r"^dpt\.heads\.points\.", "vggt.point_head."),
        (r"_head\.project\.", "_head.projects."),
        (r"_head\.(shrink|fusion\.enlarge)\.", "_head.resize_layers."),
        (r"_head\.temporal\.(\d)\.conv\.", r"_head.temporal_upsamplers.\1.conv2."),
        (r"_head\.temporal\.(\d)\.first\.", r"_head.temporal_upsamplers.\1.decoder.upsamples.0."),
        (r"_head\.temporal\.(\d)\.second\.", r"_head.temporal_upsamplers.\1.decoder.upsamples.2."),
        (r"\.upsamples\.(\d)\.upsample\.", r".upsamples.\1.time_conv."),
        (r"\.upsamples\.0\.norm\.gain$", ".upsamples.1.residual.0.gamma"),
        (r"\.upsamples\.0\.conv\.", ".upsamples.1.residual.2."),
        (r"\.upsamples\.2\.norm\.gain$", ".upsamples.3.residual.0.gamma"),
        (r"\.upsamples\.2\.conv\.", ".upsamples.3.residual.2."),
        *((rf"_head\.fusion\.adapt\.{i}\.", f"_head.scratch.layer{i + 1}_rn.") for i in range(4)),
        *((rf"_head\.fusion\.steps\.{i}\.", f"_head.scratch.refinenet{i + 1}.") for i in range(4)),
        (r"(refinenet\d)\.skip\.", r"\1.resConfUnit1."),
        (r"(refinenet\d)\.refine\.", r"\1.resConfUnit2."),
        (r"(refinenet\d)\.out\.", r"\1.out_conv."),
        (r"_head\.fusion\.reduce\.", "_head.scratch.output_conv1."),
        (r"_head\.fusion\.outputs\.\w+\.conv1\.", "_head.scratch.output_conv2.0."),
        (r"_head\.fusion\.outputs\.\w+\.conv2\.", "_head.scratch.output_conv2.2."),
    )
)
_ADAPTER = re.compile(r"camera_adapters\.(\d+)\.")

UNUSED = re.compile(
    r"vggt\.aggregator\.CamTokenProjector\..*"  # poses for the camera tokens: the published sampling gives none
    r"|vggt\.camera_head\.trunk\.\d+\.modulation"  # which the camera head calls without a time
    r"|(pipe\.(dit|vae|text_encoder|image_encoder)|IRGBlock\.\d+\.x_dit)\.(?!.*\.processor\.).*"  # the frozen Wan2.1
)
"""Names in FantasyWorld's file that the network has no use for."""

_NOT_IN_VGGT = re.compile(
    r"(IRGBlock|camera_condition|projection_head|time_(embedding|projection))\..*|.*\.modulation"
    r"|camera_adapters\..*|.*_head\.(temporal_upsamplers|camera_time_upsample)\..*"
)
VGGT_UNUSED = re.compile(r"(track_head|aggregator\.patch_embed)\..*")
"""Names in VGGT-1B's file that the network has no use for: its picture encoder and its tracks."""


def published_name(name: str, split: int) -> str:
    """Where the trained tensor ``name`` stands in FantasyWorld's file. ``split``: the backbone's block that the first
    IRG layer starts from, from which on the file has the video's blocks, with their camera adapters, elsewhere."""
    for ours, theirs in _NAMES:
        name = ours.sub(theirs, name)
    if found := _ADAPTER.match(name):
        block = int(found[1])
        place = f"pipe.dit.blocks.{block}" if block < split else f"IRGBlock.{block - split}.x_dit"
        name = f"{place}.cross_attn.processor.{name[found.end() :]}"
    return name


def vggt_name(name: str) -> str | None:
    """Where it stands in VGGT-1B's; None where that has no such tensor."""
    name = published_name(name, 0)
    name = re.sub(r"^IRGBlock\.(\d+)\.x_agg\.", r"aggregator.global_blocks.\1.", name).removeprefix("vggt.")
    return None if _NOT_IN_VGGT.fullmatch(name) else name
