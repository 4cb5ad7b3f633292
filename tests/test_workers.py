"""Environments in threads and processes: equal, concurrent, and replaceable."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

import running
from common import terminal
from runs import signals, workers

ROOT = pathlib.Path(__file__).parent.parent
KINDS = ['none', 'thread', 'process']
REMOTE = ['thread', 'process']
ORDERS = ['nothing', 'hang', 'crash', 'raise', 'nan', 'print', 'end', 'sleep']


class Obeys(gym.Env):
  """Does what the discrete action says; the reward tells on its process."""

  observation_space = gym.spaces.Box(-1, 1, (1,))
  action_space = gym.spaces.Discrete(len(ORDERS))

  def reset(self, *, seed=None, options=None):
    return np.zeros(1), {}

  def step(self, action):
    reward = getattr(self, ORDERS[action])()
    return np.zeros(1), reward, ORDERS[action] == 'end', False, {}

  def render(self):
    return np.full((64, 64, 3), 7, np.uint8)

  def nothing(self):
    return 0.0

  end = nothing

  def hang(self):
    time.sleep(60)

  def crash(self):
    os.abort()

  def nan(self):
    return float('nan')

  def print(self):
    os.write(1, b'noise')
    os.write(2, b'noise')
    return 1.0

  def sleep(self):
    time.sleep(0.5)
    return 0.0

  def close(self):
    raise OSError('too broken to close')


setattr(Obeys, 'raise', lambda self: [].disobey())


class Slow(Obeys):
  def __init__(self):
    time.sleep(1)


class Broken(Obeys):
  def __init__(self):
    [].does_not_start()


class BreaksLater(Obeys):
  """Cannot be made a second time in one process."""

  made = False

  def __init__(self):
    assert not BreaksLater.made, 'no second one'
    BreaksLater.made = True


class Spy(Obeys):
  """Rewards TensorFlow in its process."""

  def step(self, action):
    return np.zeros(1), 'tensorflow' in sys.modules, False, False, {}


def obey(order):
  return np.eye(len(ORDERS), dtype=np.float32)[ORDERS.index(order)]


@pytest.fixture
def make():
  made = []

  def function(parallel, task='test_workers:Obeys', **kwargs):
    made.append(workers.make(parallel, task, action_repeat=1, **kwargs))
    return made[-1]

  yield function
  for env in made:
    env.close()


def children():
  return sorted(
      pid for pid, (parent, _) in running.processes().items()
      if parent == os.getpid())


def gone(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return True
  return stat.rsplit(')', 1)[1].split()[0] == 'Z'


def wait_until(condition, seconds=15):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


@pytest.mark.parametrize('task', ['HopperBulletEnv-v0', 'atari_pong'])
def test_all_kinds_give_the_same(task):
  episodes = []
  for kind in KINDS:
    env = workers.make(kind, task, action_dim=8, time_limit=60)
    assert env.action_space.shape == (8,)
    rng = np.random.default_rng(0)
    episode = [env.reset(11)()]
    for _ in range(30):
      episode.append(env.step(rng.uniform(-1, 1, 8).astype(np.float32))())
    episode.append(env.render(40, 30)())
    env.close()
    assert episode[-2][3]
    assert episode[-1].shape == (40, 30, 3)
    episodes.append(repr([
        part.tobytes() if isinstance(part, np.ndarray) else
        (part[0]['image'].tobytes(), part[0]['reward'], part[1:])
        for part in episode]))
  assert episodes[0] == episodes[1] == episodes[2]


@pytest.mark.parametrize('kind', REMOTE)
def test_environments_start_and_step_side_by_side(make, kind):
  """Four take less than four times as long as one, however busy the machine."""
  def seconds(calls):
    start = time.monotonic()
    for promise in [call() for call in calls]:
      promise()
    return time.monotonic() - start

  def begin():
    envs.append(make(kind, 'test_workers:Slow'))
    return envs[-1].reset(0)

  envs = []
  alone, together = seconds([begin]), seconds([begin] * 4)
  assert 1 <= alone and 1 <= together < 0.8 * 4 * alone
  steps = [functools.partial(env.step, obey('sleep')) for env in envs]
  alone, together = seconds(steps[:1]), seconds(steps[1:])
  assert 0.5 <= alone and 0.5 <= together < 0.8 * 4 * alone


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('order,line,where', [
    ('raise', 'AttributeError', '[].disobey()'),
    ('nan', 'NaN or infinite reward', 'wrappers.py'),
])
def test_errors_are_told_and_mended(make, kind, order, line, where):
  env = make(kind)
  env.reset(0)()
  promise = env.step(obey(order))
  with pytest.raises(workers.EnvFailure, match=line) as caught:
    promise()
  assert '\n' not in str(caught.value)
  assert where in caught.value.details
  assert 'Traceback' in caught.value.details
  with pytest.raises(RuntimeError, match='reset'):
    env.step(obey('nothing'))
  env.reset(0)()
  assert env.step(obey('nothing'))()[1] == 0.0


@pytest.mark.parametrize('kind', REMOTE)
def test_hanging_is_told_and_mended(make, kind):
  env = make(kind, timeout=4)
  env.reset(0)()
  with pytest.raises(workers.EnvFailure, match='within 4 seconds') as caught:
    env.step(obey('hang'))()
  assert 'in hang' in caught.value.details
  env.reset(0)()
  assert env.step(obey('nothing'))()[1] == 0.0


def test_crash_is_told_and_mended(make):
  env = make('process')
  env.reset(0)()
  with pytest.raises(workers.EnvFailure, match='SIGABRT') as caught:
    env.step(obey('crash'))()
  assert 'in crash' in caught.value.details
  env.reset(0)()
  assert env.step(obey('nothing'))()[1] == 0.0


@pytest.mark.parametrize('busy', [True, False])
def test_killed_worker_is_replaced(make, busy):
  env = make('process', 'HopperBulletEnv-v0')
  first = env.reset(3)()[0]['image']
  pid = env._worker._process.pid
  promise = env.step(np.zeros(3)) if busy else None
  os.kill(pid, signal.SIGKILL)
  if not busy:
    wait_until(lambda: gone(pid))
    promise = env.step(np.zeros(3))
  with pytest.raises(workers.EnvFailure, match='SIGKILL'):
    promise()
    env.step(np.zeros(3))()  # The answer may have left before the signal.
  assert np.array_equal(env.reset(3)()[0]['image'], first)
  assert env._worker._process.pid != pid
  env.step(np.zeros(3))()


@pytest.mark.parametrize('kind', KINDS)
def test_failures_in_a_row_are_the_users(make, kind):
  env = make(kind, max_failures=3)
  for _ in range(2):  # A finished episode makes good what came before.
    for _ in range(2):
      env.reset(0)()
      env.step(obey('nothing'))()
      with pytest.raises(workers.EnvFailure):
        env.step(obey('raise'))()
    env.reset(0)()
    assert env.step(obey('end'))()[2]
  for attempt in range(3):
    env.reset(0)()
    kind = terminal.UserError if attempt == 2 else workers.EnvFailure
    with pytest.raises(kind) as caught:
      env.step(obey('raise'))()
  assert '3 in a row' in str(caught.value)
  assert '[].disobey()' in str(caught.value)


def test_failures_of_episodes_that_the_driver_truncates(make):
  env = make('none', max_failures=2)
  for _ in range(4):  # A truncated episode makes good what came before.
    env.reset(0)()
    env.step(obey('nothing'))()
    env.reset(0)()
    with pytest.raises(workers.EnvFailure):
      env.step(obey('raise'))()
  env.reset(0)()
  env.reset(0)()  # Nothing was done in between.
  with pytest.raises(terminal.UserError, match='2 in a row'):
    env.step(obey('raise'))()


@pytest.mark.parametrize('kind', KINDS)
def test_what_never_started_is_the_users_at_once(make, kind):
  env = make(kind, 'test_workers:Broken')
  with pytest.raises(terminal.UserError, match=r'does_not_start') as caught:
    env.reset(0)()
  assert 'Traceback' in str(caught.value)
  env = make(kind, 'test_workers:Brokn')
  with pytest.raises(terminal.UserError, match='near matches: Broken'):
    env.action_space


def test_failure_to_start_again_counts(make):
  BreaksLater.made = False
  env = make('none', 'test_workers:BreaksLater', max_failures=3)
  env.reset(0)()
  with pytest.raises(workers.EnvFailure):
    env.step(obey('raise'))()
  with pytest.raises(workers.EnvFailure, match='no second one'):
    env.reset(0)()
  with pytest.raises(terminal.UserError, match='no second one'):
    env.reset(0)()


def test_unknown_kind():
  with pytest.raises(terminal.UserError, match='none, thread or process'):
    workers.make('fibre', 'HopperBulletEnv-v0')


@pytest.mark.parametrize('kind', KINDS)
def test_close_twice_and_leave_nothing(kind):
  files, processes = os.listdir('/proc/self/fd'), children()
  env = workers.make(kind, 'HopperBulletEnv-v0')
  env.reset(0)()
  env.step(np.zeros(3))  # Never asked for.
  env.close()
  env.close()
  assert children() == processes
  unborn = workers.make(kind, 'HopperBulletEnv-v0')
  unborn.close()
  assert children() == processes
  assert len(os.listdir('/proc/self/fd')) == len(files)


def test_worker_leaves_signals_to_the_main_process(make, hangups):
  env = make('process')
  env.reset(0)()
  for name in signals.Signals.statuses:
    os.kill(env._worker._process.pid, name)
  assert env.step(obey('nothing'))()[1] == 0.0


def test_worker_is_quiet(make, capfd):
  env = make('process')
  for episode in range(3):
    env.reset(0)()
    assert env.step(obey('print'))()[1] == 1.0
    # The output kept for a crash does not grow with the run.
    assert env._worker._last_words() == 'noisenoise'
  assert capfd.readouterr() == ('', '')


def run_main(tmp_path, body):
  """Starts a script that imports TensorFlow as the entry scripts do."""
  script = tmp_path / 'main.py'
  script.write_text(
      f'import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]\n'
      f'import numpy as np\nfrom runs import workers\n{body}')
  return subprocess.Popen(
      [sys.executable, str(script)], stdout=subprocess.PIPE, text=True)


def test_worker_never_imports_tensorflow(tmp_path):
  main = run_main(tmp_path, (
      'from common import backend\n'
      'for task in ("test_workers:Spy", "HopperBulletEnv-v0"):\n'
      '  env = workers.make("process", task)\n'
      '  env.reset(0)()\n'
      '  _, reward, *_ = env.step(np.zeros(env.action_space.shape))()\n'
      '  pid = env._worker._process.pid\n'
      '  pages = int(open(f"/proc/{pid}/statm").read().split()[1])\n'
      '  print(reward, pages * 4096 / 2 ** 20)\n'
      '  env.close()\n'))
  spy, hopper = main.communicate(timeout=120)[0].splitlines()
  assert float(spy.split()[0]) == 0.0
  assert 10 < float(hopper.split()[1]) < 200


@pytest.mark.parametrize('order', ['nothing', 'hang'])
def test_orphans_end(tmp_path, order):
  main = run_main(tmp_path, (
      'import test_workers, time\n'
      'envs = [workers.make("process", "test_workers:Obeys")'
      ' for _ in range(2)]\n'
      'for env in envs:\n'
      '  env.reset(0)()\n'
      f'  env.step(test_workers.obey({order!r}))\n'
      'print(*[env._worker._process.pid for env in envs], flush=True)\n'
      'time.sleep(60)\n'))
  pids = main.stdout.readline().split()
  assert len(pids) == 2 and not any(map(gone, pids))
  main.kill()
  main.communicate()
  wait_until(lambda: all(map(gone, pids)))
