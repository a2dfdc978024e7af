"""llama.cpp's own HTTP server as a process: ``python -m tests.model._llama_server WEIGHTS KEY [embedding] [port=N]``.

Prints its base URL once it serves, then stays until its standard input closes.
"""

from __future__ import annotations

import sys


def main() -> None:
    import xllamacpp

    weights, key, *rest = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.model_alias = {"llama-server"}
    params.hostnames = ["127.0.0.1"]
    params.port = next((int(part[5:]) for part in rest if part.startswith("port=")), 0)
    params.api_keys = [key]
    params.ui = False
    params.n_ctx = 512 * 2
    params.n_parallel = 2
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if "embedding" in rest:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
