"""The README's chain of commands as users type them, at debug size.

Commands are stopped by a signal once they have trained, as `--steps 2e6` would
take long; what follows starts from what they saved.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data import checkpoints
import dreamer
import running

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOPPER, ANT, CHEETAH = (
    f'{name}BulletEnv-v0' for name in ('Hopper', 'Ant', 'HalfCheetah'))
MULTI = (
    f'dreamer-multi-task.py --task1 {HOPPER} --task2 {ANT} --task3 {CHEETAH} '
    '--batch_length 50 --envs 3 --steps 2e6 --transfer False '
    '--logdir ./logdir/ --preset debug')
FTL = (
    f'dreamer-FTL.py --task1 {CHEETAH} --batch_length 50 --envs 1 --steps 1e6 '
    '--transfer True --transfer_factor 0.2 --logdir ./logdir/frac-cheetah/ '
    '--preset debug')
MMTL = (
    f'dreamer-MMTL.py --task1 {HOPPER} --n_meta 2 --meta1 {CHEETAH} '
    f'--meta2 {ANT} --batch_length 50 --envs 1 --steps 1e6 '
    '--logdir ./logdir/mmtl-hopper/ --preset debug')
SINGLE = (
    'dreamer-MMTL.py --task1 {} --n_meta 0 --batch_length 50 --envs 1 '
    '--steps 400 --logdir {} --preset debug --log_images False')


class Command:
  """A command that runs in the current directory until it has trained."""

  def __init__(self, line):
    script, *flags = line.split()
    self._logdir = pathlib.Path(flags[flags.index('--logdir') + 1])
    self._seen = len(self.lines())
    self._process = subprocess.Popen(
        [sys.executable, ROOT / script, *flags], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'})

  def lines(self):
    """The metrics so far."""
    path = self._logdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]

  def finish(self, status=0):
    """Waits for its end and returns what it said."""
    out, err = self._process.communicate(timeout=500)
    assert (self._process.returncode, err) == (status, ''), out + err
    return out

  def stop(self, enough=lambda lines: any('model_loss' in x for x in lines)):
    """Stops it when its new metrics are enough, and returns what it said."""
    limit = time.monotonic() + 500
    while self._process.poll() is None:
      with_new = self.lines()[self._seen:]
      if enough(with_new) or time.monotonic() > limit:
        self._process.send_signal(signal.SIGTERM)
        break
      time.sleep(0.2)
    return self.finish(143)


def failing(line):
  """The one line on stderr of a command that fails."""
  script, *flags = line.split()
  done = subprocess.run(
      [sys.executable, ROOT / script, *flags], text=True, capture_output=True)
  assert done.returncode == 2, done
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  return done.stderr


def variables(path):
  return checkpoints.load(path)['variables']


def check_same(values, expected, prefixes=('',)):
  names = [name for name in expected if name.startswith(prefixes)]
  assert names
  for name in names:
    assert np.array_equal(values[name], expected[name]), name


def test_chain(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  multi_task()
  export_encoder()
  singles = [
      Command(SINGLE.format(task, f'./logdir/{name}'))
      for task, name in ((CHEETAH, 'cheetah'), (ANT, 'ant'))]
  fractional_transfer()
  source_reward_models(singles)
  meta_model_transfer()


def multi_task():
  command = Command(MULTI)
  command.stop(lambda lines: any('model_loss' in line for line in lines) and (
      len([line for line in lines if 'test/return' in line]) >= 3))
  keys = set().union(*command.lines())
  for task in (HOPPER, ANT, CHEETAH):
    for name in ('train/return', 'test/return', 'train/length', 'episodes'):
      assert f'{task}/{name}' in keys
  records = {0: 0, 1: 0, 2: 0}
  for path in pathlib.Path('logdir/episodes').glob('*.npz'):
    episode = np.load(path)
    records[int(episode['task'][0])] += len(episode['reward'])
    assert episode['action'].shape[1] == 8
  assert records[0] == records[1] == records[2] > 0


def export_encoder():
  agent = dreamer.load_agent('./logdir/')
  assert agent.script == 'dreamer-multi-task.py' and agent.updates
  agent.load('./logdir/variables.pkl')
  agent.save_single(agent._encode, './encoder.pkl')
  subprocess.run(
      [sys.executable, ROOT / 'export.py', '--from', './logdir', '--module',
       'encoder', '--to', './logdir/encoder.pkl'], check=True)
  first, second = (
      checkpoints.read(path) for path in ('encoder.pkl', 'logdir/encoder.pkl'))
  check_same(first.pop('variables'), second.pop('variables'))
  assert first == second and first['module'] == 'encoder'


def fractional_transfer():
  logdir = pathlib.Path('logdir/frac-cheetah')
  assert 'needs a source' in failing(FTL) and not logdir.exists()
  logdir.mkdir()
  source = pathlib.Path('logdir/variables.pkl')
  shutil.copy(source, logdir)
  out = Command(FTL).stop()
  table = (logdir / 'transfer.txt').read_text()
  assert table in out and 'scaled by 0.2' in table
  assert (logdir / 'source.pkl').read_bytes() == source.read_bytes()

  # Its last checkpoint but one is from before the first update.
  first = checkpoints.load(logdir / 'variables.prev.pkl')
  last = checkpoints.load(logdir / 'variables.pkl')
  assert (first['updates'], first['optimizers']) == (0, {})
  assert 0 < first['step'] <= last['step']
  given, got = variables(source), first['variables']
  config = running.script_module('dreamer-FTL.py').define_config()
  config.update(last['config'])
  fresh = {
      name: variable.numpy() for name, variable
      in dreamer.Dreamer(config, 6).variables.items()}
  check_same(got, fresh, ('actor/hout',))
  check_same(got, given, (
      'encoder', 'decoder', 'actor/h0', 'reward/h0', 'value/h2',
      'dynamics/gru'))
  name = 'dynamics/img1/kernel'
  assert np.array_equal(got[name][:4], given[name][:4])
  assert np.array_equal(got[name][4:], fresh[name][4:])
  for name in ('reward/hout/kernel', 'value/hout/bias'):
    assert np.array_equal(
        got[name], fresh[name] + np.float32(0.2) * given[name])
  assert not np.array_equal(
      last['variables']['encoder/h1/kernel'], given['encoder/h1/kernel'])

  # Restarted, it goes on from its own progress.
  out = Command(FTL + ' --log_images False').stop()
  assert 'continues at step' in out and 'Transfer' not in out
  again = checkpoints.load(logdir / 'variables.pkl')
  assert again['updates'] > last['updates'] > 0
  assert again['run'] == last['run'] == first['run']
  assert (logdir / 'source.pkl').read_bytes() == source.read_bytes()

  # The source put there again does not pass for progress.
  shutil.copy(source, logdir)
  assert 'variables.prev.pkl' in failing(FTL)
  assert (logdir / 'variables.pkl').read_bytes() == source.read_bytes()
  assert (logdir / 'variables.prev.pkl').exists()


def source_reward_models(singles):
  for command in singles:
    assert 'no decoder was found: it is trained' in command.finish()
  encoder = checkpoints.module('encoder.pkl', 'encoder')
  for name in ('cheetah', 'ant'):
    check_same(variables(f'logdir/{name}/variables.pkl'), encoder)
  agent = dreamer.load_agent('./logdir/cheetah')
  agent.save_single(agent._reward, './stored_meta/cheetah.pkl')
  subprocess.run(
      [sys.executable, ROOT / 'export.py', '--from',
       './logdir/ant/variables.pkl', '--module', 'reward', '--to',
       './stored_meta/ant.pkl'], check=True)


def meta_model_transfer():
  expected = checkpoints.module('encoder.pkl', 'encoder')
  for number, name in enumerate(('cheetah', 'ant'), 1):
    expected.update({
        key.replace('reward', f'reward/source{number}'): value
        for key, value in checkpoints.module(
            f'stored_meta/{name}.pkl', 'reward').items()})
  assert len(expected) == 8 + 2 * 6
  out = Command(MMTL).stop()
  assert 'stored_meta/cheetah.pkl' in out and 'stored_meta/ant.pkl' in out
  path = 'logdir/mmtl-hopper/variables.pkl'
  first = checkpoints.load(path)
  check_same(first['variables'], expected)

  # Everything needed to go on is in its own checkpoint.
  shutil.rmtree('stored_meta')
  os.remove('logdir/encoder.pkl')
  assert 'continues at step' in Command(MMTL + ' --log_images False').stop()
  second = checkpoints.load(path)
  assert second['updates'] > first['updates'] > 0
  check_same(second['variables'], expected)
  changed = [
      name for name, value in second['variables'].items()
      if not np.array_equal(value, first['variables'][name])]
  assert {name.split('/')[0] for name in changed} == {
      'actor', 'decoder', 'dynamics', 'reward', 'value'}
  # So does an agent without environments.
  agent = dreamer.load_agent('./logdir/mmtl-hopper')
  check_same(
      {k: v.numpy() for k, v in agent.variables.items()}, second['variables'])


def test_both_simulators_in_one_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  command = Command(
      f'dreamer-multi-task.py --task1 dmc_cartpole_swingup --task2 {HOPPER} '
      '--logdir ./mixed --preset debug --log_images False')
  command.stop()
  keys = set().union(*command.lines())
  assert {'dmc_cartpole_swingup/train/return', f'{HOPPER}/train/return'} <= keys
  widths = {
      np.load(path)['action'].shape[1]
      for path in pathlib.Path('mixed/episodes').glob('*.npz')}
  assert widths == {3}


@pytest.mark.parametrize('flags, words', [
    ('--help', 'Writes one module'),
    ('--to x', '--from is missing'),
    ('--from logdir --to x', 'logdir'),
    ('--from x --to x --module rewards', 'Did you mean reward')])
def test_export_says_what_is_wrong(tmp_path, monkeypatch, flags, words):
  monkeypatch.chdir(tmp_path)
  done = subprocess.run(
      [sys.executable, ROOT / 'export.py', *flags.split()], text=True,
      capture_output=True)
  assert words in done.stdout + done.stderr
  assert done.returncode == (0 if flags == '--help' else 2)
