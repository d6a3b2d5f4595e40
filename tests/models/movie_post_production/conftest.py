"""Shards of rendered pictures and tiny encoders, made once for the tests of what trains."""

import pytest
import torch

from stagecoach.data.streaming.stream import collate
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.family import Progress
from stagecoach.models.movie_post_production.config import SIZES, MoviePostConfig
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from tests.tiny_movie import make_tiny_movie

FAMILY = MoviePostProductionFamily()


@pytest.fixture(scope="session")
def movie(tmp_path_factory):
    return make_tiny_movie(tmp_path_factory.mktemp("movie"), 10)


@pytest.fixture(scope="session")
def config(movie) -> MoviePostConfig:
    """``tiny`` with the helpers that the shards were built with; nothing is withheld unless a test says so."""
    values = SIZES["tiny"].model_dump() | movie.model
    values["instance"] |= {"reference_dropout": 0.0, "layout_dropout": 0.0, "text_dropout": 0.0}
    return MoviePostConfig.model_validate(values)


@pytest.fixture(scope="session")
def make_batch(movie, config):
    """A collated batch of training samples ``indices``, keyed by them."""
    schema = FAMILY.schema(config)
    samples = movie.samples(schema)

    def make(indices, stage: int = 1) -> dict:
        indices = list(indices)
        batch = collate(schema, [samples.read(i) for i in indices])
        return batch | {"uid": torch.tensor(indices), "rng_key": rng_keys(0, stage, indices)}

    return make


@pytest.fixture(scope="session")
def make_network(config):
    """A network of ``stage`` with its base; ``moved``: adapters away from their initial values, so that all
    of them have an influence."""

    def make(stage: int, moved: bool = False, changed: MoviePostConfig | None = None, dtype=torch.float32):
        network = FAMILY.build(changed or config, stage, "cpu", dtype)
        FAMILY.load_base(network, changed or config, "cpu")
        if moved:
            generator = torch.Generator().manual_seed(0)
            for parameter in network.parameters():
                if parameter.requires_grad and parameter.dtype == torch.float32:
                    with torch.no_grad():
                        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return network

    return make


@pytest.fixture(scope="session")
def helpers(config):
    """Of the later stages; stage 1 does not get DINOv2."""
    return FAMILY.helpers(config, 2, "cpu", torch.float32)


@pytest.fixture
def progress(helpers):
    def make(stage: int = 1, step: int = 50, training: bool = True) -> Progress:
        mine = helpers if stage > 1 else {"vae": helpers["vae"]}
        return Progress(step, 100, stage, 0, training, mine)

    return make
