"""Takes the program's place in the tests of `run.py`: answers like a part, or fails in the way it is told to.

`STAND_IN_FAULTS` is a JSON object: how the part of that name fails. `STAND_IN_LOG` is a file to which each call adds
the name of its part.
"""

import json
import os
import signal
import subprocess
import sys
import time


def fail() -> None:
    print("a first line")
    print("error: made to fail", file=sys.stderr)
    sys.exit(3)


def hang() -> None:
    """Deaf to polite requests, with a child in a session of its own."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    print('{"case": "before the hang", "quantity": "x", "ok": true}', flush=True)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    time.sleep(600)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def garbage() -> None:
    sys.stdout.buffer.write(b"\xff\xfe\x00{\x1b[2J| not json |\n")


def flood() -> None:
    while True:
        sys.stdout.buffer.write(b"x" * (1 << 16) + b"\n")


def empty() -> None:
    pass


def unavailable() -> None:
    print('{"reason": "made unavailable"}')
    sys.exit(77)


FAULTS = {"fail": fail, "hang": hang, "crash": crash, "garbage": garbage, "flood": flood, "empty": empty, "unavailable": unavailable}


def main() -> None:
    if "--version" in sys.argv:
        print("stand-in 1.0")
        return
    part = os.environ.get("HARDWARE_PART", "")
    if "STAND_IN_LOG" in os.environ:
        with open(os.environ["STAND_IN_LOG"], "a") as log:
            log.write(part + "\n")
    fault = json.loads(os.environ.get("STAND_IN_FAULTS", "{}")).get(part)
    if fault:
        FAULTS[fault]()
    else:
        print(json.dumps({"case": part, "quantity": "answer", "ok": True}))


if __name__ == "__main__":
    main()
