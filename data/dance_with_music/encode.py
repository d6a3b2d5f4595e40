"""The encoders of a DanceWithMusic build, side by side."""

import numpy as np
import torch

from stagecoach.data.building.jobs import EncodedSample
from stagecoach.data.dance_with_music.job import EncoderPaths
from stagecoach.data.dance_with_music.reference_noise import reference_noise
from stagecoach.data.dance_with_music.schema import FACE_DIM, LATENT_STRIDE
from stagecoach.data.dance_with_music.segment import PreparedReference, Segment
from stagecoach.data.encoding.encoders import default_device
from stagecoach.data.encoding.face_encoder import FaceEncoder
from stagecoach.data.encoding.image_encoders import PictureEmbedder
from stagecoach.data.encoding.latent_encoders import LatentEncoder


class Encoders:
    """Raises ``EncoderError`` where one cannot be loaded."""

    def __init__(self, paths: EncoderPaths) -> None:
        device = default_device()
        self._vae = LatentEncoder(paths.vae, device, shifted=False)
        self._clip = PictureEmbedder(paths.image_encoder, device, paths.clip_resize)
        self._faces = FaceEncoder(paths.arcface)
        self._noise = paths.reference_noise

    def encode(self, segment: Segment) -> EncodedSample:
        """The sample of a segment; ``counted`` is None: the statistics take all they need from the arrays."""
        references = segment.references
        latents = torch.stack(self._vae.encode(segment.frames)).half().numpy()
        height, width = segment.frames.shape[1:3]
        if latents.shape[2:] != (height // LATENT_STRIDE, width // LATENT_STRIDE):
            raise ValueError(
                f"the VAE makes latents of {latents.shape[2:]} of pictures of {height} x {width}, "
                f"expected an {LATENT_STRIDE}th of each side; give Stable Diffusion's"
            )
        noise = None
        if self._noise:
            key = segment.meta["clip_id"]
            noise = [self._noise * reference_noise(key, k, height, width) for k in range(len(references))]
        ref_latents = torch.stack(self._vae.encode([r.picture for r in references], noise))
        vectors, lengths = unit_vectors(self._face_vectors(references))
        arrays = {
            **segment.arrays,
            "latents": latents,
            "ref_latents": ref_latents.half().numpy(),
            "ref_clip": self._clip.encode([r.whole for r in references]).half().numpy(),
            "ref_arcface": vectors,
            "ref_arcface_norm": lengths,
            "ref_face_valid": (lengths > 0).astype(np.uint8),
            "frame": segment.frames[len(segment.frames) // 2],
        }
        return EncodedSample(arrays, {**segment.meta, "vae_scaling": self._vae.scale})

    def _face_vectors(self, references: list[PreparedReference]) -> np.ndarray:
        """float32 [R, 512] as ArcFace gives them, 0 where no face is known."""
        vectors = np.zeros((len(references), FACE_DIM), np.float32)
        seen = [k for k, r in enumerate(references) if r.face is not None]
        vectors[seen] = self._faces.encode([references[k].face for k in seen])
        for k, reference in enumerate(references):
            if reference.embedding is not None:
                vectors[k] = reference.embedding
        return vectors


def unit_vectors(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[R, D] -> the same at length 1 and their lengths [R], float32; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1).astype(np.float32)
    return (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32), lengths
