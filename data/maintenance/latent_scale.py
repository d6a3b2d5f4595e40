"""How large the latents of a set are that others made: every family's network takes numbers of about unit variance."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from stagecoach.data.files import DamagedError
from stagecoach.data.format.schema import SampleSchema

FIELDS = ("latent", "latents")
BAND = (0.5, 2.0)
"""Of the standard deviation over a set. Latents without FLUX's scale have 2.8, with it twice 0.36, Wan's without its
deviations 2 to 3, Stable Diffusion's without its scale 5.5."""
SCALES = {
    "movie_post_production": 0.3611,
    "stable_diffusion_3": 1.5305,
    "dance_with_music": 0.18215,
    "fantasy_world": None,
}
"""By schema the factor from the VAE's output to what the family's network takes; None where each channel has its own.
Other schemas' latents are not known."""
NEAR = 1.4
"""Factor within which a deviation is that of a cause."""


@dataclass
class LatentSums:
    """Count, sum and sum of squares of a set's latents, float64."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def take(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a sample's; uint16 holds the bits of bf16."""
        for name in FIELDS:
            if (values := arrays.get(name)) is not None:
                values = (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values
                values = values.astype(np.float64)
                self.count, self.total = self.count + values.size, self.total + float(values.sum())
                self.squares += float(np.square(values).sum())

    @property
    def deviation(self) -> float:
        """The standard deviation; of no numbers 1."""
        if not self.count:
            return 1.0
        return float(np.sqrt(max(self.squares / self.count - (self.total / self.count) ** 2, 0.0)))


def check_latent_scale(parts: Iterable[LatentSums], schema: SampleSchema, where: object) -> None:
    """Raises ``DamagedError`` with the likely cause where the latents' deviation is outside of ``BAND``."""
    listed = list(parts)
    sums = LatentSums(*(sum(getattr(part, name) for part in listed) for name in ("count", "total", "squares")))
    found = sums.deviation
    if schema.name not in SCALES or BAND[0] <= found <= BAND[1]:
        return
    scale = SCALES[schema.name]
    causes = (
        {1 / scale: f"the VAE's scale {scale} was not", scale: f"the VAE's scale {scale} was twice"} if scale else {}
    )
    likely = next(
        (f"{words} applied" for size, words in causes.items() if 1 / NEAR < found / size < NEAR), "another unit"
    )
    raise DamagedError(
        f"{where}: latents of standard deviation {found:.3g} found, expected {BAND[0]:g} to {BAND[1]:g} as the network "
        f"takes them, less the VAE's shift and times its scale; likely {likely}: write the tars again, or give "
        f"--any-latent-scale"
    )
