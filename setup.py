"""The package ``stagecoach``: ``find_packages`` follows its links to data, models, trainer, launch and ds_configs.

Tested versions: constraints.txt; what each dependency and each extra is for: docs/dependencies.md.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
NVML = "nvidia-ml-py>=13.615"
BUILD = ["av>=18", "OpenEXR>=3.5.3", "sentencepiece>=0.2.3"]

# What an earlier build left there would be packed as well, modules that are gone included.
shutil.rmtree(HERE / "build" / "lib", ignore_errors=True)

setup(
    name="stagecoach",
    version=re.search(r'__version__ = "(.+)"', (HERE / "stagecoach" / "__init__.py").read_text())[1],
    description="A DeepSpeed trainer for diffusion adapters, in stages",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="Stagecoach authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["stagecoach", "stagecoach.*"]),
    package_data={"stagecoach": ["py.typed", "ds_configs/*.json", "launch/recipes/*/*.yaml"]},
    entry_points={"console_scripts": ["stagecoach = stagecoach.__main__:main"]},
    install_requires=[
        "torch>=2.13",
        "deepspeed>=0.19.8",
        "diffusers>=0.42",
        "transformers>=5.20",
        "peft>=0.21",
        "safetensors>=0.8",
        "psutil>=7",
        "wandb>=0.31",
        "tensorboard>=2.21",
        "pydantic>=2.14",
        "PyYAML>=6.0.3",
        "rich>=15",
        "typer>=0.29",
        "numpy>=2.3",
        "packaging>=25",
        "Pillow>=12",
        "fsspec>=2026.1",
        "isal>=1.9",
    ],
    extras_require={
        "build": BUILD,
        "annotate": [
            *BUILD,
            "onnxruntime>=1.24.1",
            "pycolmap>=4.2.1",
            "scenedetect-headless>=0.7.2",
            "opencv-python-headless>=5.0.0.93",
            "scipy>=1.17",
        ],
        "dance": [*BUILD, "librosa>=0.11", "h5py>=3.16", "onnxruntime>=1.24.1"],
        "evaluate": ["torchmetrics>=1.9", "scipy>=1.17"],
        "export": ["onnx>=1.23", "onnxruntime>=1.24.1", "huggingface_hub>=2.4"],
        "quantize": ["torchao>=0.18"],
        "sample": [*BUILD, "trimesh>=5.2"],
        "http": ["aiohttp>=3.14"],
        "s3": ["s3fs>=2026.1"],
        "gcs": ["gcsfs>=2026.1"],
        "gpu": ["flash-attn>=2.8", NVML],
        "dev": [
            "pytest>=9",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6.170",
            "ruff>=0.17.5",
            "mypy>=2.4",
            "types-PyYAML>=6.0.12.20261122",
            "typos>=1.50",
            "onnx>=1.23",
            "webdataset>=1.0.2",
            "aiohttp>=3.14",
            NVML,
        ],
    },
)
