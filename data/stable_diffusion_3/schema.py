"""What a sample of Stable Diffusion 3 holds."""

from stagecoach.data.format.schema import Field, SampleSchema


def stable_diffusion_3_schema(text: int = 4096, pooled: int = 2048, *more: Field) -> SampleSchema:
    """A picture of 8h x 8w pixels, as the transformer takes it, and its caption: 77 tokens of both CLIPs, side by side
    and filled up with zeros, before 256 of T5, none of them masked; the pooled states of both CLIPs."""
    latent, states = Field("latent", "bf16", (16, "h", "w")), Field("prompt_embeds", "bf16", ("L", text))
    return SampleSchema("stable_diffusion_3", 1, (latent, states, Field("pooled", "bf16", (pooled,)), *more))
