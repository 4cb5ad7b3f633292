"""A run that is stopped and continued is the run that was not."""

import contextlib
import signal
import zlib

import numpy as np
import pytest

from common import options, terminal
from data import checkpoints, episodes, replay
import dreamer
import running
from runs import collector, driver, loop, resume, workers
import tools

# Updates fall in the middle of episodes.
FLAGS = dict(threads=1, time_limit=140)


class Killed(BaseException):
  """Ends a run at once, like kill -9: nothing is saved any more."""


def kill():
  raise Killed


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Log directory of a run that nothing stopped."""
  logdir = tmp_path_factory.mktemp('whole')
  assert running.run(logdir, **FLAGS) == 0
  return logdir


def test_stopped_run_equals_whole_run(whole, tmp_path):
  # In the middle of prefill, then when an episode was finished, of which the
  # checkpoint has the beginning, then again.
  with running.signal_at(loop.Run, '_random_policy', 30):
    assert running.run(tmp_path, **FLAGS) == 143
  with running.at_call(loop.Run, '_random_policy', 42, kill):
    with pytest.raises(Killed):
      running.run(tmp_path, **FLAGS)
  assert len(running.episodes(tmp_path)) == 1
  with running.signal_at(loop.Run, '_random_policy', 20):
    assert running.run(tmp_path, **FLAGS) == 143
  # In an evaluation: 10 decisions of prefill are left, it takes 70.
  with running.signal_at(driver.Driver, 'step', 50):
    assert running.run(tmp_path, **FLAGS) == 143
  assert len(running.lines(tmp_path)) == 1
  # When an evaluation is reported, but no checkpoint says so.
  with running.at_call(loop.Run, '_train_when_due', 1, kill):
    with pytest.raises(Killed):
      running.run(tmp_path, **FLAGS)
  assert len(running.lines(tmp_path)) == 2
  # After one of two updates.
  with running.signal_at(dreamer.Dreamer, 'train', 3):
    assert running.run(tmp_path, **FLAGS) == 143
  assert running.run(tmp_path, **FLAGS) == 0

  lines = running.lines(whole)
  assert sum('model_loss' in line for line in lines) >= 4
  assert sum('test/return' in line for line in lines) >= 3
  assert lines == running.lines(tmp_path)
  one, two = (
      checkpoints.load(logdir / 'variables.pkl')
      for logdir in (whole, tmp_path))
  for part in ('variables', 'optimizers', 'step', 'updates', 'calls'):
    assert_equal(one[part], two[part])


def test_updates_that_a_kill_after_the_first_ones_missed_are_made_up(
    whole, tmp_path):
  """No checkpoint has been written since the run began to learn."""
  updates = checkpoints.load(whole / 'variables.pkl')['updates']
  with running.at_call(dreamer.Dreamer, 'train', updates, kill):
    with pytest.raises(Killed):
      running.run(tmp_path, **FLAGS)
  assert checkpoints.load(tmp_path / 'variables.pkl')['updates'] == 0
  assert running.run(tmp_path, **FLAGS) == 0
  assert checkpoints.load(tmp_path / 'variables.pkl')['updates'] == updates


def test_seeds_differ(whole, tmp_path):
  assert running.run(tmp_path, seed=1, steps=300, **FLAGS) == 0
  for key in ('train/return', 'test/return', 'model_loss'):
    one, two = (
        next(line[key] for line in running.lines(logdir) if key in line)
        for logdir in (whole, tmp_path))
    assert one != two


def test_signals_end_processes_with_everything_saved(whole, tmp_path):
  flags = dict(FLAGS, parallel='process')
  run = running.Process(tmp_path, **flags)
  run.wait_for(lambda: any('model_loss' in x for x in running.lines(tmp_path)))
  workers = run.workers()
  assert len(workers) == 2
  assert run.end(signal.SIGTERM) == 143
  assert 'the same command continues' in run.output
  assert not set(workers) & set(running.processes())
  # Another process and other kinds of environment, but the same numbers.
  lines = running.lines(tmp_path)
  assert lines == running.lines(whole)[:len(lines)]

  for number, status in ((signal.SIGINT, 130), (signal.SIGUSR1, 0)):
    run = running.Process(tmp_path, **flags)
    run.wait_for(lambda: len(run.workers()) == 2)
    assert run.end(number) == status


def collect(seed=0, count=2):
  """A driver of uneven environments, and the list of what it finishes."""
  envs = [
      workers.make('none', 'hooks:uneven', action_repeat=1)
      for _ in range(count)]
  finished = []
  return driver.Driver(
      envs, [seed], lambda *episode: finished.append(episode)), finished


def random_policy(obs, reset, state):
  """Actions from a state that counts the calls."""
  count = 0 if state is None else state[0] + 1
  rng = np.random.default_rng(count)
  return rng.uniform(-1, 1, (len(reset), 1)), (count,)


def test_driver_goes_on_where_it_was():
  whole, expected = collect()
  half, before = collect()
  for _ in range(33):
    whole.step(random_policy)
    half.step(random_policy)
  again, after = collect()
  again.restore(half.state())
  assert again.pending == half.pending > 0
  for _ in range(60):
    whole.step(random_policy)
    again.step(random_policy)
  assert len(after) > 2
  for (one, first), (two, second) in zip(expected, before + after):
    assert one == two
    assert_equal(first, second)
  assert len(expected) == len(before + after)


def test_driver_does_not_repeat_what_was_finished_since():
  first, finished = collect()
  first.step(random_policy)
  state = first.state()
  while not finished:
    first.step(random_policy)
  (index, episode), = finished
  again, after = collect()
  again.restore(state, [episode['action']])
  restored = again.state()
  assert restored['open'][index] is None
  assert_equal(restored['open'][1 - index], state['open'][1 - index])
  while not any(i == index for i, _ in after):
    again.step(random_policy)
  following = next(e for i, e in after if i == index)
  assert not np.array_equal(following['reward'], episode['reward'])


def test_driver_with_another_number_of_environments():
  first, _ = collect()
  first.step(random_policy)
  more, after = collect(count=3)
  more.restore(first.state())
  assert more.pending == 0
  while not after:
    more.step(random_policy)


class Noise:
  """A collector in a directory, and the random numbers that it acts on."""

  def __init__(self, directory, count=1, task='hooks:good'):
    config = options.dreamer().parse(
        ['--logdir', str(directory), '--action_repeat', '1'])
    self.random = tools.Generators()
    self.directory = directory / 'episodes'
    self.collector = collector.Collector(
        [workers.make('none', task, action_repeat=1, time_limit=10)
         for _ in range(count)],
        replay.Replay(self.directory, batch_size=2, batch_length=5), config,
        None, 0, lambda *episode: None, None)

  def act(self, decisions):
    for _ in range(decisions):
      self.collector.decide(lambda obs, reset, state: (
          self.random.next(0, True).uniform(-1, 1, [len(reset), 1]), None))
    return self

  def state(self):
    return dict(calls=self.random.state(), **self.collector.state())

  def goes_on(self, state):
    self.random.restore(state['calls'])
    self.random.calls[True] += self.collector.restore(state)
    return self

  def episodes(self):
    return [episodes.load(x) for x in episodes.paths(self.directory)]


@pytest.mark.parametrize('saved', [0, 3, 10, 13])
def test_kill_between_two_episodes_changes_nothing(tmp_path, saved):
  whole = Noise(tmp_path / 'whole').act(70)
  first = Noise(tmp_path / 'killed').act(saved)
  state = first.state()
  first.act(30 - saved)
  again = Noise(tmp_path / 'killed').goes_on(state).act(40)
  assert len(again.episodes()) == 7
  for one, two in zip(whole.episodes(), again.episodes()):
    assert_equal(one, two)
  assert whole.random.state() == again.random.state()


@pytest.mark.parametrize('count, task', [
    (1, 'hooks:good'), (1, 'hooks:uneven'), (3, 'hooks:uneven')])
@pytest.mark.parametrize('saved, damaged', [(0, False), (7, False), (7, True)])
def test_no_noise_comes_again_after_a_kill(
    tmp_path, count, task, saved, damaged):
  first = Noise(tmp_path, count, task).act(saved)
  state = first.state()
  first.act(35)
  if damaged:
    episodes.paths(first.directory)[-1].write_bytes(b'damaged')
  known = len(episodes.paths(first.directory))
  again = Noise(tmp_path, count, task).goes_on(state).act(100)
  paths = episodes.paths(again.directory)
  assert len(paths) > known
  drawn = [
      episodes.load(path)['action'][1:].ravel()
      for index, path in enumerate(paths) if not damaged or index != known - 1]
  drawn = np.concatenate(drawn)
  assert len(np.unique(drawn)) == len(drawn)


def test_noise_of_a_worker_whose_state_is_lost(tmp_path):
  first = Noise(tmp_path, 2).act(35)
  again = Noise(tmp_path, 2)
  again.random.calls[True] += again.collector.skip(2)
  again.act(35)
  drawn = np.concatenate([x['action'][1:].ravel() for x in again.episodes()])
  assert len(np.unique(drawn)) == len(drawn)


def test_second_signal_ends_at_once(tmp_path):
  run = running.Process(tmp_path, prefill=int(1e6))
  run.wait_for(lambda: len(running.episodes(tmp_path)) > 1)
  before = (tmp_path / 'variables.pkl').read_bytes()
  assert run.end(signal.SIGTERM, signal.SIGINT) in (130, 143)
  assert 'the same command continues' not in run.output
  assert (tmp_path / 'variables.pkl').read_bytes() == before


def assert_equal(one, two):
  if isinstance(one, dict):
    assert one.keys() == two.keys()
    for key in one:
      assert_equal(one[key], two[key])
  else:
    np.testing.assert_array_equal(one, two)


class Second:
  """The second of two workers, whose chief computes in `precision`."""

  size, index, chief = 2, 1, False

  def __init__(self, precision):
    self._chiefs = zlib.crc32(precision.encode())

  def chief_says(self, answer):
    return True

  def sum(self, value):
    return (value if isinstance(value, bool) else value + self._chiefs,)


def test_workers_of_a_team_have_one_precision(tmp_path):
  """Else scaled gradients would be averaged with others."""
  config = dreamer.define_config().parse(running.flags(tmp_path / 'run'))
  agent = dreamer.Dreamer(config, 2)
  with contextlib.ExitStack() as stack:
    same, other = (
        resume.History(config, dreamer.Dreamer, Second(precision), stack)
        for precision in (agent.precision, '16'))
    same.check_precision(agent)
    with pytest.raises(
        terminal.UserError, match='1 of 2 machines .* --precision 32'):
      other.check_precision(agent)
