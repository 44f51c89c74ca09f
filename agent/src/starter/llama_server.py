"""llama.cpp's own HTTP server for UnaMesh's starter engines.

Runs in the process of xllamacpp, a packaging of llama.cpp; the server itself is llama.cpp's C++ code.
Ends on SIGTERM, and with --parent-stdin as soon as its standard input closes: when the agent that started
it is gone, whatever the reason, so is the engine.
"""

import argparse
import os
import signal
import sys
import threading


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--alias", required=True, help="the model's name in the API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx", type=int, default=4096, help="context of all slots together, in tokens")
    parser.add_argument("--parallel", type=int, default=2, help="slots")
    # Two threads collapse beside a busy neighbour; several starter engines share a machine.
    parser.add_argument("--threads", type=int, default=1)
    # Up to this size llama.cpp reads a prompt with the kernels by which it makes single tokens, so that
    # a continuation on another machine says, at temperature 0, what the first would have said.
    # 0 leaves llama.cpp's default.
    parser.add_argument("--ubatch", type=int, default=32)
    parser.add_argument("--parent-stdin", action="store_true", help="end when standard input closes")
    parser.add_argument("--pid-file", help="where to write the process id")
    return parser.parse_args()


def parameters(xllamacpp, args):
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {args.alias}
    params.hostnames = [args.host]
    params.port = args.port
    params.n_ctx = args.ctx
    params.n_parallel = args.parallel
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    if args.ubatch:
        params.n_ubatch = args.ubatch
        # Prompts in as small steps: the server tells its progress after each, and another slot gets its turn.
        params.n_batch = args.ubatch
    params.n_threads_http = 8
    params.endpoint_slots = True
    params.endpoint_props = True
    params.endpoint_metrics = True
    params.ui = False
    params.warmup = True
    return params


def end_with_parent():
    def watch():
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if args.parent_stdin:
        end_with_parent()
    if args.pid_file:
        with open(args.pid_file, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    import xllamacpp

    server = xllamacpp.Server(parameters(xllamacpp, args))
    print("listening on", server.listening_address, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
