"""``python -m stagecoach``, for launchers that start modules: ``deepspeed --module stagecoach train ...``."""

from stagecoach.launch.commands import main

if __name__ == "__main__":
    main()
