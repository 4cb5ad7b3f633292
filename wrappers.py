"""Environments: one factory for every kind of task, and its wrappers.

A task is one of

    HopperBulletEnv-v0   any `*BulletEnv-v0` id of PyBullet
    dmc_walker_walk      dmc_DOMAIN_TASK of the DeepMind Control Suite
    atari_pong           atari_GAME of the Arcade Learning Environment
    Pendulum-v1          any registered Gymnasium id that renders `rgb_array`
    my_module:my_env     a function of yours returning a Gymnasium environment

TensorFlow is never imported here: workers import this module and stay small.
"""

import contextlib
import ctypes
import difflib
import functools
import importlib
import os
import subprocess
import sys
import threading

import gymnasium as gym
from gymnasium.wrappers import TimeLimit
import numpy as np

from common import terminal

SIZE = 64


def make_env(
    task, *, action_repeat=2, time_limit=1000, termination=False,
    action_dim=None, render='default'):
  """Makes an environment that is acted on and seen the same way for any task.

  Args:
    task: Name of the task, see the top of this file.
    action_repeat: Environment steps per decision; their rewards are summed.
    time_limit: Environment steps after which an episode is truncated.
    termination: Whether PyBullet tasks end where they say they do. Otherwise
      an episode lasts the whole time limit, as in the published results.
    action_dim: Width of the padded actions, of which the environment receives
      the leading ones; None for its own width.
    render: 'default' or 'fast', which draws dm_control without shadows,
      reflections and antialiasing, several times as fast without a GPU.

  Returns:
    A Gymnasium environment. Actions are float32 [action_dim] in [-1, 1], or
    one-hot where they are discrete. Observations are `image` uint8
    [64, 64, 3] and `reward` float32. `info['discount']` is 0.0 where the
    episode terminated and else 1.0. `render_frame(height, width)` gives a
    picture of any size. An episode is the same whenever `reset` gets the same
    seed.

  Raises:
    terminal.UserError: for an unknown task, settings that make no sense, or a
      missing library.
    FloatingPointError: in `reset` and `step` of the environment, for rewards
      and observations that are not finite.
  """
  _check_settings(action_repeat, time_limit, render)
  with _quiet_libraries(task):
    base = _make_base(task, termination, render)
    base.reset(seed=0)  # What goes wrong or takes time does so here.
  env = CheckFinite(base)
  env = ActionRepeat(env, action_repeat)
  env = _vector_actions(env, task)
  if action_dim is not None:
    env = PadActions(env, action_dim)
  env = TimeLimit(env, time_limit // action_repeat)
  return Pixels(env, base.picture)


def check_task(task):
  """Raises a `terminal.UserError` for an unknown task, without making it."""
  with _quiet_libraries(task):
    if ':' in task:
      _find_hook(task)
    elif task.startswith('dmc_'):
      _check_name(task, _control_tasks())
    elif task.startswith('atari_'):
      _check_name(task, _atari_tasks())
    elif task not in _registered_tasks():
      _check_name(task, task_names())


def task_names():
  """Names of all tasks that the installed libraries bring."""
  with _quiet():
    names = _registered_tasks() + _atari_tasks()
    # A machine without OpenGL cannot even import dm_control.
    with contextlib.suppress(terminal.UserError):
      names += _control_tasks()
  return names


def _check_settings(action_repeat, time_limit, render):
  if action_repeat < 1:
    raise terminal.UserError(
        f'action_repeat is {action_repeat}; it must be at least 1')
  if time_limit < action_repeat:
    raise terminal.UserError(
        f'time_limit {time_limit} is shorter than one decision of '
        f'{action_repeat} steps; raise it or lower action_repeat')
  if render not in ('default', 'fast'):
    raise terminal.UserError(
        f"render is '{render}'; it must be 'default' or 'fast'")


def _check_name(task, names):
  if task in names:
    return
  lower = {name.lower(): name for name in names}
  near = difflib.get_close_matches(task.lower(), lower, n=4, cutoff=0.5)
  near = ', '.join(lower[name] for name in near) or 'none'
  raise terminal.UserError(f"unknown task '{task}'; near matches: {near}")


def _make_base(task, termination, render):
  check_task(task)
  if ':' in task:
    return Rendered(_find_hook(task)(), task)
  if task.startswith('dmc_'):
    return Control(task, render)
  if task.startswith('atari_'):
    return Atari(task)
  if task.endswith('BulletEnv-v0'):
    return Bullet(task, termination)
  return Rendered(_make_registered(task), task)


def _quiet_libraries(task):
  # What the user's own code prints is the user's.
  return contextlib.nullcontext() if ':' in task else _quiet()


_quiet_lock = threading.RLock()


@contextlib.contextmanager
def _quiet():
  """`terminal.silence` for libraries in C, one thread at a time."""
  with _quiet_lock, terminal.silence():
    try:
      yield
    finally:
      # What C code printed may still wait in its own buffer.
      ctypes.CDLL(None).fflush(None)


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

  def __init__(self, task, termination):
    self._task = task
    self._termination = termination
    self._distance, self._pitch = self._cameras.get(
        task.removesuffix('BulletEnv-v0'), (2, 0))
    self._fixed = 'Pendulum' in task or 'Reacher' in task
    self._env = self._make()
    self.observation_space = self._env.observation_space
    self.action_space = self._env.action_space

  def _make(self):
    # Without the registered time limit, which is not the same for all tasks.
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
    with _quiet(), _filled_memory():
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
    """Position [3] of the first link of the body that has the motors."""
    motor = self._env.robot.ordered_joints[0]
    body = motor.bodies[motor.bodyIndex]
    if self._fixed:
      return self._env._p.getBasePositionAndOrientation(body)[0]
    return self._env._p.getLinkState(body, 0)[0]

  def close(self):
    self._env.close()


class Control(gym.Env):
  """A task of the DeepMind Control Suite."""

  _fast = {'shadow': False, 'reflection': False}

  def __init__(self, task, render):
    domain, name = _control_tasks()[task]
    # Some tasks draw their model from this seed; the seeds of the episodes
    # come with `reset`.
    self._env = _suite().load(domain, name, task_kwargs={'random': 0})
    self._camera = 2 if domain == 'quadruped' else 0
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
      self.picture(SIZE, SIZE)
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
    pixels = self._env.physics.render(
        height, width, camera_id=self._camera,
        render_flag_overrides=self._flags)
    return pixels.copy()

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


def _choose_opengl():
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
  _choose_opengl()
  try:
    from dm_control import suite
  except Exception as error:
    raise _opengl_error(error) from error
  return suite


def _control_tasks():
  """Names of the tasks with their domain and task in the suite."""
  pairs = _suite().ALL_TASKS
  tasks = {f'dmc_{domain}_{task}': (domain, task) for domain, task in pairs}
  tasks['dmc_cup_catch'] = ('ball_in_cup', 'catch')
  return tasks


class Atari(gym.Env):
  """An Atari game with sticky actions (Machado et al. 2018)."""

  def __init__(self, task):
    import ale_py
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    self._game = ale_py.roms.get_rom_path(task.removeprefix('atari_'))
    self._ale = ale_py.ALEInterface()
    self._ale.setFloat('repeat_action_probability', 0.25)
    self._ale.loadROM(self._game)
    self._actions = self._ale.getMinimalActionSet()
    self._before = self._ale.getScreenRGB()
    self.observation_space = gym.spaces.Dict()
    self.action_space = gym.spaces.Discrete(len(self._actions))

  def reset(self, *, seed=None, options=None):
    if seed is not None:
      # A seed counts from the next time that the game is loaded.
      self._ale.setInt('random_seed', seed)
      self._ale.loadROM(self._game)
    self._ale.reset_game()
    self._before = self._ale.getScreenRGB()
    return {}, {}

  def step(self, action):
    self._before = self._ale.getScreenRGB()
    reward = self._ale.act(self._actions[action])
    return {}, reward, self._ale.game_over(), False, {}

  def picture(self, height, width):
    """Image uint8 [height, width, 3] of the game."""
    # Sprites that flicker are drawn in one of two frames.
    pixels = np.maximum(self._before, self._ale.getScreenRGB())
    return _resize(pixels, height, width)


def _atari_tasks():
  from ale_py import roms
  return [f'atari_{name}' for name in roms.get_all_rom_ids()]


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
    return _resize(pixels, height, width)


def _registered_tasks():
  import pybullet_envs_gymnasium  # Registers its tasks.
  del pybullet_envs_gymnasium
  return list(gym.registry)


def _make_registered(task):
  if 'mujoco' in str(gym.spec(task).entry_point):
    _choose_opengl()
  try:
    return gym.make(
        task, render_mode='rgb_array', disable_env_checker=True)
  except (gym.error.Error, ImportError, TypeError) as error:
    reason = str(error).replace('\n', ' ')
    raise terminal.UserError(
        f"task '{task}' cannot be made: {reason}") from error


def _find_hook(task):
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
    return functools.partial(_make_registered, name)
  if not callable(getattr(module, name, None)):
    near = difflib.get_close_matches(name, dir(module), n=4)
    raise terminal.UserError(
        f"task '{task}': '{module_name}' has no function '{name}'; near "
        f"matches: {', '.join(near) or 'none'}")
  return getattr(module, name)


def _resize(pixels, height, width):
  if pixels.shape[:2] == (height, width):
    return pixels.copy()
  from PIL import Image
  image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
  return np.array(image)


class CheckFinite(gym.Wrapper):
  """Raises a FloatingPointError for NaN or infinite numbers."""

  def reset(self, **kwargs):
    obs, info = self.env.reset(**kwargs)
    self._check('observation', obs)
    return obs, info

  def step(self, action):
    obs, reward, terminated, truncated, info = self.env.step(action)
    self._check('reward', reward)
    self._check('observation', obs)
    return obs, reward, terminated, truncated, info

  def _check(self, name, value):
    if not _finite(value):
      raise FloatingPointError(
          f'the environment gave a NaN or infinite {name}: {value}')


def _finite(value):
  if isinstance(value, dict):
    return all(_finite(part) for part in value.values())
  if isinstance(value, (list, tuple)):
    return all(_finite(part) for part in value)
  array = np.asarray(value)
  return array.dtype.kind != 'f' or np.isfinite(array).all()


class ActionRepeat(gym.Wrapper):
  """Takes each action several times, until the episode ends."""

  def __init__(self, env, amount):
    super().__init__(env)
    self._amount = amount

  def step(self, action):
    total = 0.0
    for _ in range(self._amount):
      obs, reward, terminated, truncated, info = self.env.step(action)
      total += reward
      if terminated or truncated:
        break
    return obs, total, terminated, truncated, info


def _vector_actions(env, task):
  if isinstance(env.action_space, gym.spaces.Box):
    return NormalizeActions(env)
  if isinstance(env.action_space, gym.spaces.Discrete):
    return OneHotActions(env)
  raise terminal.UserError(
      f"task '{task}' has actions {env.action_space}; only Box and Discrete "
      'are supported')


class NormalizeActions(gym.ActionWrapper):
  """Flat actions in [-1, 1] where the bounds are finite."""

  def __init__(self, env):
    super().__init__(env)
    space = env.action_space
    low, high = np.ravel(space.low), np.ravel(space.high)
    bounded = np.isfinite(low) & np.isfinite(high)
    self.action_space = gym.spaces.Box(
        np.where(bounded, -1, low).astype(np.float32),
        np.where(bounded, 1, high).astype(np.float32))
    low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
    # Bounds that are -1 and 1 already leave an action bit for bit as it is.
    self._middle, self._half = (low + high) / 2, (high - low) / 2
    self._shape = space.shape

  def action(self, action):
    return (self._middle + self._half * action).reshape(self._shape)


class OneHot(gym.spaces.Box):
  """Space of one-hot vectors [size]."""

  def __init__(self, size):
    super().__init__(0, 1, (size,), np.float32)

  def sample(self, mask=None, probability=None):
    index = self.np_random.integers(self.shape[0])
    return np.eye(self.shape[0], dtype=np.float32)[index]


class OneHotActions(gym.ActionWrapper):
  """One-hot vectors in place of a discrete action."""

  def __init__(self, env):
    super().__init__(env)
    self._start = env.action_space.start
    self.action_space = OneHot(int(env.action_space.n))

  def action(self, action):
    return int(self._start + np.argmax(action))


class PadActions(gym.ActionWrapper):
  """Wider actions, of which the environment receives the leading ones.

  A one-hot action beyond those of the environment acts as its first one.
  """

  def __init__(self, env, size):
    super().__init__(env)
    space = env.action_space
    self._size = space.shape[0]
    if size < self._size:
      raise terminal.UserError(
          f'action_dim {size} is less than the {self._size} actions of the '
          'environment')
    if isinstance(space, OneHot):
      self.action_space = OneHot(size)
    else:
      ones = np.ones(size - self._size, np.float32)
      self.action_space = gym.spaces.Box(
          np.concatenate([space.low, -ones]),
          np.concatenate([space.high, ones]))

  def action(self, action):
    return action[:self._size]


class Pixels(gym.Wrapper):
  """Observations of one image per decision and the last reward."""

  def __init__(self, env, picture):
    super().__init__(env)
    self.render_frame = picture
    self.observation_space = gym.spaces.Dict({
        'image': gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
        'reward': gym.spaces.Box(-np.inf, np.inf, (), np.float32)})

  def reset(self, *, seed=None, options=None):
    self.env.reset(seed=None if seed is None else int(seed))
    return self._observe(0.0), {'discount': 1.0}

  def step(self, action):
    _, reward, terminated, truncated, _ = self.env.step(action)
    info = {'discount': 0.0 if terminated else 1.0}
    reward = float(reward)
    return self._observe(reward), reward, terminated, truncated, info

  def _observe(self, reward):
    image = self.render_frame(SIZE, SIZE)
    return {'image': image, 'reward': np.float32(reward)}
