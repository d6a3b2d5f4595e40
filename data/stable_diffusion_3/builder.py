"""Pictures with captions to shards, as ``StableDiffusion3Pipeline`` of diffusers encodes them."""

from stagecoach.data.building.captioned import CaptionedBuilder
from stagecoach.data.stable_diffusion_3.schema import stable_diffusion_3_schema


class FamilyBuilder(CaptionedBuilder):
    pipeline, vae_layout = "StableDiffusion3Pipeline", "sd3"

    def schema(self, configs, more):
        pooled = sum(configs[role]["projection_dim"] for role in ("text_encoder", "text_encoder_2"))
        return stable_diffusion_3_schema(configs["text_encoder_3"]["d_model"], pooled, *more)

    def encode_texts(self, pipeline, captions):
        text, _, pooled, _ = pipeline.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
        return {"prompt_embeds": text, "pooled": pooled}
