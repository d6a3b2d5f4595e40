"""Training needs none of the packages that builds need; a build without one names what to install."""

import subprocess
import sys

import pytest

from stagecoach.data.files import MissingPackageError, import_extra

SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(("av", "librosa", "h5py", "onnxruntime", "onnx")))
import stagecoach.models
from stagecoach.data.builders import BUILDERS, builder
for family in BUILDERS:
    stagecoach.models.get_family(family)
    builder(family)
from pathlib import Path
from stagecoach.data.encoding.audio import has_audio
try:
    has_audio(Path("a.mp4"))
except ValueError as error:
    print(error)
"""


def test_families_and_builders_import_without_video_and_sound_packages():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("av cannot be imported (")
    assert done.stdout.rstrip().endswith("expected it for video and sound; pip install 'stagecoach[build]'")


def test_a_package_that_is_not_there_is_named_with_its_extra():
    with pytest.raises(
        MissingPackageError, match=r"no_such_package cannot .* for ducks; pip install 'stagecoach\[s3\]'"
    ):
        import_extra("no_such_package", "ducks", "s3")
    assert import_extra("json", "anything").dumps([]) == "[]"
