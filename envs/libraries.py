"""Keeps simulators quiet, and the process as the program wants it."""

import contextlib
import ctypes
import os
import threading

from common import terminal

_lock = threading.RLock()


@contextlib.contextmanager
def quiet():
  """`terminal.silence` for libraries in C, one thread at a time."""
  with _lock, terminal.silence():
    try:
      yield
    finally:
      # Lines of C code may still wait in its own buffer.
      ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def own_directory():
  """Returns to the working directory that the code of an environment left."""
  try:
    before = os.open('.', os.O_RDONLY | os.O_DIRECTORY)
  except OSError:  # It may not be read or was removed.
    yield
    return
  try:
    yield
  finally:
    os.fchdir(before)
    os.close(before)
