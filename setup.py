"""Packages of Stagecoach and what they need. Tested versions: constraints.txt; reasons: docs/dependencies.md."""

from setuptools import find_packages, setup

setup(
    name="stagecoach",
    version="0.2.0",
    description="A DeepSpeed trainer for diffusion adapters, in stages",
    python_requires=">=3.11",
    packages=find_packages(include=["stagecoach*"]),
    install_requires=[
        "torch>=2.9",
        "deepspeed>=0.19.8",
        "diffusers>=0.42",
        "transformers>=5.20",
        "peft>=0.21",
        "safetensors>=0.8",
        "webdataset>=1.0.2",
        "wandb>=0.31",
        "tensorboard>=2.21",
        "pydantic>=2.14",
        "PyYAML>=6.0.3",
        "rich>=15",
        "numpy>=2.0",
        "packaging>=25",
        "Pillow>=12",
        "fsspec>=2026.1",
        "aiohttp>=3.14",
        "isal>=1.9",
    ],
    extras_require={
        "gpu": ["flash-attn>=2.8"],
        "build": ["av>=18", "sentencepiece>=0.2.3", "librosa>=0.11", "h5py>=3.16", "onnxruntime>=1.24"],
        "s3": ["s3fs>=2026.1"],
        "gcs": ["gcsfs>=2026.1"],
        "dev": ["pytest>=9", "pytest-timeout>=2.4", "hypothesis>=6.170", "ruff>=0.17", "onnx>=1.23"],
    },
)
