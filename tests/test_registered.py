"""Environments that users write: odd actions, returns, pictures and modules."""

import os
import pathlib
import signal
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import running
from common import terminal
from envs import pictures, registered
from runs import signals, workers
import wrappers

ROOT = pathlib.Path(__file__).parent.parent


class Good(gym.Env):
  """Keeps the last action; subclasses do one thing otherwise."""

  observation_space = gym.spaces.Box(-1, 1, (1,))
  action_space = gym.spaces.Box(-1, 1, (1,))
  metadata = {'render_modes': ['rgb_array']}

  def __init__(self, render_mode='rgb_array'):
    self.render_mode = render_mode

  def reset(self, *, seed=None, options=None):
    return np.zeros(1), {}

  def step(self, action):
    self.received = action
    return np.zeros(1), 1.5, False, False, {}

  def render(self):
    return np.full((64, 64, 3), 51, np.uint8)


# Actions.

INT64 = np.iinfo(np.int64)
FLOAT32 = np.finfo(np.float32)


@pytest.mark.parametrize('low,high,dtype,middle', [
    (0, 255, np.uint8, 128),
    (-128, 127, np.int8, 0),
    (-2 ** 15, 2 ** 15 - 1, np.int16, 0),
    (-2 ** 31, 2 ** 31 - 1, np.int32, 0),
    (INT64.min, INT64.max, np.int64, 0),
    (0, 2 ** 64 - 1, np.uint64, 2 ** 63),
    (-3, 4, np.int32, 0),
    (0, 5, np.int64, 2),
    (-3e38, 3e38, np.float32, 0),
    (FLOAT32.min, FLOAT32.max, np.float32, 0),
    (-1.7e308, 1.7e308, np.float64, 0),
    (-4, 0.1, np.float32, -1.95),
    (-2, 6, np.float16, 2),
])
def test_actions_reach_low_middle_and_high(low, high, dtype, middle):
  env = Good()
  env.action_space = gym.spaces.Box(low, high, (2, 2), dtype)
  wrapped = wrappers.NormalizeActions(env, 'task')
  assert wrapped.action_space == gym.spaces.Box(-1, 1, (4,))
  for action, expected in [
      (-1, env.action_space.low), (1, env.action_space.high),
      (0, np.full((2, 2), middle, dtype))]:
    wrapped.step(np.full(4, action, np.float32))
    assert env.action_space.contains(env.received)
    if action and env.action_space.dtype.kind != 'f':
      assert np.array_equal(env.received, expected)
    assert np.allclose(env.received, expected, rtol=1e-6, atol=1e-6)


def test_whole_numbers_are_rounded_evenly():
  env = Good()
  env.action_space = gym.spaces.Box(0, 10, (1,), np.int32)
  wrapped = wrappers.NormalizeActions(env, 'task')
  taken = []
  for action in np.linspace(-1, 1, 2001, dtype=np.float32):
    wrapped.step(action[None])
    taken.append(env.received[0])
  counts = np.bincount(taken)
  assert len(counts) == 11 and set(counts[1:-1]) <= {199, 200, 201}


def test_float_actions_are_those_of_before():
  """Runs of older versions continue to the bit."""
  rng = np.random.default_rng(0)
  for dtype in (np.float32, np.float64):
    low = rng.uniform(-9, 0, 50).astype(dtype)
    high = rng.uniform(0, 9, 50).astype(dtype)
    env = Good()
    env.action_space = gym.spaces.Box(low, high, dtype=dtype)
    wrapped = wrappers.NormalizeActions(env, 'task')
    for _ in range(20):
      action = rng.uniform(-0.99, 0.99, 50).astype(np.float32)
      before = (low + high) / 2 + (high - low) / 2 * action
      assert np.array_equal(wrapped.action(action), before)


@pytest.mark.parametrize('space', [
    gym.spaces.Box(0, np.inf, (1,)), gym.spaces.Box(-np.inf, 0, (1,)),
    gym.spaces.Box(np.float32([-1, 0]), np.float32([1, np.inf])),
    gym.spaces.Box(-1, 1, (0,)),
])
def test_bounds_on_one_side_are_one_line(space):
  env = Good()
  env.action_space = space
  with pytest.raises(terminal.UserError, match="'my:env' has actions Box") as e:
    wrappers.NormalizeActions(env, 'my:env')
  assert '\n' not in str(e.value)


# Returns.

