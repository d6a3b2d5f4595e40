"""FantasyWorld as a component of a pipeline of diffusers."""

from diffusers import ModelMixin

from stagecoach.models.common.component import NetworkComponent
from stagecoach.models.fantasy_world.config import FantasyWorldConfig
from stagecoach.models.fantasy_world.network import build_network
from stagecoach.models.fantasy_world.streams import FantasyWorld


class FantasyWorldTransformer(NetworkComponent, ModelMixin):  # diffusers looks for the name in this module
    """A ``FantasyWorld``; parts of Wan stay in fp32."""

    config_type = FantasyWorldConfig
    build = staticmethod(build_network)
    network: FantasyWorld
