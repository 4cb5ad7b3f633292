"""What users see at the shell: one-line errors, one live line, no noise."""

import contextlib
import os
import sys
import tempfile
import time


class UserError(Exception):
  """Bad input; the message names what is wrong and says what to do."""


def run(main, argv=None):
  """Calls `main(argv)` and ends the program; a `UserError` becomes one line.

  Exit status: what `main` returns, 0 for None, and 2 after a `UserError`.
  """
  try:
    status = main(sys.argv[1:] if argv is None else argv)
  except UserError as error:
    _live.clear()
    print(f'error: {error}', file=sys.stderr, flush=True)
    status = 2
  except KeyboardInterrupt:
    _live.clear()
    status = 130
  except BrokenPipeError:
    # Whoever read the output has gone (`| head`): nothing more to say.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = 1
  sys.exit(status or 0)


def say(message=''):
  """Prints a line above the live line."""
  _live.clear()
  print(message, flush=True)


def warn(message):
  """Prints one line on stderr above the live line."""
  _live.clear()
  print(f'warning: {message}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def silence():
  """Keeps what libraries print to file descriptors 1 and 2 from the user.

  Libraries in C++ write there directly. What they wrote is shown after all if
  the body raises.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  saved = [os.dup(1), os.dup(2)]
  with tempfile.TemporaryFile() as hidden:
    os.dup2(hidden.fileno(), 1)
    os.dup2(hidden.fileno(), 2)
    try:
      yield
    except BaseException as error:
      sys.stdout.flush()
      sys.stderr.flush()
      if not isinstance(error, UserError):
        hidden.seek(0)
        os.write(saved[1], hidden.read())
      raise
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      for number, copy in enumerate(saved, start=1):
        os.dup2(copy, number)
        os.close(copy)


class _LiveLine:
  """The last line of a terminal, rewritten in place."""

  def __init__(self):
    self._width = 0

  def write(self, text):
    columns = os.get_terminal_size().columns
    text = text[:columns - 1]
    sys.stdout.write('\r' + text.ljust(min(self._width, columns - 1)))
    sys.stdout.flush()
    self._width = len(text)

  def clear(self):
    if self._width:
      sys.stdout.write('\r' + ' ' * self._width + '\r')
      sys.stdout.flush()
      self._width = 0

  def keep(self):
    if self._width:
      sys.stdout.write('\n')
      sys.stdout.flush()
      self._width = 0


_live = _LiveLine()


class Status:
  """Progress of one phase: step, rate, time left, the last returns.

  A line that is rewritten on a terminal; in a file, a plain line every
  `interval` seconds and one at the end; `quiet` shows nothing.
  """

  def __init__(self, phase, start, total, interval=30.0, quiet=False):
    self._phase = phase
    self._start = self._step = start
    self._total = total
    self._tty = sys.stdout.isatty()
    self._interval = 0.2 if self._tty else interval
    self._began = self._shown = time.monotonic()
    self._note = ''
    self._unshown = True
    self._quiet = quiet

  def update(self, step, note=None):
    """Moves to `step`; `note` stays until it is replaced."""
    self._step = step
    self._unshown = True
    if note is not None:
      self._note = note
    if time.monotonic() - self._shown >= self._interval:
      self._show()

  def close(self):
    """Leaves the phase's last state on the screen."""
    if self._unshown:
      self._show()
    _live.keep()

  def line(self):
    """The text of the line."""
    seconds = max(time.monotonic() - self._began, 1e-9)
    rate = (self._step - self._start) / seconds
    parts = [f'{self._phase:<8} step {self._step:,.0f} of {self._total:,.0f}']
    if rate > 0:
      left = max(self._total - self._step, 0) / rate
      parts.append(f'{rate:.3g} steps/s')
      parts.append(f'{duration(left)} left')
    if self._note:
      parts.append(self._note)
    return ' · '.join(parts)

  def _show(self):
    self._shown = time.monotonic()
    self._unshown = False
    if self._quiet:
      return
    if self._tty:
      _live.write(self.line())
    else:
      print(self.line(), flush=True)


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
