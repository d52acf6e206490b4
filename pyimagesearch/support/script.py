"""How a script starts and ends."""

import os
import signal
import sys
from importlib import reload

from torch import distributed

from pyimagesearch import config

from . import files, processes, settings
from .errors import ImageError, UserError


def run(main, advice):
    """Call main() as a script. A UserError ends it in one line and with status 1, Ctrl-C in one
    that gives advice and with status 130; all other errors are Python's."""
    # in a notebook config may hold the flags of the last run, or config.py may have been edited
    reload(config)
    settings.expand_paths()
    if hasattr(sys.stdout, "reconfigure"):
        # a log file shows each line at once, and any file name can be printed
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    isNotebook = "IPython" in sys.modules
    before = signal.getsignal(signal.SIGINT)
    # an interrupt is KeyboardInterrupt in a notebook, and & in a shell script has it ignored
    if not isNotebook and before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, make_handler(advice))
    try:
        with files.locks:
            main()
    except UserError as error:
        if processes.get_rank() == 0 or isinstance(error, ImageError):
            sys.exit(f"[ERROR] {get_message(error)}")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGINT, before)
    # not after an error, as a process that is lost would not answer
    if distributed.is_initialized():
        distributed.destroy_process_group()


def get_message(error):
    """Return the message of a UserError, without the traceback that a worker puts in front of it
    and that ends with the name of the error, ImageError."""
    (_, _, message) = str(error).rstrip().rpartition("ImageError: ")
    return message


def make_handler(advice):
    """Return what Ctrl-C does: end the process at once, as nothing has to be tidied up."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun says that it was interrupted
        return signal.SIG_DFL
    script = os.getpid()

    def end(number, frame):
        # a forked worker says nothing
        if os.getpid() == script:
            os.write(2, f"\n[INFO] interrupted; {advice}\n".encode())
        os._exit(130)

    return end
