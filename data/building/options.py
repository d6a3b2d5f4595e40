"""Options of a build: dataclasses, which the command line takes its flags from (``trainer.flags``)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Argument:
    """What the command line says of a dataclass's field, as in ``frames: Annotated[int, Argument("of a clip")] = 81``.

    A field without a default is required, unless it may be None; a tuple is given as words with commas between them.
    ``flag``: where it is not the field's name. ``parse`` makes the field's value of the argument's, of a list of words
    for a tuple. ``default``: the argument's, where it is not the field's.
    """

    text: str
    flag: str | None = None
    metavar: str | None = None
    choices: Sequence[str] | None = None
    parse: Callable[[Any], Any] | None = None
    default: Any = None


WORKERS = Argument(
    "processes to start on this machine, each with a GPU in turn (default: 1); one started by torchrun, deepspeed, "
    "srun or as a Slurm array takes its share",
    metavar="N",
)


@dataclass(frozen=True)
class BuildOptions:
    """Options of all families. Raises ``ValueError``."""

    holdout: Annotated[
        float, Argument("share of the items for the val split where the raw data does not say", metavar="SHARE")
    ] = 0.1
    skip_bad: Annotated[
        bool, Argument("leave bad items out and list them in skipped.jsonl (default: the first one stops)")
    ] = False
    replace: Annotated[
        bool,
        Argument(
            "build again where SHARDS holds finished shards, which stay until the new ones are whole, or where a build "
            "with other settings was begun"
        ),
    ] = False
    max_shard_bytes: Annotated[int, Argument("size of a tar (default: 1 GB)", metavar="N")] = 10**9
    part_items: Annotated[
        int | None,
        Argument("items that are made at once, or again after a kill (default: about a full tar)", metavar="N"),
    ] = None
    workers: Annotated[int, WORKERS] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} found, expected a share of the items from 0 to below 1")
        for name in ("max_shard_bytes", "part_items", "workers"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name.replace('_', ' ')} {number} found, expected at least 1")