class ArrayReturns(Good):
  def step(self, action):
    return (
        np.zeros(1), np.array([[1.5]]), np.array([False]),
        np.bool_(False), {})


class IntReward(Good):
  def step(self, action):
    return np.zeros(1), np.int64(2), 0, 0, {}


class FourValues(Good):
  def step(self, action):
    return np.zeros(1), 1.5, False, {}


class BareReset(Good):
  def reset(self, *, seed=None, options=None):
    return np.zeros(2)


class NoSeed(Good):
  def reset(self):
    return np.zeros(1), {}


class NoOptions(Good):
  def reset(self, seed=None):
    return np.zeros(1), {}


class TwoRewards(Good):
  def step(self, action):
    return np.zeros(1), np.ones(2), False, False, {}


class NoReward(Good):
  def step(self, action):
    return np.zeros(1), None, False, False, {}


class WordAsEnd(Good):
  def step(self, action):
    return np.zeros(1), 1.0, 'no', False, {}


class NoInfo(Good):
  def step(self, action):
    return np.zeros(1), 1.0, False, False, None


for old in (FourValues, BareReset):
  gym.register(f'Registered{old.__name__}-v0', entry_point=old)


def test_arrays_of_one_number_are_numbers():
  for name, reward in [('ArrayReturns', 3.0), ('IntReward', 4.0)]:
    env = wrappers.make_env(f'test_registered:{name}')
    env.reset(seed=0)
    obs, total, terminated, truncated, info = env.step(np.zeros(1))
    assert total == reward == obs['reward'] and type(total) is float
    assert terminated is False and truncated is False
    assert info == {'discount': 1.0}


@pytest.mark.parametrize('task,message', [
    ('FourValues', r'step\(\) returned 4 values, as the old Gym API does'),
    ('RegisteredFourValues-v0', r'step\(\) returned 4 values, as the old Gym'),
    ('BareReset', r'reset\(\) returned an array \[2\] of float64, as the old'),
    ('RegisteredBareReset-v0', r'reset\(\) returned an array \[2\]'),
    ('NoSeed', r'reset\(\) takes no seed, as in the old Gym API'),
    ('NoOptions', r'reset\(\) takes no options, as in the old Gym API'),
    ('TwoRewards', r'returned an array \[2\] of float64 as reward, not a numb'),
    ('NoReward', r'returned None \(NoneType\) as reward, not a number'),
    ('WordAsEnd', r"returned 'no' \(str\) as terminated, not True or False"),
    ('NoInfo', r'returned None \(NoneType\) as info, not a dict'),
])
def test_returns_of_a_wrong_kind_are_one_line_at_once(task, message):
  env = workers.make('none', f'test_registered:{task}')
  with pytest.raises(terminal.UserError, match=message) as caught:
    env.reset(0)()
    env.step(np.zeros(1, np.float32))()
  assert '\n' not in str(caught.value) and task in str(caught.value)


# Pictures.

@pytest.mark.parametrize('given,expected', [
    (np.full((64, 64), 51, np.uint8), [51, 51, 51]),
    (np.full((64, 64, 1), 51, np.uint8), [51, 51, 51]),
    (np.full((64, 64, 4), [51, 102, 153, 0], np.uint8), [51, 102, 153]),
    (np.full((64, 64, 3), [0.2, 0.4, 1]), [51, 102, 255]),
    (np.full((64, 64, 4), [0.2, 0.4, 1, 1], np.float32), [51, 102, 255]),
    (np.full((64, 64, 3), 51, np.int64), [51, 51, 51]),
])
def test_other_forms_of_pictures(given, expected):
  image = pictures.rgb(given)
  assert image.shape == (64, 64, 3) and image.dtype == np.uint8
  assert (image == expected).all()


class Draws(Good):
  picture = None

  def render(self):
    if isinstance(self.picture, type):
      raise self.picture()
    if isinstance(self.picture, Exception):
      raise self.picture
    return self.picture


def draws(picture):
  return type('Drawn', (Draws,), {'picture': picture})


gray = draws(np.arange(80 * 90, dtype=np.uint8).reshape(80, 90))
nothing = draws(None)
bright = draws(np.full((64, 64, 3), 200.0))
negative = draws(np.full((64, 64, 3), -1))
several = draws([np.zeros((64, 64, 3), np.uint8)])
two_channels = draws(np.zeros((64, 64, 2), np.uint8))
empty = draws(np.zeros((0, 64, 3), np.uint8))
not_implemented = draws(NotImplementedError)
no_pygame = draws(gym.error.DependencyNotInstalled('pygame is not installed'))
no_imageio = draws(ModuleNotFoundError(
    "No module named 'imageio'", name='imageio'))


