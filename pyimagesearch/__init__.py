"""Fine-tune DenseNet121 on Food-11. The scripts import this package first: it ends them at once at
Ctrl-C or SIGTERM, also while torch is imported, which takes seconds."""

import os
import signal
import sys
import traceback

# what each script says when it is interrupted
ADVICE = {
    "prepare_dataset.py": "run the same command again",
    "train_distributed.py": "add --resume to continue after the last completed epoch",
    "distributed_inference.py": "run the same command again",
}


def end_on_signals(line):
    """End this process at Ctrl-C or SIGTERM, unless it ignores them: with line on stderr and status
    130 or 143, or silently where line is empty, as in a forked worker. Nothing has to be finished:
    whatever the scripts write is whole or not there."""
    (script, text) = (os.getpid(), f"\n[INFO] {line}\n".encode())

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
            signal.signal(number, end if line else signal.SIG_DFL)


name = os.path.basename(sys.argv[0])
# a notebook starts a script with %run, and goes on afterwards
isScript = name in ADVICE and name in map(os.path.basename, sys.orig_argv)
# a spawned worker imports the script too
if isScript or (name in ADVICE and "--multiprocessing-fork" in sys.orig_argv):
    # under torchrun only the main process speaks
    isMain = isScript and os.environ.get("RANK", "0") == "0"
    advice = "run the same command again" if "--evaluate" in sys.argv else ADVICE[name]
    end_on_signals(f"interrupted; {advice}" if isMain else "")
if isScript:
    # waiting threads sleep: beside a busy process a step keeps 0.6 of its speed, not a third
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("MPLBACKEND", "").lower() != "agg":
        # pictures are files: matplotlib finds out by itself whether there is a screen to show them
        os.environ.pop("MPLBACKEND", None)
    try:
        from . import config  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(f"[ERROR] {error}; pip install -r requirements.txt, in an active environment")
    except SyntaxError as error:
        sys.exit(f"[ERROR] {error.filename}, line {error.lineno}: {error.msg}; correct it there")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        sys.exit(f"[ERROR] {frame.filename}, line {frame.lineno}: {error}; correct it there")
