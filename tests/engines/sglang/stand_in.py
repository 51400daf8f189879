"""Servers inside the test's process with SGLang's calls, real receivers, and processes that can be replaced at will.

A replacement is what a client sees of a restart: from one call to the next, the weights of the start are back, with
their name, and the receiver has forgotten everything.
"""

import importlib.util
import itertools
import json
import pickle
import secrets
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from torch import nn

from megatron_prime.engines.sglang import loader
from megatron_prime.engines.sglang.weights import full_check
from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.shape import read_shape
from megatron_prime.resharding.layouts import EngineLayout

_COUNT = itertools.count()
LAYOUT = EngineLayout.consecutive(1, 1, first_rank=1)


def _own_loader():
    """Import the receiver's package anew, because its state belongs to a process."""
    name = f"stand_in_loader_{next(_COUNT)}"
    path = Path(loader.__file__)
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_tensors(folder):
    reader = HFCheckpointReader(folder)
    return {name: reader.read_slice(name, 0, 0, reader.shape_of(name)[0]) for name in reader.tensor_names}


def fused(tensors, shape):
    """The parameters of a server with the weights, by SGLang's names."""
    return full_check._parameters(tensors, shape, LAYOUT, 0)


class FusedWhole(nn.Module):
    """A module with all of a model's parameters as SGLang lays them out on one rank."""

    def __init__(self, parameters, shape):
        super().__init__()
        for name, tensor in parameters.items():
            *path, leaf = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_parameter(leaf, nn.Parameter(tensor.clone(), requires_grad=False))
            if path[-1] == "qkv_proj":
                module.q_proj_shard_size = shape.num_attention_heads * shape.head_dim
                module.kv_proj_shard_size = module.v_proj_shard_size = shape.num_query_groups * shape.head_dim
            if path[-1] in ("embed_tokens", "lm_head"):
                module.shard_indices = SimpleNamespace(num_org_elements=shape.vocab_size)


class StandIn:
    """One server at one address. Implements what the engine needs of a supervised `Server`."""

    def __init__(self, folder, index=0, moves=False):
        """Start at some port; `moves` says that each restart has a new one, as with servers of this job."""
        self.index, self.log_path, self.pid = index, Path("stand-in.log"), None
        self._shape, self._folder = read_shape(folder), folder
        self._moves = moves
        self._replace_at = None
        self._lock = threading.RLock()
        self.calls = []
        """Paths of the calls since `replace_before`."""
        self.num_starts = 0
        self._http = None
        self._start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def raise_if_failed(self): ...

    def restart(self):
        self._start()

    def ask_to_close(self): ...

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def replace_before(self, call):
        """Replace the process just before the call with this number, counted from now; None for never."""
        self.calls, self._replace_at = [], call

    @property
    def is_replaced(self):
        return self._replace_at is not None and len(self.calls) > self._replace_at

    def _start(self):
        self.num_starts += 1
        self.version = f"launched-{secrets.token_hex(4)}"
        self.model = FusedWhole(fused(read_tensors(self._folder), self._shape), self._shape)
        self._loader = _own_loader()
        self._has_session = False
        if self._http is not None and not self._moves:
            return
        old, owner = self._http, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._serve({})

            def do_POST(self):
                self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _serve(self, body):
                if self.server is not owner._http:
                    return  # of a process that is gone: no answer
                with owner._lock:
                    owner.calls.append(self.path)
                    if len(owner.calls) - 1 == owner._replace_at:
                        owner._start()
                if self.server is not owner._http:
                    return
                content = json.dumps(owner.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args): ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        if old is not None:
            threading.Thread(target=old.shutdown, daemon=True).start()

    def answer(self, path, body):
        if path == "/begin_weight_update":
            if self._has_session:
                return {"success": False, "message": "a session is open"}
            self._has_session = True
        elif path == "/end_weight_update":
            if not self._has_session:
                return {"success": False, "message": "there is no session"}
            self._has_session = False
        elif path == "/update_weights_from_tensor":
            [named_tensors] = [pickle.loads(b64decode(text)) for text in body["serialized_named_tensors"]]
            self._loader.receive(self.model, named_tensors)
            self.version = body["weight_version"]
        elif path == "/update_weights_from_disk":
            tensors = fused(read_tensors(Path(body["model_path"])), self._shape)
            self.model.load_state_dict(tensors)
            self.version = body["weight_version"]
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        elif path == "/weights_checker":
            sums = {name: full_check._sglang_hash(p) for name, p in self.model.named_parameters()}
            return {"ranks": [{"checksums": sums}]}
        elif path == "/generate":
            with self._lock:
                version, parameters = self.version, dict(self.model.named_parameters())
            meta = {
                "finish_reason": {"type": "length"},
                "weight_version": version,
                "output_token_logprobs": [[fingerprint(parameters), 1, None]],
            }
            return {"output_ids": [1], "meta_info": meta}
        return {"success": True, "weight_version": self.version}


def fingerprint(parameters):
    """The log-prob that a stand-in answers: a number that no other weights give."""
    return -sum(float(tensor.double().abs().sum()) for _, tensor in sorted(parameters.items()))
