"""Package metadata. Tool settings are in pyproject.toml, the tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """The package's version, read as text so that building needs none of its dependencies."""
    source = (HERE / "megatron_prime" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise ValueError('megatron_prime/__init__.py has no line of the form __version__ = "1.2.3"')
    return match.group(1)


setup(
    name="megatron-prime",
    version=read_version(),
    description="PRIME (Process Reinforcement through Implicit Rewards, arXiv 2502.01456) on Megatron-core",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    author="The megatron_prime contributors",
    keywords=["reinforcement learning", "process reward model", "large language models", "Megatron"],
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_prime", "megatron_prime.*"]),
    include_package_data=True,  # MANIFEST.in: every file of the package
    install_requires=[
        "torch>=2.6",
        # Exact: the CPU shim and the checkpoint format rest on this release's internals (docs/adr/0002).
        "megatron-core==0.16.1",
        "transformers>=5.0",
        "safetensors>=0.5",
        "pydantic>=2.10",
        "numpy>=1.26",
        "datasets>=3.0",
        "pyarrow>=17.0",
        "latex2sympy2_extended>=1.11",
        "math-verify>=0.9",
        "nltk>=3.9",
        "tensorboard>=2.18",
        "httpx>=0.27",
        "rich>=13.0",
        "click>=8.5",
        # Also an undeclared dependency of megatron-core's checkpoint writer, which hangs without it.
        "psutil>=6.0",
        # Searches by a user's pattern under a time limit, which the standard library's re lacks.
        "regex>=2024.5",
        "jinja2>=3.1",
        "pyyaml>=6.0",
    ],
    extras_require={
        # NVIDIA's apex is not on PyPI: the PyPI project `apex` is unrelated. Nothing here needs apex; whoever
        # wants its fused kernels builds it from NVIDIA's source.
        "gpu": ["transformer-engine[pytorch]>=2.9,<2.12"],
        # SGLang pins its own torch: install it in an environment of its own, not beside the training one.
        "sglang": ["sglang"],
        # Loggers beside TensorBoard ([logging] backends), and curves as png and svg (megatron-prime view --export).
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow-skinny>=3.0"],
        "plots": ["matplotlib>=3.9"],
        # The documentation as a site. mkdocs 2 is a different program without plugins.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6"],
        "dev": [
            "pytest>=8.0",
            "hypothesis>=6.100",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "import-linter>=2.1",
            # The nodejs extra brings node as a wheel, so that pyright runs on a machine that has none.
            "pyright[nodejs]>=1.1.390",
            "vulture>=2.14",
            # `make wheel`; tests build with setuptools alone.
            "build>=1.2",
            "setuptools>=77",
            # Drives the system's Chromium in the tests of the viewer.
            "playwright>=1.50",
            "wandb>=0.31",
            "mlflow-skinny>=3.0",
            "matplotlib>=3.9",
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.6",
            # A CUDA torch brings it; here its interpreter and compiler test the kernels on a machine without a GPU.
            'triton>=3.3; platform_system == "Linux"',
        ],
    },
    entry_points={"console_scripts": ["megatron-prime = megatron_prime.__main__:run"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
