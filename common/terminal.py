"""Shows users one-line errors, one live line of progress, and no noise."""

import contextlib
import functools
import io
import os
import sys
import tempfile
import threading
import time


class UserError(Exception):
  """Bad input; the message names what is wrong and says what to do."""


def run(main, argv=None):
  """Ends the program with the exit status of `attempt(main, argv)`."""
  sys.exit(attempt(main, argv))


def attempt(main, argv=None):
  """Calls `main(argv)`; a `UserError` becomes one line.

  So does a file or folder that may not be looked at, wherever that is noticed.

  Returns:
    Exit status: what `main` returns, 0 for None, and 2 after such an error.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')  # An ASCII terminal shows "?".
  try:
    return main(sys.argv[1:] if argv is None else argv) or 0
  except UserError as error:
    return _fail(error)
  except PermissionError as error:
    if error.filename is None:
      raise
    return _fail(
        f'{error.filename} may not be read or written by this user: check the '
        'permissions of it and of the folders above it.')
  except KeyboardInterrupt:
    _drop_bar()
    return 130
  except BrokenPipeError:  # The reader of the output ended (`| head`).
    _discard(sys.stdout)
    return 1


def _fail(message):
  _drop_bar()
  _print(f'error: {message}', sys.stderr)
  return 2


def say(message=''):
  """Prints a line above the live line."""
  with _above_bar():
    _print(message, sys.stdout)


def warn(message):
  """Prints one line on stderr above the live line."""
  with _above_bar():
    _print(f'warning: {message}', sys.stderr)


def _print(text, stream):
  """Prints a line; a terminal or a disk that is gone does not end a run."""
  shown = _shown.get(stream)
  if shown:  # Another thread may never come back from its silence.
    with contextlib.suppress(OSError):
      os.write(shown, f'{text}\n'.encode(errors='replace'))
      return
  try:
    print(text, file=stream, flush=True)
  except OSError:
    _discard(stream)


def _discard(stream):
  """Sends this and all later output of a stream nowhere."""
  with contextlib.suppress(OSError), open(os.devnull, 'w') as nowhere:
    os.dup2(nowhere.fileno(), stream.fileno())


def _open_streams():
  """Opens standard streams that were closed by the shell (`>&-`).

  Otherwise the next file that is opened would be standard output.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # Takes the lowest number that is free.
      os.set_inheritable(number, True)
      setattr(sys, name, open(number, 'w' if number else 'r'))


_open_streams()


_shown = {}  # Where a stream led that is silenced: a file descriptor.


@contextlib.contextmanager
def silence():
  """Keeps what libraries print to file descriptors 1 and 2 from the user.

  Libraries in C++ write there directly. Their output is shown after all if the
  body raises, and lines of this module always, those of other threads too.
  """
  _flush()
  saved = [os.dup(1), os.dup(2)]
  outer = dict(_shown)
  _shown.update({**dict(zip((sys.stdout, sys.stderr), saved)), **outer})
  with unseen_file() as hidden:
    os.dup2(hidden.fileno(), 1)
    os.dup2(hidden.fileno(), 2)
    try:
      yield
    except BaseException as error:
      _flush()
      if not isinstance(error, UserError):
        hidden.seek(0)
        with contextlib.suppress(OSError):
          os.write(saved[1], hidden.read())
      raise
    finally:
      _flush()
      _shown.clear()
      _shown.update(outer)
      for number, copy in enumerate(saved, start=1):
        os.dup2(copy, number)
        os.close(copy)


def unseen_file():
  """A file without a name, in memory where no directory takes one."""
  try:
    return tempfile.TemporaryFile(buffering=0)
  except OSError:  # The disk is full, or all of it is read only.
    return open(os.memfd_create('output'), 'w+b', buffering=0)


def _flush():
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      _discard(stream)


# Progress

# Fields of tqdm.format_meter.
_TEXT = (
    '{n:,.0f}/{total:,.0f} steps, {rate_noinv_fmt}, {remaining} left{postfix}')
_bar = None  # The live line, while there is one.


class Status:
  """Progress of one phase: step, rate, time left, the last returns.

  tqdm draws a line that is rewritten in a terminal or notebook. In a file its
  carriage returns would make one endless line, so there the same text is a
  line of its own every `interval` seconds, and one at the end. `quiet` shows
  nothing.
  """

  def __init__(self, phase, start, total, interval=30.0, quiet=False):
    self._phase = phase
    self._start = self._step = start
    self._total = total
    self._interval = interval
    self._began = self._shown = time.monotonic()
    self._note = ''
    self._unshown = True
    self._quiet = quiet
    self._bar = None
    if not quiet and (sys.stdout.isatty() or 'ipykernel' in sys.modules):
      self._bar = self._make_bar()

  def update(self, step, note=None):
    """Moves to `step`; `note` stays until it is replaced."""
    self._step = step
    self._unshown = True
    if note is not None:
      self._note = note
    if self._bar:
      self._move_bar()
      self._bar.update(0)
    elif time.monotonic() - self._shown >= self._interval:
      self._show()

  def close(self):
    """Leaves the phase's last state on the screen."""
    global _bar
    if self._bar:
      self._move_bar()
      self._bar.close()
      self._bar = _bar = None
    elif self._unshown:
      self._show()

  def line(self):
    """The text of the line."""
    return _tqdm().format_meter(
        self._step, self._goal, time.monotonic() - self._began,
        prefix=self._phase, unit='', initial=self._start, postfix=self._note,
        bar_format='{desc} ' + _TEXT)

  @property
  def _goal(self):
    # Environments may step past the end, where tqdm knows no total any more.
    return max(self._total, self._step, 1)

  def _show(self):
    self._shown = time.monotonic()
    self._unshown = False
    if not self._quiet:
      _print(self.line(), sys.stdout)

  def _make_bar(self):
    global _bar
    # Some terminals say that they have 0 columns or lines.
    sized = sys.stdout.isatty() and all(
        os.get_terminal_size(sys.stdout.fileno()))
    _bar = _tqdm()(
        desc=self._phase, total=self._goal, initial=self._start, unit='',
        bar_format='{desc} |{bar}| ' + _TEXT,
        file=sys.stdout, dynamic_ncols=sized, ncols=None if sized else 80,
        nrows=24, mininterval=0.2, miniters=0, smoothing=0, delay=1e-9)
    return _bar

  def _move_bar(self):
    self._bar.total = self._goal
    self._bar.n = self._step
    self._bar.set_postfix_str(self._note, refresh=False)


@functools.cache
def _tqdm():
  """tqdm without its monitor thread; loaded late, environments need none."""
  from tqdm import tqdm
  tqdm.monitor_interval = 0
  tqdm.set_lock(threading.RLock())
  return tqdm


def _above_bar():
  """Context in which lines are printed above the live line."""
  if _bar is None:
    return contextlib.nullcontext()
  return _tqdm().external_write_mode(file=sys.stdout)


def _drop_bar():
  """Removes the live line."""
  global _bar
  if _bar is not None:
    _bar.leave = False
    _bar.close()
    _bar = None


def duration(seconds):
  """Seconds as '42 s', '7 min', '3 h 20 min' or '4 d 6 h'."""
  minutes = round(seconds / 60)
  if seconds < 90:
    return f'{seconds:.0f} s'
  if minutes < 60:
    return f'{minutes} min'
  if minutes < 24 * 60:
    return f'{minutes // 60} h {minutes % 60} min'
  return f'{minutes // 1440} d {minutes % 1440 // 60} h'
