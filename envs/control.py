"""Tasks of the DeepMind Control Suite: dmc_walker_walk and others."""

import functools
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np

from common import terminal
from envs import pictures


class Control(gym.Env):
  """A task of the DeepMind Control Suite."""

  _fast = {'shadow': False, 'reflection': False}

  def __init__(self, task, render):
    domain, name = tasks()[task]
    # Some tasks draw their model from this seed; the seeds of the episodes
    # come with `reset`.
    self._env = _suite().load(domain, name, task_kwargs={'random': 0})
    self._viewpoint = 2 if domain == 'quadruped' else 0
    self._camera = None
    self._flags = self._fast if render == 'fast' else None
    if render == 'fast':
      self._env.physics.model.vis.quality.offsamples = 0
    spec = self._env.action_spec()
    self.observation_space = gym.spaces.Dict()
    self.action_space = gym.spaces.Box(
        spec.minimum, spec.maximum, spec.shape, np.float64)
    self._try_opengl()

  def _try_opengl(self):
    try:
      self.picture(pictures.SIZE, pictures.SIZE)
    except Exception as error:
      raise _opengl_error(error) from error

  def reset(self, *, seed=None, options=None):
    if seed is not None:
      self._env.task.random.seed(seed)
    return self._env.reset().observation, {}

  def step(self, action):
    step = self._env.step(action)
    terminated = step.last() and step.discount == 0
    truncated = step.last() and not terminated
    return step.observation, step.reward, terminated, truncated, {}

  def picture(self, height, width):
    """Image uint8 [height, width, 3] from the task's own camera."""
    self._make_room(height, width)
    camera = self._camera_of(self._env.physics, height, width)
    return camera.render(render_flag_overrides=self._flags).copy()

  def _camera_of(self, physics, height, width):
    # `physics.render` makes one for every image, which takes its time.
    wanted = physics.model, height, width
    if self._camera is None or wanted != self._camera[0]:
      self._camera = wanted, _mujoco().Camera(
          physics, height, width, self._viewpoint)
    return self._camera[1]

  def _make_room(self, height, width):
    # A larger buffer makes small images slower, so only where it is needed.
    buffer = self._env.physics.model.vis.global_
    if height > buffer.offheight or width > buffer.offwidth:
      buffer.offheight = max(height, buffer.offheight)
      buffer.offwidth = max(width, buffer.offwidth)
      self._env.physics._free_rendering_contexts()

  def close(self):
    self._env.close()


_PROBE = """
import os, mujoco
context = mujoco.GLContext(64, 64)
context.make_current()
mujoco.MjrContext(
    mujoco.MjModel.from_xml_string('<mujoco/>'),
    mujoco.mjtFontScale.mjFONTSCALE_100)
os._exit(0)
"""


def choose_opengl():
  """Sets MUJOCO_GL, where it is not set, before MuJoCo is imported."""
  if os.environ.get('MUJOCO_GL'):
    return
  for name in ('egl', 'osmesa'):
    # In a process of its own, as a failed attempt spoils the next one.
    probe = subprocess.run(
        [sys.executable, '-c', _PROBE], env={**os.environ, 'MUJOCO_GL': name},
        stdin=subprocess.DEVNULL, capture_output=True)
    if probe.returncode == 0:
      os.environ['MUJOCO_GL'] = name
      return
  raise _opengl_error('neither egl nor osmesa works')


def _opengl_error(reason):
  chosen = os.environ.get('MUJOCO_GL', '')
  reason = f'MUJOCO_GL={chosen}: {reason}' if chosen else reason
  reason = str(reason).strip().replace('\n', ' ')
  return terminal.UserError(
      f'dm_control cannot draw without OpenGL ({reason}); run `apt-get '
      'install --no-install-recommends libegl1 libgl1`, unset MUJOCO_GL, and '
      'try again')


@functools.cache
def _suite():
  choose_opengl()
  try:
    from dm_control import suite
  except Exception as error:
    raise _opengl_error(error) from error
  return suite


def _mujoco():
  from dm_control import mujoco  # Once OpenGL is chosen.
  return mujoco


def tasks():
  """Names of the tasks with their domain and task in the suite."""
  pairs = _suite().ALL_TASKS
  tasks = {f'dmc_{domain}_{task}': (domain, task) for domain, task in pairs}
  tasks['dmc_cup_catch'] = ('ball_in_cup', 'catch')
  return tasks


def can_terminate(task):
  """Whether a task ends before its time limit: of the suite only lqr does."""
  return task.startswith('dmc_lqr_')
