"""MoviePostProduction as a component of a pipeline of diffusers."""

from diffusers import ModelMixin

from stagecoach.models.common.component import NetworkComponent
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.network import MoviePostNetwork, build_network


class MoviePostTransformer(NetworkComponent, ModelMixin):  # diffusers looks for the name in this module
    """A ``MoviePostNetwork``."""

    config_type = MoviePostConfig
    build = staticmethod(build_network)
    network: MoviePostNetwork
