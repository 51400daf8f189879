"""Two real SGLang servers for all tests of the session, with tiny random models to put into them.

Every run of pytest imports this module, so the imports that take seconds are in the fixtures.
"""

from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from megatron_prime.engines.sglang.engine import SGLangEngine
    from tests.support.sglang_live import LiveModel


@pytest.fixture(scope="session")
def live_models(tmp_path_factory) -> "tuple[LiveModel, LiveModel]":
    """Return two models of one shape with different weights."""
    import torch

    from tests.support.sglang_live import LiveModel
    from tests.support.tiny_models import save_tiny_model

    folder = tmp_path_factory.mktemp("models")
    with torch.no_grad():
        return tuple(
            LiveModel(folder / f"m{seed}", save_tiny_model("qwen2", folder / f"m{seed}", seed))
            for seed in (0, 1)
        )  # type: ignore[return-value]


@pytest.fixture(scope="session")
def _live_engine(live_models, tmp_path_factory):
    from megatron_prime.engines.sglang.engine import SGLangEngine
    from tests.support.sglang_live import sglang_settings

    engine = SGLangEngine(
        live_models[0].path,
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=sglang_settings(num_servers=2),
        run_dir=tmp_path_factory.mktemp("run"),
    )
    yield engine
    family = [psutil.Process(pid) for server in engine.servers if (pid := server.pid) is not None]
    family += [child for process in family for child in process.children(recursive=True)]
    engine.close()
    assert len(family) >= 6, "two servers with a scheduler and a detokenizer each"
    assert not [process for process in family if process.is_running()], "closing leaves processes behind"


@pytest.fixture
def live_engine(_live_engine, live_models) -> "SGLangEngine":
    """Return an engine with two servers that serve model 0 as version 1."""
    _live_engine.load_from_hf(live_models[0].path, policy_version=1)
    return _live_engine
