"""Check that the packages of the chosen loggers are installed, without importing them."""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from megatron_prime.config.tables.observability.logging import Backend

PACKAGES: dict[Backend, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow-skinny", "mlflow"),
}
"""Backend -> names of packages of which one must be installed."""


def backend_faults(backends: Sequence[Backend]) -> Iterator[str]:
    """Yield each backend whose package is not installed, with what to do."""
    for name in backends:
        if not any(_is_installed(package) for package in PACKAGES[name]):
            yield (
                f"logging.backends names {name!r}, but the package {PACKAGES[name][0]} is not installed: "
                f"pip install 'megatron-prime[{name}]', or leave the backend out"
            )


def _is_installed(package: str) -> bool:
    # The package's metadata decides: a folder of the same name, as wandb leaves one, can be imported too.
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