def test_gray_pictures_are_drawn():
  env = wrappers.make_env('test_registered:gray')
  image = env.reset(seed=0)[0]['image']
  assert image.shape == (64, 64, 3) and image.std() > 3


BLIND = [
    ('nothing', 'gave NoneType; it must give a uint8 array'),
    ('bright', 'gave float64 numbers from 200.0 to 200.0'),
    ('negative', 'gave int64 numbers from -1 to -1'),
    ('several', 'gave list'),
    ('two_channels', r'gave an array \[64, 64, 2\]'),
    ('empty', r'gave an array \[0, 64, 3\]'),
    ('not_implemented', r'render\(\) is not implemented'),
    ('no_pygame', 'cannot be made: pygame is not installed'),
    ('no_imageio', 'package imageio is missing; install it with `python -m'),
]


@pytest.mark.parametrize('task,message', BLIND)
def test_no_picture_is_one_line_when_made(task, message):
  with pytest.raises(terminal.UserError, match=message) as caught:
    wrappers.make_env(f'test_registered:{task}')
  assert '\n' not in str(caught.value) and task in str(caught.value)


def test_no_picture_leaves_no_log_directory(tmp_path, capsys):
  for task in ('not_implemented', 'several'):
    logdir = tmp_path / task
    assert running.run(logdir, task=f'test_registered:{task}') == 2
    assert not logdir.exists()
    assert capsys.readouterr().err.count('\n') == 1


