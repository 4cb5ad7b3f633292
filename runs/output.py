"""Output of a run, which may outlive the terminal that shows it."""

import contextlib
import os
import sys


@contextlib.contextmanager
def outlive_reader():
  """In this context nothing fails because nobody reads the output any more.

  After a terminal or a pipe is closed, text for it is dropped.
  """
  streams = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = map(_Lenient, streams)
  try:
    yield
  finally:
    sys.stdout, sys.stderr = streams


class _Lenient:
  """A stream that drops text which cannot be written."""

  def __init__(self, stream):
    self._stream = stream or open(os.devnull, 'w')

  def write(self, text):
    with self._dropping():
      self._stream.write(text)
    return len(text)

  def flush(self):
    with self._dropping():
      self._stream.flush()

  def __getattr__(self, name):
    return getattr(self._stream, name)

  @contextlib.contextmanager
  def _dropping(self):
    try:
      yield
    except UnicodeError:
      raise
    except (OSError, ValueError):
      # The text in the buffer would fail again at every flush.
      with contextlib.suppress(OSError, ValueError):
        with open(os.devnull, 'w') as nowhere:
          os.dup2(nowhere.fileno(), self._stream.fileno())
