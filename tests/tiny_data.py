"""Shards of a few rendered clips at the tiny size, made by the very commands that a user types."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIP = ("--frames", "9", "--height", "64", "--width", "96")


def make_shards(directory: Path, clips: int = 10) -> Path:
    """``directory/shards`` with the splits train and val of FantasyWorld ``tiny``."""
    raw, encoders, shards = directory / "raw", directory / "encoders", directory / "shards"
    _build("synthesize", "--output", raw, "--clips", clips, "--encoders", encoders, *CLIP)
    _build(
        "build",
        "--input",
        raw,
        "--output",
        shards,
        "--vae",
        encoders / "vae",
        "--text-encoder",
        encoders / "text_encoder",
        "--tokenizer",
        encoders / "tokenizer",
        *CLIP,
    )
    return shards


def _build(*arguments: object) -> None:
    command = [sys.executable, ROOT / "launch" / "build_shards.py", *arguments]
    subprocess.run(list(map(str, command)), check=True, env=os.environ | {"DS_ACCELERATOR": "cpu"}, timeout=200)
