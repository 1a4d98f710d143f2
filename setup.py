"""Installs rlhf_jax: `pip install -e .` runs every stage; extras add the rest."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "rlhf_jax" / "__init__.py").read_text()
).group(1)

GRADIO = "gradio>=6.31,<7"

setup(
    name="rlhf_jax",
    version=VERSION,
    description="RLHF in JAX: reward models, PPO and DPO for ChatGLM on TPU, GPU, CPU",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the rlhf_jax developers",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    project_urls={"Paper": "https://arxiv.org/abs/2404.00934"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    keywords="rlhf ppo dpo reward-model chatglm jax flax tpu",
    python_requires=">=3.11",
    packages=find_packages(include=["rlhf_jax", "rlhf_jax.*"]),
    package_data={
        "rlhf_jax.data.annotation": ["*.css", "*.js", "*.md"],
        "rlhf_jax.evaluation.report": ["*.css", "*.html"],
    },
    install_requires=[
        "absl-py>=2.1",
        "choix>=0.3.5",
        "datasets>=3.0",
        "datasketch>=1.6",
        "flax>=0.12,<0.14",
        "gguf>=0.17",
        "importlib-resources>=6",  # tensorflow-datasets reads with it and forgets it
        "jax>=0.10,<0.12",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "jsonschema>=4.23",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "protobuf>=5",
        "py3langid>=0.3",
        "regex>=2024.11",
        "requests>=2.32",
        "rich>=13",
        "safetensors>=0.5",
        "scikit-learn>=1.6",
        "scipy>=1.15",
        "sentencepiece>=0.2",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.8",
        "tokenizers>=0.21",
        "transformers>=5.0",
    ],
    extras_require={
        "test": [
            "beartype>=0.20",
            GRADIO,
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "mypy>=1.15",
            "nbclient>=0.10",  # runs colabs/
            "playwright>=1.50",  # drives Debian's chromium; without it tests skip
            "pytest>=9",
            "pytest-xdist>=3.6",
            "pyyaml>=6",
            "ruff>=0.9",
        ],
        # colabs/ on a machine of one's own.
        "notebook": ["jupyterlab>=4"],
        # Second writers of the metrics (config.logger).
        "wandb": ["wandb>=0.19"],
        "trackio": ["trackio>=0.10"],
        # The page on which people compare responses.
        "annotate": [GRADIO],
        # Live comparison with the published torch implementations and with PEFT.
        "parity": ["torch==2.13.0", "peft>=0.21"],
        # What the benchmarks compare with.
        "bench": ["torch==2.13.0", "trl==1.16.*"],
        # The TPU compiler on a machine without a TPU (586 MB).
        "tpu-plan": ["libtpu>=0.0.40"],
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "cuda": ["jax[cuda13]>=0.10,<0.12"],
    },
)
