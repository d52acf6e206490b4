"""How far long work is: a bar on a terminal, a line a minute in a log."""

import io
import sys
import time

from tqdm import tqdm

from . import processes

# seconds between the lines in a log
INTERVAL = 60


class LogLines(tqdm):
    """A progress bar of lines, as a log file has no place for a bar that moves."""

    def __init__(self, *args, **options):
        self.lastTime = time.monotonic()
        # tqdm's own characters go nowhere
        super().__init__(*args, **options, miniters=1, file=io.StringIO())

    def display(self, *args, **options):
        """Print how far the work is and how long it still takes, if the last line is a minute old.
        tqdm calls this whenever its bar would move."""
        isDone = self.n == self.total
        if isDone or time.monotonic() - self.lastTime < INTERVAL:
            return
        self.lastTime = time.monotonic()
        facts = self.format_dict
        line = f"[INFO] {self.desc}: {self.n} of {self.total}{self.unit}"
        if facts["rate"]:
            seconds = round((self.total - self.n) / facts["rate"])
            line += f", {self.format_interval(seconds)} left"
        print(f"{line}...")

    @classmethod
    def write(cls, text):
        """Print text, for which no bar has to make way."""
        print(text)


def get_class():
    """Return the class of progress bars: tqdm's own on a terminal, else LogLines."""
    isTerminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm if isTerminal else LogLines


def progress(iterable, desc, unit, **options):
    """Return iterable with a progress bar on a terminal, a line a minute elsewhere, nothing on
    other ranks.

    desc: what is done, as "training". unit: what is counted, as "batches". options: of tqdm.
    """
    options.update(desc=desc, unit=f" {unit}", disable=processes.get_rank() > 0, mininterval=1)
    return get_class()(iterable, **options)
