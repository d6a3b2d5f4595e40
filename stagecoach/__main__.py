"""``stagecoach``, and ``python -m stagecoach`` for launchers that start modules (``deepspeed --module``)."""

import sys
from typing import NoReturn

from stagecoach.trainer.interrupt import leave_on_signals


def main() -> NoReturn:
    if sys.argv[1:2] == ["train"]:
        leave_on_signals()
    from stagecoach.launch import commands

    commands.main()


if __name__ == "__main__":
    main()
