"""llama.cpp's own server from the `xllamacpp` wheel: MODEL PORT THREADS CONTEXT. Ends when its standard input does.

As `llama-server -t N -tb N -fa on -np 32 -c CONTEXT --no-kv-unified`.
"""

from __future__ import annotations

import sys

import xllamacpp


def main() -> None:
    """Serve until standard input ends."""
    model, port, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.n_parallel = 32
    params.n_ctx = context
    params.kv_unified = False
    server = xllamacpp.Server(params)
    print(xllamacpp.get_system_info(), server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
