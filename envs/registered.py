"""Registered Gymnasium ids, and environments that users write."""

import contextlib
import difflib
import functools
import importlib
from importlib import machinery, util
import inspect
import os
import pathlib
import sys
import traceback

import gymnasium as gym
import numpy as np

from common import files, terminal
from envs import bullet, control, libraries, pictures

# Modules of this program, which no task is taken from.
OWN = frozenset({
    'analysis', 'benchmarks', 'common', 'data', 'dreamer', 'envs', 'evaluate',
    'export', 'look', 'models', 'plotting', 'rank', 'results', 'runs', 'tests',
    'tools', 'transfer', 'wrappers'})


class Rendered(gym.Wrapper):
  """Any other environment; its pictures come from `render()`."""

  def __init__(self, env, task):
    """Args:
      env: `gymnasium.Env` that renders `rgb_array`.
      task: name for messages.

    Raises:
      terminal.UserError: for what is no such environment.
    """
    if not isinstance(env, gym.Env):
      kind = type(env)
      old = any(c.__module__.split('.')[0] == 'gym' for c in kind.__mro__)
      raise terminal.UserError(
          f"task '{task}' gives {kind.__name__}"
          f'{" of the old package gym" * old}; it must return a gymnasium.Env')
    _check_reset(env.unwrapped, task)
    super().__init__(CheckReturns(_check_inside(env, task), task))
    self._task = task

  def picture(self, height, width):
    """Image uint8 [height, width, 3], whatever size the environment draws."""
    with plain_errors(self._task):
      pixels = self.env.render()
    try:
      pixels = pictures.rgb(pixels)
    except ValueError as error:
      raise terminal.UserError(
          f"task '{self._task}' draws no picture: render() gave {error}; it "
          'must give a uint8 array [height, width, 3] '
          "(render_mode='rgb_array')") from None
    return pictures.resize(pixels, height, width)


class CheckReturns(gym.Wrapper):
  """Names returns of a wrong kind; takes arrays of one number as a number."""

  def __init__(self, env, task):
    super().__init__(env)
    self._task = task

  def reset(self, **kwargs):
    result = self.env.reset(**kwargs)
    if not (isinstance(result, tuple) and len(result) == 2
            and isinstance(result[1], dict)):
      raise self._wrong(
          f'reset() returned {_kind(result)}, as the old Gym API does; '
          'Gymnasium wants a pair of the observation and a dict')
    return result

  def step(self, action):
    result = self.env.step(action)
    if not isinstance(result, tuple) or len(result) != 5:
      raise self._wrong(
          f'step() returned {_kind(result)}'
          f'{", as the old Gym API does" * (_kind(result) == "4 values")}; '
          'Gymnasium wants observation, reward, terminated, truncated and info')
    obs, reward, terminated, truncated, info = result
    if not isinstance(info, dict):
      raise self._wrong(f'step() returned {_kind(info)} as info, not a dict')
    return (
        obs, self._number('reward', reward, 'fiub'),
        self._flag('terminated', terminated),
        self._flag('truncated', truncated), info)

  def _flag(self, name, value):
    return value if isinstance(value, bool) else bool(
        self._number(name, value, 'biu'))

  def _number(self, name, value, kinds):
    if isinstance(value, float) and 'f' in kinds:
      return value
    try:
      array = np.asarray(value)
    except ValueError:  # Lists of several lengths.
      array = np.empty(0)
    if array.size != 1 or array.dtype.kind not in kinds:
      raise self._wrong(
          f'step() returned {_kind(value)} as {name}, not '
          f'{"a number" if "f" in kinds else "True or False"}')
    return array.item()

  def _wrong(self, message):
    return terminal.UserError(f"task '{self._task}': {message}")


def _kind(value):
  if isinstance(value, tuple):
    return f'{len(value)} values'
  if isinstance(value, np.ndarray):
    return f'an array {list(value.shape)} of {value.dtype}'
  return f'{value!r:.40} ({type(value).__name__})'


def _check_inside(env, task):
  """Checks returns within the wrappers of Gymnasium, which unpack them."""
  inner = env
  while isinstance(inner, gym.Wrapper) and isinstance(inner.env, gym.Wrapper):
    inner = inner.env
  if isinstance(inner, gym.Wrapper):
    inner.env = CheckReturns(inner.env, task)
  return env


