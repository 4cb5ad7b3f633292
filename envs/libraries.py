"""Keeps simulators quiet."""

import contextlib
import ctypes
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
      # What C code printed may still wait in its own buffer.
      ctypes.CDLL(None).fflush(None)
