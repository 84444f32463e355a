"""llama.cpp's own server on a GGUF file, run by the interpreter of an environment that has `xllamacpp`: MODEL PORT THREADS.

The flags are those of `llama-server -t N -tb N -fa on -np 32 -c 65536 --no-kv-unified`: 2,048 tokens for each of 32
requests. Ends when its standard input does.
"""

from __future__ import annotations

import sys

import xllamacpp


def main() -> None:
    """Serve until standard input ends."""
    model, port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.n_parallel = 32
    params.n_ctx = 32 * 2048
    params.kv_unified = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
