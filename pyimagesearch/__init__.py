"""Fine-tune DenseNet121 on Food-11. The scripts import this package first: it ends them at once at
Ctrl-C or SIGTERM, also while torch is imported, which takes seconds."""

import os
import signal
import sys

# what each script says when it is interrupted
ADVICE = {
    "prepare_dataset.py": "run the same command again",
    "train_distributed.py": "add --resume to continue after the last completed epoch",
    "distributed_inference.py": "run the same command again",
}


def end_on_signals(line):
    """End this process at Ctrl-C or SIGTERM, with line on stderr and exit status 130 or 143.

    Whatever the scripts write is whole or not there, so nothing has to be finished. A forked worker
    inherits this and ends without the line. A signal that is ignored stays ignored.
    """
    (script, text) = (os.getpid(), f"\n[INFO] {line}\n".encode() if line else b"")

    def end(number, frame):
        nonlocal script
        # a second signal may call this function again at any moment: only the first call writes
        (pid, script) = (script, None)
        try:
            if pid == os.getpid():
                os.write(2, text)
        finally:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


name = os.path.basename(sys.argv[0])
# a notebook starts a script with %run, and goes on afterwards
isScript = name in ADVICE and name in map(os.path.basename, sys.orig_argv)
# a spawned worker imports the script too
if isScript or (name in ADVICE and "--multiprocessing-fork" in sys.orig_argv):
    # under torchrun only the main process speaks
    isMain = isScript and os.environ.get("RANK", "0") == "0"
    end_on_signals(f"interrupted; {ADVICE[name]}" if isMain else "")
