"""Where the numbers and pictures of a stage go: ``metrics.jsonl``, TensorBoard, W&B, under the same names."""

import json
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from stagecoach.data.files import atomic_file
from stagecoach.data.outputs.moving import Video, encode_gif
from stagecoach.data.reading import read_regular
from stagecoach.trainer.interrupt import signals_held
from stagecoach.trainer.redact import redact

log = logging.getLogger(__name__)

LARGEST = 4 << 30
"""Bytes of a metrics file: some kB a logged step."""

WandbMode = Literal["online", "offline", "disabled"]


Pictures = Mapping[str, np.ndarray | Video]
"""Pictures uint8 ``[H, W, 3]`` and videos, by name."""
Ranks = dict[str, list[float | None]]
"""Numbers by rank, under their names."""


class Sink(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def images(self, step: int, pictures: Pictures) -> None: ...

    def cluster(self, step: int, values: dict[str, float], ranks: Ranks) -> None: ...

    def close(self) -> None: ...


def is_superseded(record: dict[str, Any], stage: int, resume_step: int) -> bool:
    """Whether a resumed run will write this entry again: it is of the same stage and later than the checkpoint, or
    anything of a stage that starts over (``resume_step`` 0)."""
    return record["stage"] == stage and (record["step"] > resume_step or resume_step == 0)


class MetricsFile:
    """``metrics.jsonl``: one JSON object per call with ``stage``, ``step``, ``time`` (s since 1970) and the values.

    Opening it takes out the entries that the run from ``resume_step`` on will write again, and a line cut short by a
    crash. What is not finite is ``null``.
    """

    def __init__(self, path: Path, stage: int, resume_step: int) -> None:
        self.path, self.stage = path, stage
        if path.exists():
            records = read_metrics(path)
            kept = [record for record in records if not is_superseded(record, stage, resume_step)]
            with atomic_file(path, "w") as handle:
                handle.writelines(json.dumps(record) + "\n" for record in kept)

    def log(self, step: int, values: dict[str, float]) -> None:
        record: dict[str, Any] = {"stage": self.stage, "step": step, "time": round(time.time(), 3)}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._write(record)

    def cluster(self, step: int, values: dict[str, float], ranks: Ranks) -> None:
        """A record of its own: ``cluster/...`` and, under ``ranks``, lists by rank."""
        record = {"stage": self.stage, "step": step, "time": round(time.time(), 3)}
        self._write({**record, **values, "ranks": ranks})

    def _write(self, record: dict[str, Any]) -> None:
        with open(self.path, "a") as handle:
            handle.write(json.dumps(record) + "\n")

    def images(self, step: int, pictures: Pictures) -> None:
        """Pictures are files of their own."""

    def close(self) -> None:
        """Each line is written when it comes."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` in order. A line that is none is left out, and named unless it is the last,
    which a crash may have cut short."""
    records = []
    lines = read_regular(path, LARGEST).split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if _is_record(record):
            records.append(record)
        elif line.strip() and number < len(lines):
            log.warning(f"{path}: line {number} is no record of metrics and left out; it was damaged or edited")
    return records


def _is_record(value: Any) -> bool:
    """Numbers or ``null`` under their names, and under ``ranks`` lists of them."""
    if not isinstance(value, dict) or type(value.get("stage")) is not int or type(value.get("step")) is not int:
        return False
    ranks = value.get("ranks", {})
    lists = list(ranks.values()) if isinstance(ranks, dict) else [None]
    return all(isinstance(one, list) and all(map(_is_number, one)) for one in lists) and all(
        _is_number(one) for name, one in value.items() if name != "ranks"
    )


def _is_number(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) < 2**63) or type(value) is float


class TensorBoard:
    """One TensorBoard run per stage, so that stages overlay under the same names."""

    def __init__(self, directory: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=resume_step + 1 if resume_step else 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def cluster(self, step: int, values: dict[str, float], ranks: Ranks) -> None:
        self.log(step, values)

    def images(self, step: int, pictures: Pictures) -> None:
        for name, picture in pictures.items():
            if isinstance(picture, Video):
                self._moving(f"preview/{name}", picture, step)
            else:
                self.writer.add_image(f"preview/{name}", picture, step, dataformats="HWC")

    def _moving(self, tag: str, video: Video, step: int) -> None:
        """As ``add_video`` does it, which needs moviepy to make the GIF."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        height, width = video.frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_gif(video))
        writer = self.writer._get_file_writer()
        writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One W&B run per stage, in a group named after the run folder; ``step`` is the axis, as a resumed run writes some
    steps again. ``node`` names this process's node where several have their system metrics in one run (W&B's shared
    mode, which is online only); all but the ``primary`` one send nothing else."""

    def __init__(
        self,
        mode: WandbMode,
        *,
        directory: Path,
        project: str,
        stage: int,
        run_id: str,
        config: dict[str, Any],
        node: str | None = None,
        primary: bool = True,
    ) -> None:
        import wandb

        self.wandb = wandb
        name = directory.resolve().name
        arguments: dict[str, Any] = {
            "project": project,
            "group": name,
            "name": f"{name}-stage{stage}",
            "id": run_id,
            "dir": str(directory),
            "config": config,
            "resume": "allow",
            "settings": wandb.Settings(console="off", silent=True),
        }
        possible = _possible_mode(mode)
        self.is_shared = possible == "online" and node is not None
        # Its service is a process of its own, which must outlive the signal at a time limit.
        with signals_held(), _redacted_command():
            try:
                if self.is_shared:
                    roles = {"x_label": node, "x_primary": primary, "x_update_finish_state": primary}
                    shared = arguments | {"settings": wandb.Settings(console="off", silent=True, **roles)}
                    del shared["resume"]  # joining by its id is what the mode does
                    self.run = wandb.init(mode="shared", **shared)
                else:
                    self.run = wandb.init(mode=possible, **arguments)
            except wandb.errors.Error as error:
                # A logging service out of reach is no reason to stop a cluster.
                log.warning(f"W&B cannot be reached ({' '.join(str(error).split())}), logging offline")
                self.is_shared = False
                self.run = wandb.init(mode="offline", **arguments)
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def cluster(self, step: int, values: dict[str, float], ranks: Ranks) -> None:
        self.log(step, values)

    def images(self, step: int, pictures: Pictures) -> None:
        shown: dict[str, Any] = {
            f"preview/{name}": self.wandb.Video(BytesIO(encode_gif(picture)), format="gif")
            if isinstance(picture, Video)
            else self.wandb.Image(picture)
            for name, picture in pictures.items()
        }
        self.run.log({"step": step} | shown)

    def close(self) -> None:
        self.run.finish()


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


@contextmanager
def _redacted_command() -> Iterator[None]:
    """W&B keeps the arguments of the process."""
    whole = sys.argv
    sys.argv = [redact(word) for word in whole]
    try:
        yield
    finally:
        sys.argv = whole


def _possible_mode(mode: WandbMode) -> WandbMode:
    """``mode``, or ``offline`` where ``online`` has no key; WANDB_MODE, W&B's own switch, comes first."""
    import wandb

    modes: tuple[WandbMode, ...] = ("offline", "disabled", "online")
    mode = next((one for one in modes if one == os.environ.get("WANDB_MODE")), mode)
    if mode == "online" and not wandb.login(prompt=False):
        log.warning("W&B has no key (WANDB_API_KEY or `wandb login`), logging offline; `wandb sync` uploads it later")
        return "offline"
    return mode
