"""A run that is stopped and continued is the run that was not."""

import signal

import numpy as np
import pytest

from data import checkpoints
import dreamer
import running
from runs import driver, loop, workers

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
  # In the middle of prefill.
  with running.signal_at(loop.Run, '_random_policy', 90):
    assert running.run(tmp_path, **FLAGS) == 143
  # In an evaluation: 10 decisions of prefill are left, it takes 70.
  with running.signal_at(driver.Driver, 'step', 50):
    assert running.run(tmp_path, **FLAGS) == 143
  assert len(running.lines(tmp_path)) == 1
  # When an evaluation is reported, but no checkpoint says so.
  with running.at_call(loop.Run, '_train', 1, kill):
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
