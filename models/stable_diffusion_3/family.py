"""LoRA on Stable Diffusion 3 (arXiv 2403.03206): the network of its one stage, and what the trainer asks of it."""

from diffusers import SD3Transformer2DModel
from torch import Tensor

from stagecoach.data.stable_diffusion_3.schema import stable_diffusion_3_schema
from stagecoach.models.common.decoder import check_decoder, make_decoder
from stagecoach.models.common.keyed import keyed_drop, keyed_randn, withheld
from stagecoach.models.common.lora import add_lora, lora_patterns, with_and_without_lora
from stagecoach.models.common.materialise import meta_model, open_folder
from stagecoach.models.common.network import StageNetwork
from stagecoach.models.common.noise import FlowMatching, denoise, guided
from stagecoach.models.common.pictures import side_by_side
from stagecoach.models.family import Family, Metric, StageSpec, loss_terms, trainables
from stagecoach.models.stable_diffusion_3.config import SIZES, StableDiffusion3Config

CAPTION = ("prompt_embeds", "pooled")
LATENTS = {"latent_channels": 16, "shift_factor": 0.0609}


class StableDiffusion3Network(StageNetwork):
    def __init__(self, config, stage, device, dtype):
        super().__init__(config, stage, device, dtype)
        self.process = FlowMatching(config.shift, "logit_normal")  # section 3.1
        self.transformer = meta_model(SD3Transformer2DModel, config.backbone.model_dump(), dtype)
        # The last block drops its text, whose queries would get no gradient.
        unused = f"transformer_blocks.{config.backbone.num_layers - 1}.attn.add_q_proj"
        add_lora(self.transformer, config.lora, device, skip=[unused])

    def forward(self, batch, progress):
        dropped = keyed_drop(batch, "caption", self.config.caption_dropout, progress.training)
        noised = self.process.drawn(batch, batch["latent"])
        error = noised.error(self.predict(withheld(batch, CAPTION, dropped), noised.x, noised.level))
        return {"losses": {"flow_matching": error}, "metrics": {}}

    def predict(self, batch, x: Tensor, timestep: Tensor) -> Tensor:
        """Velocity fp32 ``[B, 16, h, w]`` of ``x``, of the same shape, at ``timestep`` ``[B]`` in (0, 1000]. A caption
        that is withheld is zeros, as diffusers' pipeline has them where it is given no T5."""
        text, pooled = (batch[name].to(self.dtype) for name in CAPTION)
        return self.transformer(x.to(self.dtype), text, pooled, timestep, return_dict=False)[0].float()

    def recompute_units(self):
        return self.transformer.transformer_blocks


class StableDiffusion3Family(Family):
    name = "stable_diffusion_3"
    config_type = StableDiffusion3Config
    sizes = SIZES
    metrics = (Metric("val_flow_loss", baseline="val_flow_loss_baseline"),)
    build = StableDiffusion3Network

    def schema(self, config):
        return stable_diffusion_3_schema(config.backbone.joint_attention_dim, config.backbone.pooled_projection_dim)

    def stages(self, config):
        trained = trainables(lora_patterns(config.lora.targets, "transformer.transformer_blocks.*.attn."))
        return (StageSpec(1, "lora", trained, loss_terms({"flow_matching": 1.0})),)

    def open_base(self, config):
        settings, random = config.backbone.model_dump(), config.allow_random_init
        return open_folder(config.base, SD3Transformer2DModel, settings, random, "SD3's transformer")

    def check_base(self, config):
        return f"{super().check_base(config)}; {check_decoder(config.vae, 'vae', True, LATENTS)}"

    def helpers(self, config, stage, device, dtype):
        return {"vae": make_decoder(config.vae, "vae", LATENTS, False, device, dtype, 1)} if config.vae else {}

    def example_sizes(self, config, stage):
        return {"h": config.side // 8, "w": config.side // 8, "L": 333}

    def validate(self, network, batch, progress, statistics):
        errors = network.process.held_out_errors
        return with_and_without_lora(network, "val_flow_loss", errors, batch, batch["latent"], network.predict)

    def preview(self, network, batch, progress):
        if not (vae := progress.helpers.get("vae")):
            return {}
        predict = guided(network.predict, batch, withheld(batch, CAPTION), network.config.guidance_scale)
        painted = denoise(network.process, predict, keyed_randn(batch, "preview", batch["latent"].shape[1:]), steps=28)
        return side_by_side(batch["key"], ground_truth=vae(batch["latent"]), predicted=vae(painted))
