"""Licences of published weights, as their model cards state them, and which of several is the strictest."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """``id`` is Hugging Face's, ``other`` with a ``title`` and a ``link`` where it has none. ``strictness``: 0 asks for
    attribution, 1 restricts uses, 2 also the size of a business, 3 is not for commercial use."""

    id: str
    strictness: int
    title: str = ""
    link: str = ""

    @property
    def name(self) -> str:
        return self.title or self.id


HUB = "https://huggingface.co/"
APACHE, MIT, OPENRAIL = Licence("apache-2.0", 0), Licence("mit", 0), Licence("creativeml-openrail-m", 1)
SD3 = Licence(
    "other", 2, "stabilityai-ai-community", f"{HUB}stabilityai/stable-diffusion-3-medium/blob/main/LICENSE.md"
)
SVD = Licence(
    "other",
    2,
    "stable-video-diffusion-community",
    f"{HUB}stabilityai/stable-video-diffusion-img2vid-xt/blob/main/LICENSE.md",
)
FLUX_DEV = Licence(
    "other", 3, "flux-1-dev-non-commercial-license", f"{HUB}black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"
)
INSIGHTFACE = Licence(
    "other",
    3,
    "insightface-non-commercial-research",
    "https://github.com/deepinsight/insightface/tree/master/model_zoo",
)


@dataclass(frozen=True)
class Part:
    """Published weights that trained ones need: ``hub``, their repository there or where they are published otherwise.
    ``base``: those that they were trained on, which the card names as its base model."""

    what: str
    hub: str
    licence: Licence
    base: bool = False


def strictest(parts: Iterable[Part]) -> Licence | None:
    """The licence that what is made with all of them must keep; the first of equals, None without parts."""
    return max((part.licence for part in parts), key=lambda licence: licence.strictness, default=None)
