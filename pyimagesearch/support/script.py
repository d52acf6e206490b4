"""How a script starts and ends."""

import gc
import io
import os
import signal
import sys
from contextlib import suppress
from importlib import reload

from torch import distributed

from pyimagesearch import config

from . import files, processes, settings
from .errors import ImageError, UserError


def run(main, advice):
    """Call main() as a script. A UserError ends it in one line and with status 1, Ctrl-C in one
    that gives advice and with status 130; all other errors are Python's."""
    isNotebook = "IPython" in sys.modules
    if not isNotebook:
        # what was imported stays: Python would look through it again, for two seconds, at its end
        gc.freeze()
    # the script turned this off during its imports
    gc.enable()
    sys.stdout = open_output(sys.stdout)
    sys.stderr = open_output(sys.stderr)
    # in a notebook config may hold the flags of the last run, or config.py may have been edited
    reload(config)
    settings.expand_paths()
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


class RawOutput(io.RawIOBase):
    """What a raw stream writes, but what it cannot write is dropped: a terminal may be gone, or a
    disk full, and no print may end a training."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def writable(self):
        return True

    def fileno(self):
        return self.raw.fileno()

    def isatty(self):
        return self.raw.isatty()

    def write(self, data):
        try:
            count = self.raw.write(data)
        except OSError:
            count = None
        # raw streams also return None, where another program made a terminal non-blocking
        return len(data) if count is None else count


class Output(io.TextIOWrapper):
    """A text stream that drops what it cannot write, shows each line at once in a log file, and
    prints any file name."""

    def __init__(self, stream):
        # kept, as its end would close the raw stream
        self.stream = stream
        # python -u has no buffer between text and raw stream
        raw = getattr(stream.buffer, "raw", stream.buffer)
        options = {"errors": "backslashreplace", "line_buffering": True}
        super().__init__(io.BufferedWriter(RawOutput(raw)), stream.encoding, **options)


def open_output(stream):
    """Return what a script prints to in place of sys.stdout or sys.stderr."""
    if stream is None:
        # closed, but tqdm.write() prints to it all the same
        return open(os.devnull, "w", errors="replace")
    if isinstance(stream, Output) or not isinstance(stream, io.TextIOWrapper):
        # of an earlier run in this process, or a notebook's own
        return stream
    with suppress(OSError):
        stream.flush()
    return Output(stream)


def get_message(error):
    """Return the message of a UserError, without the traceback that a worker puts in front of it
    and that ends with the name of the error, ImageError."""
    (_, _, message) = str(error).rstrip().rpartition("ImageError: ")
    return message


def make_handler(advice):
    """Return what Ctrl-C does: end the process at once, as nothing has to be tidied up."""
    if processes.is_in_group():
        # a process that waits for the others calls no function of Python's; torchrun says that it
        # was interrupted
        return signal.SIG_DFL
    script = os.getpid()

    def end(number, frame):
        # a forked worker says nothing
        if os.getpid() == script:
            # the terminal may be gone
            with suppress(OSError):
                os.write(2, f"\n[INFO] interrupted; {advice}\n".encode())
        os._exit(130)

    return end
