# How the scripts end when something is wrong that the user can put right.

# import the necessary packages
import os
import signal
import sys
import time

from . import devices

# parts of what PyTorch says when it lacks memory, the last when the system killed a worker
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "signal: Killed")


class UserError(Exception):
    """What the user can put right: the message says what is wrong, where, and what to do.

    status is the exit status of the script.
    """

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def stop(line, status):
    """End the script with a line on stderr and an exit status."""
    print(line, file=sys.stderr)
    sys.exit(status)


def call(main):
    """Call main, and have one of several processes speak where all of them fail."""
    try:
        main()
    except Exception as error:
        # bad input is met by all, and said by the first; a lost connection is met by all but the
        # process that is the cause. torchrun ends the others before they speak
        isFirst = devices.get_rank() == 0
        if devices.count_processes() > 1 and not (isFirst and isinstance(error, UserError)):
            time.sleep(5)
        raise


def run(main, goOn):
    """Call main, and end in one line on stderr where the user has to act.

    The exit status is that of a UserError, 1 after an error of the file system or a lack of memory,
    130 after Ctrl-C, when goOn tells how to go on.
    """
    devices.start()
    if devices.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")
    # a log file shows each line at once, not when all is over, and any file name can be printed
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        call(main)
        devices.stop()
    except UserError as error:
        # one from a worker process brings its traceback along, before the message
        stop(f"[ERROR] {str(error).rstrip().rpartition('UserError: ')[2]}", error.status)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        stop(f"[ERROR] {where}{error.strerror or error}; put that right and run again", 1)
    except RuntimeError as error:
        if "shared memory" in str(error):
            advice = "enlarge it (docker run --shm-size=2g), or take --num-workers 0"
            stop(f"[ERROR] /dev/shm is too small for what the workers load; {advice}", 1)
        if not any(part in str(error) for part in NO_MEMORY):
            raise
        stop("[ERROR] out of memory; take smaller batches or a smaller --image-size", 1)
    except KeyboardInterrupt:
        # another Ctrl-C must not break the tidying up
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if devices.get_rank() > 0:
            sys.exit(130)
        stop(f"\n[INFO] interrupted: {goOn}", 130)
