"""Signals that ask a program to stop."""

import contextlib
import os
import signal
import threading


class Signals:
  """Turns signals into a wish to stop, for as long as the context lasts.

  `stop` says whether one came, `status` is the exit status that goes with it.
  A second one ends the program at once, but for a hangup: a terminal that is
  closed may send several.
  """

  statuses = {
      signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129,
      signal.SIGUSR1: 0}

  def __init__(self):
    self.stop = False
    self.status = 0
    self._context = handled(
        self.statuses, self._came, ignorable=[signal.SIGHUP])

  def __enter__(self):
    self._context.__enter__()
    return self

  def __exit__(self, *error):
    return self._context.__exit__(*error)

  def _came(self, number):
    if not self.stop:
      self.stop = True
      self.status = self.statuses[number]
    elif number != signal.SIGHUP:
      os._exit(self.statuses[number] or 1)


@contextlib.contextmanager
def handled(numbers, handler, ignorable):
  """Calls `handler(number)` for signals that come, in place of their effect.

  Those of `ignorable` that are ignored, as hangups are under nohup, stay so. In
  a thread, where Python takes no signals, it does nothing.
  """
  previous = {}
  if threading.current_thread() is threading.main_thread():
    for number in numbers:
      ignored = signal.getsignal(number) == signal.SIG_IGN
      if not (ignored and number in ignorable):
        previous[number] = signal.signal(
            number, lambda which, _: handler(which))
  try:
    yield
  finally:
    for number, before in previous.items():
      signal.signal(number, before)
