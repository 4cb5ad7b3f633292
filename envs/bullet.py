"""PyBullet tasks (`pybullet_envs_gymnasium`): HopperBulletEnv-v0 and others."""

import contextlib
import ctypes
import functools
import importlib.util

import gymnasium as gym
import numpy as np

from common import terminal
from envs import libraries


@functools.cache
def register():
  """Registers the tasks with Gymnasium where PyBullet is installed."""
  with contextlib.suppress(ImportError), libraries.quiet():
    importlib.import_module('pybullet_envs_gymnasium')


def check_installed(task):
  """Raises a `terminal.UserError` for a PyBullet task without PyBullet."""
  missing = [
      name for name in ('pybullet', 'pybullet_envs_gymnasium')
      if not _installed(name)]
  if task.lower().endswith('bulletenv-v0') and missing:
    raise terminal.UserError(
        f"task '{task}' needs PyBullet, which is not installed "
        f'({", ".join(missing)}). It has wheels for Python 3.10 and 3.11 only: '
        'make clean, then make train PYTHON=python3.11')


def _installed(name):
  try:
    return importlib.util.find_spec(name) is not None
  except ValueError:  # Hidden from programs.
    return False


@contextlib.contextmanager
def _filled_memory():
  """Fills new memory with one value, for C code that reads before it writes.

  Bullet does when it loads a robot: of HumanoidFlagrunHarderBulletEnv-v0 three
  in a hundred simulations differed from the others with the same seed.
  """
  perturb = -6  # M_PERTURB of the C library on Linux; others ignore or lack it.
  change = getattr(ctypes.CDLL(None), 'mallopt', lambda *_: None)
  change(perturb, 1)
  try:
    yield
  finally:
    change(perturb, 0)


class Bullet(gym.Env):
  """A PyBullet task, drawn in software from a camera beside the robot."""

  # Distance and pitch of the camera where they are not 2 and 0.
  _cameras = {'Reacher': (1.05, 90), 'Pusher': (1.2, 45), 'Thrower': (1.2, 0)}

  def __init__(self, task, termination=False, camera='published'):
    """Args:
      task: registered id.
      termination: Whether episodes terminate by the task's own rules.
      camera: 'published', or 'whole' for one that stands further away and
        follows the torso of a walking robot at a fixed height.
    """
    self._task = task
    self._termination = termination
    self._distance, self._pitch = self._cameras.get(
        task.removesuffix('BulletEnv-v0'), (2, 0))
    self._fixed = 'Pendulum' in task or 'Reacher' in task
    self._whole = camera == 'whole' and not (
        self._fixed or 'Pusher' in task or 'Thrower' in task)
    if self._whole:
      self._distance = 3
    self._env = self._make()
    self.observation_space = self._env.observation_space
    self.action_space = self._env.action_space

  def _make(self):
    # Without the registered time limit, which `make_env` sets.
    return gym.make(self._task, disable_env_checker=True).unwrapped

  def reset(self, *, seed=None, options=None):
    if seed is not None:
      self._renew()
    return self._env.reset(seed=seed)

  def _renew(self):
    """Makes the simulation again, 10 to 20 ms, so that a seed repeats.

    Bullet's own reset leaves traces of the last episode in the contacts, and
    the first one after loading differs from all others.
    """
    with libraries.quiet(), _filled_memory():
      self._env.close()
      self._env = self._make()
      self._env.reset(seed=0)

  def step(self, action):
    obs, reward, terminated, truncated, info = self._env.step(action)
    return obs, reward, terminated and self._termination, truncated, info

  def picture(self, height, width):
    """Image uint8 [height, width, 3] of the robot and what is around it."""
    physics = self._env._p
    view = physics.computeViewMatrixFromYawPitchRoll(
        self._target(), self._distance, yaw=0, pitch=self._pitch, roll=0,
        upAxisIndex=2)
    projection = physics.computeProjectionMatrixFOV(
        fov=60, aspect=width / height, nearVal=1, farVal=25)
    pixels = physics.getCameraImage(
        width, height, view, projection, lightDirection=[0, 1, 1], shadow=1,
        renderer=physics.ER_TINY_RENDERER)[2]
    pixels = np.reshape(pixels, (height, width, 4))
    return np.ascontiguousarray(pixels[:, :, :3], np.uint8)

  def _target(self):
    """Position [3] that the camera looks at.

    As published, the first link of the body that has the motors. That of
    Walker2D and Hopper stays on the ground, which cuts their torso.
    """
    if self._whole:
      x, y, _ = self._env.robot.robot_body.get_position()
      return x, y, 0.8
    motor = self._env.robot.ordered_joints[0]
    body = motor.bodies[motor.bodyIndex]
    if self._fixed:
      return self._env._p.getBasePositionAndOrientation(body)[0]
    return self._env._p.getLinkState(body, 0)[0]

  def close(self):
    self._env.close()


def limit(task):
  """Registered time limit of a task in environment steps; None of others."""
  register()
  spec = gym.registry.get(task) if task.endswith('BulletEnv-v0') else None
  return spec and spec.max_episode_steps
