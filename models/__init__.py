"""Model families. ``get_family`` is the registry; nothing else in the trainer knows a family's name."""

import difflib
import importlib

from stagecoach.models.family import Family

FAMILIES = {
    "dance_with_music": "stagecoach.models.dance_with_music.family:DanceWithMusicFamily",
    "fantasy_world": "stagecoach.models.fantasy_world.family:FantasyWorldFamily",
    "movie_post_production": "stagecoach.models.movie_post_production.family:MoviePostProductionFamily",
    "stable_diffusion_3": "stagecoach.models.stable_diffusion_3.family:StableDiffusion3Family",
}


def get_family(name: str) -> Family:
    """The family called ``name``. Raises ``ValueError`` with the nearest name where there is none."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"family {name!r} is unknown, expected one of {sorted(FAMILIES)}{hint}")
    module, attribute = FAMILIES[name].split(":")
    return getattr(importlib.import_module(module), attribute)()
