"""Environments that go wrong, named in tests as tasks such as `hooks:crashes`.

A failure of `once` happens to the first environment that gets that far, in
whichever process: files named by the variable HOOKS_MARK record it.
"""

import os
import signal
import time

import gymnasium as gym
import numpy as np


class Dot(gym.Env):
  """A dot that is pushed left and right and should stay in the middle."""

  observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
  action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

  def __init__(self, wrong=lambda: 0.0, when=20):
    self._wrong, self._when = wrong, when

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._place = self.np_random.uniform(-1, 1)
    self._steps = 0
    return np.float32([self._place]), {}

  def step(self, action):
    self._place = float(np.clip(self._place + 0.1 * action[0], -1, 1))
    self._steps += 1
    extra = self._wrong() if self._when in (self._steps, 'always') else 0.0
    reward = 1 - abs(self._place) + extra
    return np.float32([self._place]), reward, False, False, {}

  def render(self):
    image = np.zeros((64, 64, 3), np.uint8)
    column = int(30 + 30 * self._place)
    image[28:36, column:column + 4] = 255
    return image


def once(name, action):
  """Makes `action` happen the first time it is called, in all processes."""
  def wrong():
    try:
      os.close(os.open(os.environ['HOOKS_MARK'] + name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
      return 0.0
    return action()
  return wrong


def fail():
  raise ZeroDivisionError('the dot fell off')


def crash():
  os.kill(os.getpid(), signal.SIGSEGV)


def good():
  return Dot()


class Uneven(Dot):
  """Episodes of 5 to 40 steps."""

  def reset(self, *, seed=None, options=None):
    result = super().reset(seed=seed)
    self._length = self.np_random.integers(5, 40)
    return result

  def step(self, action):
    obs, reward, _, _, info = super().step(action)
    return obs, reward, self._steps >= self._length, False, info


def uneven():
  return Uneven()


def three_failures():
  """Crashes, hangs, and gives NaN, then behaves."""
  wrongs = [
      once('crash', crash), once('hang', lambda: time.sleep(1000)),
      once('nan', lambda: float('nan'))]
  return Dot(lambda: sum(wrong() for wrong in wrongs))


def always_fails():
  return Dot(fail, when=5)


def vast():
  """Rewards are finite, their squares are not."""
  return Dot(lambda: 1e30, when='always')
