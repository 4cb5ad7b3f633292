"""Registered Gymnasium ids, and environments that users write."""

import contextlib
import difflib
import functools
import importlib
import os
import sys

import gymnasium as gym
import numpy as np

from common import terminal
from envs import control, pictures


class Rendered(gym.Wrapper):
  """Any other environment; its pictures come from `render()`."""

  def __init__(self, env, task):
    if not isinstance(env, gym.Env):
      raise terminal.UserError(
          f"task '{task}' gives {type(env).__name__}; it must return a "
          'gymnasium.Env')
    super().__init__(env)
    self._task = task

  def picture(self, height, width):
    """Image uint8 [height, width, 3], whatever size the environment draws."""
    pixels = self.env.render()
    shape = getattr(pixels, 'shape', ())
    if len(shape) != 3 or shape[2] != 3 or pixels.dtype != np.uint8:
      raise terminal.UserError(
          f"task '{self._task}' draws no picture: render() must return a uint8 "
          "array [height, width, 3] (render_mode='rgb_array')")
    return pictures.resize(pixels, height, width)


def tasks():
  """All registered ids, PyBullet's among them where that is installed."""
  with contextlib.suppress(ModuleNotFoundError):
    importlib.import_module('pybullet_envs_gymnasium')  # Registers its tasks.
  return list(gym.registry)


def make(task):
  if 'mujoco' in str(gym.spec(task).entry_point):
    control.choose_opengl()
  try:
    return gym.make(
        task, render_mode='rgb_array', disable_env_checker=True)
  except (gym.error.Error, ImportError, TypeError) as error:
    reason = str(error).replace('\n', ' ')
    raise terminal.UserError(
        f"task '{task}' cannot be made: {reason}") from error


def find_hook(task):
  """The function that makes the environment of a task `module:name`."""
  module_name, name = task.split(':', 1)
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(module_name)
  except (ImportError, ValueError) as error:
    raise terminal.UserError(
        f"task '{task}': cannot import '{module_name}': {error}") from error
  if name in gym.registry:
    return functools.partial(make, name)
  if not callable(getattr(module, name, None)):
    near = difflib.get_close_matches(name, dir(module), n=4)
    raise terminal.UserError(
        f"task '{task}': '{module_name}' has no function '{name}'; near "
        f"matches: {', '.join(near) or 'none'}")
  return getattr(module, name)