def test_missing_packages_of_registered_ids_are_named(tmp_path):
  script = (
      'import sys\n'
      'for name in ("pygame", "imageio"):\n'
      '  sys.modules[name] = None\n'
      'from common import terminal\nimport wrappers\n'
      'for task in ("CartPole-v1", "Hopper-v5"):\n'
      '  try:\n'
      '    wrappers.make_env(task)\n'
      '  except terminal.UserError as error:\n'
      '    print(error)\n')
  done = subprocess.run(
      [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
  lines = done.stdout.splitlines()
  assert len(lines) == 2 and done.stderr == ''
  assert "'CartPole-v1'" in lines[0] and 'install pygame' in lines[0]
  if 'OpenGL' not in lines[1]:
    assert "'Hopper-v5'" in lines[1] and 'install imageio' in lines[1]


# Modules.

def test_modules_of_the_program_are_known():
  found = {path.stem for path in ROOT.glob('*.py')} | {
      path.name for path in ROOT.iterdir()
      if path.is_dir() and any(path.glob('*.py'))}
  importable = {name for name in found if name.isidentifier()}
  assert importable == registered.OWN


@pytest.mark.parametrize('task,message', [
    ('models:Base', 'this program has a module of that name'),
    ('common.files:ROOT', 'this program has a module of that name'),
    ('./x:y', 'no name of a module'),
    ('../x:y', 'no name of a module'),
    ('a/b:c', 'no name of a module'),
    ('x.py:c', "cannot import 'x.py'"),
    ('..:c', 'no name of a module'),
    ('a' * 300 + ':make', 'cannot import'),
    ('test_registered:' + 'a' * 300, 'has no function'),
    ('a' * 300, 'unknown task'),
    ('dmc_' + 'a' * 300, 'unknown task'),
])
def test_names_that_are_no_modules_are_one_line(task, message):
  with pytest.raises(terminal.UserError, match=message) as caught:
    wrappers.check_task(task)
  assert '\n' not in str(caught.value)


def test_own_module_with_a_name_of_the_program(tmp_path, monkeypatch):
  (tmp_path / 'models.py').write_text(
      'import test_registered\nBase = test_registered.Good\n')
  (tmp_path / 'common').mkdir()
  (tmp_path / 'common' / '__init__.py').write_text('')
  (tmp_path / 'common' / 'toys.py').write_text(
      'import test_registered\nToy = test_registered.Good\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', sys.path[:])
  for task in ('models:Base', 'common.toys:Toy'):
    wrappers.make_env(task).close()
  sys.modules.pop('task_models'), sys.modules.pop('task_common')
  import models
  assert hasattr(models, 'RSSM')


def test_import_that_changes_the_directory(tmp_path, monkeypatch):
  (tmp_path / 'moves_away.py').write_text(
      'import os, test_registered\nos.chdir("/")\n'
      'make = test_registered.Good\n')
  monkeypatch.syspath_prepend(tmp_path)
  before = os.getcwd()
  wrappers.check_task('moves_away:make')
  assert os.getcwd() == before


@pytest.mark.parametrize('source,message', [
    ('1 / 0\n', 'ZeroDivisionError: division by zero .*broken.py, line 1'),
    ('def make(:\n', 'SyntaxError'),
    ('import sys\nsys.exit(3)\n', 'SystemExit: 3'),
    ('import no_such_package\n', "No module named 'no_such_package'"),
])
def test_modules_that_cannot_be_imported_are_one_line(
    tmp_path, monkeypatch, source, message):
  (tmp_path / 'broken.py').write_text(source)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(terminal.UserError, match=message) as caught:
    wrappers.check_task('broken:make')
  assert '\n' not in str(caught.value)


# Names.

@pytest.mark.parametrize('task,first', [
    ('hopper', ['HopperBulletEnv-v0', 'dmc_hopper_hop', 'dmc_hopper_stand',
                'Hopper-v4']),
    ('Hopper', ['HopperBulletEnv-v0', 'dmc_hopper_hop']),
    ('cheetah run', ['dmc_cheetah_run']),
    ('ALE/Pong-v5', ['atari_pong']),
    ('PongNoFrameskip-v4', ['atari_pong']),
    ('ALE/MsPacman-v5', ['atari_ms_pacman']),
    ('HalfCheetahPyBulletEnv-v0', ['HalfCheetahBulletEnv-v0']),
    ('walker_walk', ['dmc_walker_walk']),
    ('HoperBulletEnv-v0', ['HopperBulletEnv-v0']),
])
def test_near_names(task, first):
  names = [
      'AntBulletEnv-v0', 'HopperBulletEnv-v0', 'HalfCheetahBulletEnv-v0',
      'Hopper-v4', 'Hopper-v5', 'Pendulum-v1', 'dmc_hopper_stand',
      'dmc_hopper_hop', 'dmc_cheetah_run', 'dmc_walker_walk', 'atari_pong',
      'atari_ms_pacman', 'atari_pacman', 'atari_chopper_command']
  assert wrappers._near_names(task, names)[:len(first)] == first


# Environments that reach for the whole process.

class Exits(Good):
  def step(self, action):
    sys.exit()


class TakesSignals(Good):
  def __init__(self):
    super().__init__()
    if os.environ.get('TAKES_SIGNALS'):
      for name in signals.Signals.statuses:
        signal.signal(name, lambda *_: None)

  def step(self, action):
    if os.environ.get('TAKES_SIGNALS'):
      signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
    return super().step(action)


class Moves(Good):
  def reset(self, **kwargs):
    os.chdir('/')
    return super().reset()


@pytest.mark.parametrize('kind', ['none', 'thread', 'process'])
def test_exit_of_an_environment_is_a_failure_of_it(kind):
  env = workers.make(kind, 'test_registered:Exits', max_failures=2)
  env.reset(0)()
  with pytest.raises(workers.EnvFailure, match='SystemExit'):
    env.step(np.zeros(1))()
  env.reset(0)()
  with pytest.raises(terminal.UserError, match='SystemExit'):
    env.step(np.zeros(1))()
  env.close()


def test_run_whose_environment_exits_fails(tmp_path, capsys):
  assert running.run(tmp_path, task='test_registered:Exits') == 2
  assert 'error: test_registered:Exits: SystemExit' in capsys.readouterr().err


def test_signals_stay_those_of_the_program(monkeypatch):
  monkeypatch.setenv('TAKES_SIGNALS', '1')
  before = [signal.getsignal(name) for name in signals.Signals.statuses]
  env = workers.make('none', 'test_registered:TakesSignals')
  env.reset(0)()
  env.step(np.zeros(1))()
  env.close()
  assert before == [
      signal.getsignal(name) for name in signals.Signals.statuses]


@pytest.mark.parametrize('kind', ['none', 'thread'])
def test_working_directory_stays_that_of_the_program(kind):
  before = os.getcwd()
  env = workers.make(kind, 'test_registered:Moves')
  env.reset(0)()
  assert os.getcwd() == before
  env.step(np.zeros(1))()
  env.close()
  assert os.getcwd() == before
