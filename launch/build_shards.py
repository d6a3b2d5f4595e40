"""Build, check and look at shards: `python launch/build_shards.py build --input RAW --output SHARDS ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.data.commands import execute, parse, render


def main() -> int:
    from stagecoach.trainer.cli import json_output

    arguments = parse(description=__doc__)
    with json_output(arguments.json) as emit:
        result, code = execute(arguments)
        emit(result)
    if not arguments.json:
        render(arguments.command, result)
    return code


if __name__ == "__main__":
    # Not above: processes that check shards in parallel import this file again, and need no torch.
    from stagecoach.trainer.cli import run_main

    run_main(main)
