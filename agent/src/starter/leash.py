"""Runs an engine that knows nothing of its agent: leash.py [--pid-file FILE] PROGRAM ARGUMENT...

The engine stays a process of its own, with its own licence. It ends with this one: on SIGTERM, as soon as our
standard input closes (when the agent is gone, whatever the reason), and on Linux also when we are killed.
"""

import os
import signal
import subprocess
import sys
import threading


def die_with_parent():
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def end_with_stdin(engine):
    while os.read(0, 4096):
        pass
    engine.kill()


def main():
    command = sys.argv[1:]
    pid_file = None
    if command[0] == "--pid-file":
        pid_file, command = command[1], command[2:]
    linux = sys.platform == "linux"
    engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent if linux else None)
    # Nothing of it must be saved.
    signal.signal(signal.SIGTERM, lambda *_: engine.kill())
    if pid_file:
        with open(pid_file, "w", encoding="ascii") as file:
            file.write(str(engine.pid))
    threading.Thread(target=end_with_stdin, args=(engine,), daemon=True).start()
    status = engine.wait()
    # Ended by a signal: as a shell says it.
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
