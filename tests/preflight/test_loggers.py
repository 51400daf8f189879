from importlib.metadata import PackageNotFoundError

from megatron_prime.preflight import loggers
from megatron_prime.preflight.loggers import PACKAGES, backend_faults


def test_installed_backends_have_no_faults():
    assert list(backend_faults(list(PACKAGES))) == []


def test_a_backend_without_its_package_says_how_to_install_it(monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(loggers, "version", version)
    (fault,) = backend_faults(["mlflow"])
    assert fault == (
        "logging.backends names 'mlflow', but the package mlflow-skinny is not installed: "
        "pip install 'megatron-prime[mlflow]', or leave the backend out"
    )
