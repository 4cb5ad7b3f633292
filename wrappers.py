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
import difflib
import re

import gymnasium as gym
from gymnasium.wrappers import TimeLimit
import numpy as np

from common import terminal
from envs import atari, bullet, control, libraries, registered
from envs.pictures import SIZE


def make_env(
    task, *, action_repeat=2, time_limit=1000, own_limit=False,
    termination=False, action_dim=None, render='default', camera='published',
    end_of_life=False, noops=0):
  """Makes an environment that is acted on and seen the same way for any task.

  Args:
    task: Name of the task, see the top of this file.
    action_repeat: Environment steps per decision; their rewards are summed.
    time_limit: Environment steps after which an episode is truncated. The
      limit of a registered Gymnasium id also holds.
    own_limit: Whether the registered limit of a PyBullet task also holds.
    termination: Whether PyBullet tasks end where they say they do. Otherwise
      an episode lasts the whole time limit, as in the published results.
    action_dim: Width of the padded actions, of which the environment receives
      the leading ones; None for its own width.
    render: 'default' or 'fast', which draws dm_control without shadows,
      reflections and antialiasing, several times as fast without a GPU.
    camera: 'published' or 'whole', from where the whole robot of a PyBullet
      task is seen.
    end_of_life: Whether a lost life terminates an Atari episode.
    noops: Most frames without an action at the beginning of an Atari episode.

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
  _check_settings(action_repeat, time_limit, render, camera)
  with _quiet_libraries(task), registered.plain_errors(task):
    base = _make_base(task, termination, render, camera, end_of_life, noops)
    # So that errors are found, and slow parts loaded, before a run begins.
    base.reset(seed=0)
    base.picture(SIZE, SIZE)
  env = CheckFinite(base)
  env = ActionRepeat(env, action_repeat)
  env = _vector_actions(env, task)
  if action_dim is not None:
    env = PadActions(env, action_dim)
  if own_limit:
    time_limit = min(time_limit, bullet.limit(task) or time_limit)
  env = TimeLimit(env, max(1, time_limit // action_repeat))
  return Pixels(env, base.picture)


def check_task(task):
  """Raises a `terminal.UserError` for an unknown task, without making it."""
  with _quiet_libraries(task):
    if ':' in task:
      registered.find_hook(task)
    elif task.startswith('dmc_'):
      _check_name(task, control.tasks())
    elif task.startswith('atari_'):
      _check_name(task, atari.tasks())
    elif task not in registered.tasks():
      bullet.check_installed(task)
      _check_name(task, task_names())


def can_terminate(task, termination=False):
  """Whether episodes of a task may end before the time limit.

  What is not known to last, such as an environment of a user, may.
  """
  if task.startswith('dmc_'):
    return control.can_terminate(task)
  return termination or bullet.limit(task) is None


def task_names():
  """Names of all tasks that the installed libraries bring."""
  with libraries.quiet():
    names = registered.tasks() + atari.tasks()
    # A machine without OpenGL cannot even import dm_control.
    with contextlib.suppress(terminal.UserError):
      names += control.tasks()
  return names


def _check_settings(action_repeat, time_limit, render, camera):
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
  if camera not in ('published', 'whole'):
    raise terminal.UserError(
        f"camera is '{camera}'; it must be 'published' or 'whole'")


def _check_name(task, names):
  if task in names:
    return
  near = ', '.join(_near_names(task, names)) or 'none'
  raise terminal.UserError(f"unknown task '{task}'; near matches: {near}")


def _near_names(task, names, amount=4):
  """Names that contain the words of a task, else those spelt alike."""
  # Names of other programs: ALE/Pong-v5, PongNoFrameskip-v4, HopperPyBullet.
  core = re.sub(
      r'^ale/|-v\d+$|noframeskip|deterministic|(py)?bullet(env)?', '',
      task.lower())
  words = re.findall('[a-z0-9]+', core)
  squashed = {name: re.sub('[^a-z0-9]', '', name.lower()) for name in names}
  having = [
      name for name in names if len(''.join(words)) > 2 and (
          ''.join(words) in squashed[name]
          or all(word in squashed[name] for word in words))]
  having.sort(key=lambda name: (_rank(name, words[0]), len(name)))
  if having:
    return having[:amount]
  lower = {name.lower(): name for name in names}
  alike = difflib.get_close_matches(task.lower(), lower, amount, 0.5)
  return [lower[name] for name in alike]


def _rank(name, word):
  """Sorts first by whether a part of the name begins so, then by simulator."""
  parts = re.findall('[A-Z]?[a-z0-9]+', name)
  within = not any(part.lower().startswith(word) for part in parts)
  if name.endswith('BulletEnv-v0'):
    return within, 0
  return within, 1 if name.startswith(('dmc_', 'atari_')) else 2


def _make_base(task, termination, render, camera, end_of_life, noops):
  check_task(task)
  if ':' in task:
    return registered.Rendered(registered.find_hook(task)(), task)
  if task.startswith('dmc_'):
    return control.Control(task, render)
  if task.startswith('atari_'):
    return atari.Atari(task, end_of_life, noops)
  if task.endswith('BulletEnv-v0'):
    return bullet.Bullet(task, termination, camera)
  return registered.Rendered(registered.make(task), task)


def _quiet_libraries(task):
  # Users see all that their own code prints.
  return contextlib.nullcontext() if ':' in task else libraries.quiet()


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
    return NormalizeActions(env, task)
  if isinstance(env.action_space, gym.spaces.Discrete):
    return OneHotActions(env)
  raise terminal.UserError(
      f"task '{task}' has actions {env.action_space}; only Box and Discrete "
      'are supported')


class NormalizeActions(gym.ActionWrapper):
  """Flat actions: -1, 0 and 1 are low, middle and high of the environment's.

  Whole numbers are rounded. Dimensions without bounds get actions as they are.
  """

  def __init__(self, env, task):
    """Raises a `terminal.UserError` for bounds on one side alone."""
    super().__init__(env)
    space = env.action_space
    low, high = np.ravel(space.low), np.ravel(space.high)
    bounded = np.isfinite(low) & np.isfinite(high)
    free = np.isneginf(low) & np.isposinf(high)
    if space.dtype.kind not in 'fiu' or not low.size or not all(bounded | free):
      raise terminal.UserError(
          f"task '{task}' has actions {space}; they must be numbers with "
          'bounds on both sides or on none')
    self.action_space = gym.spaces.Box(
        np.where(bounded, -1, -np.inf).astype(np.float32),
        np.where(bounded, 1, np.inf).astype(np.float32))
    self._space = space
    self._low, self._high = low, high
    if space.dtype.kind in 'iu':
      # Python's numbers hold the sum of any two bounds.
      self._low, self._high = low.astype(object), high.astype(object)
      self._middle = np.float64((self._low + self._high) / 2)
      self._half = np.float64((self._high - self._low) / 2)
    else:
      # Halved first, as the sum of two bounds may be too large. Bounds of -1
      # and 1 leave an action bit for bit as it is.
      low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
      self._middle, self._half = low / 2 + high / 2, high / 2 - low / 2

  def action(self, action):
    with np.errstate(over='ignore'):  # Infinity is cut to the bound.
      action = self._middle + self._half * action
    if self._space.dtype.kind in 'iu':
      action = np.array([int(x) for x in np.rint(action)], object)
    action = np.clip(action, self._low, self._high)
    return action.astype(self._space.dtype).reshape(self._space.shape)


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
    if abs(reward) > float(np.finfo(np.float32).max):
      raise FloatingPointError(
          f'the environment gave a reward that 32 bits do not hold: {reward}')
    return self._observe(reward), reward, terminated, truncated, info

  def _observe(self, reward):
    image = self.render_frame(SIZE, SIZE)
    return {'image': image, 'reward': np.float32(reward)}
