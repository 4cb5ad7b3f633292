"""A run that is killed at random moments and started again loses little.

The short test kills a run twice while it collects, `make chaos` twenty times.
"""

import random
import signal
import time

import pytest

from data import checkpoints, episodes
import running


@pytest.mark.parametrize('moments, parallel, prefill', [
    (['save', 'episode'], 'none', 1000),
    pytest.param(
        ['save', 'training', 'episode', 'any'] * 5, 'process', 200,
        marks=pytest.mark.slow)])
def test_killed_run_goes_on(moments, parallel, prefill, tmp_path):
  rng = random.Random(0)
  flags = dict(
      save_every=0.1, parallel=parallel, prefill=prefill, eval_every=300)
  known, workers, reached = [], [], {'step': 0, 'updates': 0}
  for kill, moment in enumerate(moments):
    run = running.Process(tmp_path, steps=10 ** 6, **flags)
    wait_for(moment, run, rng)
    workers += run.workers()
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    now = state(tmp_path)
    print(
        f'kill {kill + 1} ({moment}): continued at {continued(run.output)}, '
        f'saved {now}, left {leftovers(tmp_path)}')
    # Nothing of what earlier lives had is gone.
    found = running.episodes(tmp_path)
    assert found[:len(known)] == known
    known = found
    for name in known:
      episodes.load(tmp_path / 'episodes' / name)
    assert continued(run.output) in (None, *range(reached['step'], 10 ** 6))
    assert now['updates'] >= reached['updates']
    # What is on disk of finished episodes counts, saved or not.
    reached = dict(now, step=max(now['step'], 100 * len(known)))

  # Episodes all have 100 steps; a few more bring the run to its end.
  steps = max(prefill, 100 * len(known)) + 300
  run = running.Process(tmp_path, steps=steps, **flags)
  assert run.end() == 0, run.output
  assert running.episodes(tmp_path)[:len(known)] == known
  assert state(tmp_path) == {
      'step': steps, 'updates': 2 * (steps - prefill) // 100}
  lines = running.lines(tmp_path)
  assert [x['step'] for x in lines] == sorted(x['step'] for x in lines)
  assert lines[-1]['step'] == steps and 'test/return' in lines[-1]
  for key in ('train/return', 'test/return', 'model_loss'):
    known = [x['step'] for x in lines if key in x]
    assert len(known) == len(set(known))
  assert not leftovers(tmp_path)
  time.sleep(6)  # Workers notice within 5 seconds that they are alone.
  assert not set(workers) & set(running.processes())


def wait_for(moment, run, rng):
  """Waits until a run is at a moment to be killed at."""
  directory = run.logdir
  before = len(running.episodes(directory))
  if moment == 'any':
    time.sleep(rng.uniform(0, 20))
    return
  run.wait_for(lambda: len(running.episodes(directory)) > before + 1)
  if moment == 'save':
    time.sleep(rng.uniform(0, 1))
    run.wait_for((directory / 'variables.pkl.tmp').exists, pause=0)
  elif moment == 'episode':
    run.wait_for(
        lambda: list((directory / 'episodes').glob('*.tmp')), pause=0)
  else:
    metrics = directory / 'metrics.jsonl'
    size = metrics.stat().st_size
    run.wait_for(lambda: b'model_loss' in metrics.read_bytes()[size:])
    time.sleep(rng.uniform(0, 4))


def state(directory):
  """How far the checkpoint on disk is; it must be whole."""
  file = directory / 'variables.pkl'
  if not file.exists():  # Killed before it began.
    return {'step': 0, 'updates': 0}
  saved = checkpoints.load(file)
  progress = saved['progress']
  pending = sum(
      len(x['action']) - 1 for x in progress['driver']['open'] if x)
  return {
      'step': 100 * progress['episodes'] + 2 * pending,
      'updates': saved['updates']}


def continued(output):
  """The step at which a run says that it continues, or None."""
  words = output.partition('continues at step ')[2].split()
  return int(words[0].replace(',', '')) if words else None


def leftovers(directory):
  """Files that a kill left unfinished."""
  return [path.name for path in directory.rglob('*.tmp')]
