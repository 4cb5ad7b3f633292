"""Counts and clocks of a run, which its checkpoint keeps."""

import time

import tools


class Clocks:
  """Several `tools.Every`, each an attribute of its name."""

  def __init__(self, **periods):
    """Args: environment steps of a period by the clock's name."""
    self._names = list(periods)
    for name, every in periods.items():
      setattr(self, name, tools.Every(every))

  def state(self):
    return {name: getattr(self, name).last for name in self._names}

  def restore(self, state):
    for name in self._names:
      getattr(self, name).last = state[name]


class Count:
  """A number of things, such as updates that are due."""

  def __init__(self):
    self.value = 0

  def state(self):
    return self.value

  def restore(self, state):
    self.value = state


class Stopwatch:
  """Seconds that a run took so far, in all its sessions."""

  def __init__(self):
    self._before = 0.0
    self._began = time.monotonic()

  def state(self):
    return self._before + time.monotonic() - self._began

  def restore(self, state):
    self._before = state