def _check_reset(env, task):
  for name in ('seed', 'options'):
    try:
      inspect.signature(env.reset).bind(**{name: None})
    except TypeError:
      raise terminal.UserError(
          f"task '{task}': reset() takes no {name}, as in the old Gym API; "
          'Gymnasium wants reset(self, *, seed=None, options=None)') from None
    except ValueError:
      pass  # A function in C, which says nothing of its arguments.


def tasks():
  """All registered ids, those of PyBullet included where it is installed."""
  bullet.register()
  return list(gym.registry)


def make(task):
  """Environment of a registered id."""
  if 'mujoco' in str(gym.spec(task).entry_point):
    control.choose_opengl()
  return gym.make(task, render_mode='rgb_array', disable_env_checker=True)


@contextlib.contextmanager
def plain_errors(task):
  """Turns errors that a user can act on into one line each."""
  try:
    yield
  except (ImportError, gym.error.DependencyNotInstalled) as error:
    reason = _missing(error) or _one_line(error)
    raise terminal.UserError(
        f"task '{task}' cannot be made: {reason}") from error
  except NotImplementedError as error:
    raise terminal.UserError(
        f"task '{task}' draws no picture: render() is not implemented") from (
            error)
  except gym.error.Error as error:
    raise terminal.UserError(
        f"task '{task}' cannot be made: {_one_line(error)}") from error


def _missing(error):
  """Says which package is missing, or '' if none is."""
  while error:
    if isinstance(error, ModuleNotFoundError) and error.name:
      package = error.name.partition('.')[0]
      return (
          f'the Python package {package} is missing; install it with '
          f'`python -m pip install {package}`')
    error = error.__cause__ or error.__context__
  return ''


def _one_line(error):
  return ' '.join(str(error).split()) or type(error).__name__


def find_hook(task):
  """The function that makes the environment of a task `module:name`.

  Modules are looked for on the module path and in the working directory, never
  among those of this program.

  Raises:
    terminal.UserError: for a module or function that is not there.
  """
  module_name, name = task.split(':', 1)
  module = _import(task, module_name)
  if name in gym.registry:
    return functools.partial(make, name)
  if not callable(getattr(module, name, None)):
    near = difflib.get_close_matches(name, dir(module), n=4)
    raise terminal.UserError(
        f"task '{task}': '{module_name}' has no function '{name}'; near "
        f"matches: {', '.join(near) or 'none'}")
  return getattr(module, name)


def _import(task, name):
  if not all(part.isidentifier() for part in name.split('.')):
    raise terminal.UserError(
        f"task '{task}': cannot import '{name}', which is no name of a module; "
        'write my_module:my_env for a function my_env in my_module.py')
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  try:
    with libraries.own_directory():
      if name.partition('.')[0] in OWN:
        return _import_of_user(name)
      return importlib.import_module(name)
  except (Exception, SystemExit) as error:
    reason = _one_line(error)
    if not isinstance(error, ImportError):
      reason = f'{type(error).__name__}: {reason}{_place(error)}'
    raise terminal.UserError(
        f"task '{task}': cannot import '{name}': {reason}") from error


def _import_of_user(name):
  """Imports a module whose name this program has too, under another name."""
  first, *rest = name.split('.')
  alias = f'task_{first}'
  if alias not in sys.modules:
    paths = [
        path for path in map(os.path.abspath, sys.path)
        if pathlib.Path(path).resolve() != files.ROOT.resolve()]
    spec = machinery.PathFinder.find_spec(first, paths)
    if spec is None or spec.loader is None:
      raise ImportError(
          'this program has a module of that name; give yours another one')
    spec = util.spec_from_file_location(
        alias, spec.origin,
        submodule_search_locations=spec.submodule_search_locations)
    sys.modules[alias] = util.module_from_spec(spec)
    try:
      spec.loader.exec_module(sys.modules[alias])
    except BaseException:
      del sys.modules[alias]
      raise
  return importlib.import_module('.'.join([alias, *rest]))


def _place(error):
  frames = traceback.extract_tb(error.__traceback__)
  own = [x for x in frames if 'importlib' not in x.filename]
  if isinstance(error, SyntaxError) or len(own) < 2:
    return ''
  return f' ({own[-1].filename}, line {own[-1].lineno})'
