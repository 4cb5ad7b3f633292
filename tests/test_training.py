"""Whole runs: what they write, what they refuse, what they survive."""

import ctypes.util
import functools
import os
import pickle
import shutil

import numpy as np
import pytest

from common import terminal
from common.backend import tf
from data import checkpoints, episodes, logdir
import dreamer
import running
from runs import diagnosis, loop, workers
import tools

try:
  import wrappers
  wrappers.make_env('dmc_cartpole_balance').close()
  NO_OPENGL = ''
except terminal.UserError as error:
  NO_OPENGL = str(error)


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """Log directory of a run that was stopped in prefill; not to be changed."""
  logdir = tmp_path_factory.mktemp('stopped')
  stop_in_prefill(logdir, 60)
  return logdir


@pytest.fixture
def copy(stopped, tmp_path):
  """A copy of it."""
  return shutil.copytree(stopped, tmp_path / 'copy')


def stop_in_prefill(logdir, decisions=10, **flags):
  """Runs for some decisions more; prefill has 100."""
  with running.signal_at(loop.Run, '_random_policy', decisions):
    assert running.run(logdir, **flags) == 143


def error_line(capfd):
  """The only line on the terminal, an error."""
  captured = capfd.readouterr()
  assert captured.out == ''
  lines = captured.err.splitlines()
  assert len(lines) == 1, captured.err
  assert lines[0].startswith('error: ')
  return lines[0]


# Training.


def test_short_episodes_train(tmp_path):
  status = running.run(
      tmp_path, task='HopperBulletEnv-v0', termination=True, batch_length=50,
      steps=400)
  assert status == 0
  lengths = [
      len(episodes.load(tmp_path / 'episodes' / name)['reward'])
      for name in running.episodes(tmp_path)]
  assert len(lengths) > 5 and max(lengths) < 50
  lines = running.lines(tmp_path)
  losses = [line for line in lines if 'model_loss' in line]
  assert len(losses) == 2
  for line in losses:
    assert np.isfinite(list(line.values())).all()
    assert 'pcont_loss' in line
  assert lines[-1]['step'] >= 400 and 'test/return' in lines[-1]


@pytest.mark.skipif(bool(NO_OPENGL), reason=NO_OPENGL)
def test_deepmind_control_trains_and_continues(tmp_path):
  flags = dict(task='dmc_walker_walk', prefill=100, log_images=True)
  first = running.Process(tmp_path, steps=100, **flags)
  assert first.end() == 0, first.output
  before = running.episodes(tmp_path)
  second = running.Process(tmp_path, steps=200, **flags)
  assert second.end() == 0, second.output
  assert 'continues at step 100' in second.output
  assert 'error' not in first.output + second.output
  assert running.episodes(tmp_path)[:1] == before
  lines = running.lines(tmp_path)
  assert [x['step'] for x in lines if 'test/return' in x] == [100, 200]
  assert [x['step'] for x in lines if 'model_loss' in x] == [100]


def test_run_with_more_steps_goes_on_from_its_end(stopped, copy):
  """Without training: prefill is longer than the run."""
  assert running.run(copy, steps=120) == 0
  lines = running.lines(copy)
  assert lines[:1] == running.lines(stopped)
  assert 'test/return' in lines[-1]


# Bad input.


@pytest.mark.parametrize('flags, words', [
    (dict(batch_sise=3), ['--batch_sise', '--batch_size']),
    (dict(task='HoperBulletEnv-v0'), ['HopperBulletEnv-v0']),
    (dict(task='dmc_walker_wolk'), ['dmc_walker_walk']),
    (dict(task='nowhere:env'), ['nowhere']),
    (dict(task='hooks:bad'), ['hooks', 'bad']),
    (dict(batch_length=0), ['--batch_length', 'at least 2', '0']),
    (dict(steps=-1), ['--steps', 'at least 0', '-1']),
    (dict(precision=8), ['--precision', '16', '32', '8']),
    (dict(model_lr='nan'), ['--model_lr', 'nan']),
    (dict(log_scalars='maybe'), ['--log_scalars', 'maybe']),
    (dict(steps='many'), ['--steps', 'many']),
    (dict(freeze='('), ['--freeze', '(']),
    (dict(time_limit=1), ['time_limit']),
    (dict(action_dist='onehot'), ['onehot', running.SWINGUP]),
])
def test_bad_flag_is_one_line_and_nothing_is_written(
    flags, words, tmp_path, capfd):
  assert running.run(tmp_path / 'new', **flags) == 2
  line = error_line(capfd)
  for word in words:
    assert word in line
  assert not (tmp_path / 'new').exists()


def test_log_directory_that_cannot_be_made(tmp_path, capfd):
  (tmp_path / 'file').write_text('')
  assert running.run(tmp_path / 'file' / 'new') == 2
  assert str(tmp_path / 'file') in error_line(capfd)


@pytest.mark.skipif(
    bool(ctypes.util.find_library('OSMesa')), reason='OSMesa is installed.')
def test_missing_opengl_names_the_package(tmp_path):
  run = running.Process(
      tmp_path / 'new', task='dmc_walker_walk',
      env={'MUJOCO_GL': 'osmesa', 'PYOPENGL_PLATFORM': 'osmesa'})
  assert run.end() == 2
  assert len(run.output.splitlines()) == 1
  assert run.output.startswith('error: ') and 'apt-get install' in run.output
  assert not (tmp_path / 'new').exists()


# Log directories of other runs.


def test_other_flags_are_refused(copy, stopped, capfd):
  assert running.run(copy, batch_size=5, pcont=True) == 2
  line = error_line(capfd)
  for word in (
      'batch_size was 4, now 5', 'pcont was False, now True',
      '--allow_changes True', '--logdir'):
    assert word in line
  assert running.content(copy) == running.content(stopped)


def test_other_flags_are_allowed_on_request(copy, capfd):
  stop_in_prefill(copy, batch_size=5, allow_changes=True)
  capfd.readouterr()
  assert running.run(copy) == 2
  assert 'batch_size was 5, now 4' in error_line(capfd)


def test_other_networks_are_refused_even_so(copy, stopped, capfd):
  assert running.run(copy, deter_size=13, allow_changes=True) == 2
  line = error_line(capfd)
  assert 'dynamics/gru/kernel' in line and '[12, 36]' in line
  assert running.content(copy) == running.content(stopped)


def test_free_flags_may_change(copy):
  stop_in_prefill(copy, steps=1000, log_every=50, parallel='thread')


def test_log_directory_in_use(copy, stopped, capfd):
  with logdir.Logdir(copy).lock():
    assert running.run(copy) == 2
  assert f'process {os.getpid()}' in error_line(capfd)
  assert running.content(copy) == running.content(stopped)


def test_checkpoint_of_another_run(stopped, tmp_path, capfd):
  shutil.copy(stopped / 'variables.pkl', tmp_path)
  before = running.content(tmp_path)
  assert running.run(tmp_path) == 2
  assert 'variables.pkl was not written by this run' in error_line(capfd)
  assert running.content(tmp_path) == before


class Malicious:

  def __reduce__(self):
    return os.mkdir, ('executed',)


@pytest.mark.parametrize('damage, words', [
    (lambda data: data[:len(data) // 2], 'truncated'),
    (lambda data: b'', 'no pickle'),
    (lambda data: b'not a checkpoint at all', 'no pickle'),
    (lambda data: pickle.dumps({'weights': [1, 2]}), 'not a checkpoint'),
    (lambda data: pickle.dumps(Malicious()), 'refused'),
])
def test_bad_checkpoint_is_one_line(damage, words, copy, capfd, monkeypatch):
  monkeypatch.chdir(copy)
  file = copy / 'variables.pkl'
  file.write_bytes(damage(file.read_bytes()))
  checkpoints.previous(file).unlink()
  before = running.content(copy)
  assert running.run(copy) == 2
  line = error_line(capfd)
  assert str(file) in line and words in line
  assert running.content(copy) == before
  assert not (copy / 'executed').exists()


# Disks.


def test_damaged_checkpoint_gives_way_to_the_previous_one(copy, capfd):
  file = copy / 'variables.pkl'
  assert decisions(file) == 10
  stop_in_prefill(copy)
  assert decisions(file) == 20
  file.write_bytes(file.read_bytes()[:-100])
  capfd.readouterr()
  stop_in_prefill(copy, steps=1000)
  warning, aside = capfd.readouterr().err.splitlines()
  assert 'truncated' in warning and 'variables.prev.pkl' in warning
  assert 'variables.damaged.pkl' in aside
  assert decisions(file) == 20


def decisions(file):
  """Decisions of the unfinished episode in a checkpoint."""
  driver = checkpoints.load(file)['progress']['driver']
  return len(driver['open'][0]['action']) - 1


def test_full_disk_leaves_the_last_checkpoint(copy, capfd):
  before = running.content(copy)
  (copy / 'variables.pkl.tmp').symlink_to('/dev/full')
  with running.signal_at(loop.Run, '_random_policy', 10):
    assert running.run(copy) == 2
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 1
  assert 'No space left' in lines[0] and 'variables.pkl' in lines[0]
  after = running.content(copy)
  for name in ('variables.pkl', 'variables.prev.pkl'):
    assert after[name] == before[name]
  stop_in_prefill(copy)


def test_saving_costs_less_than_a_percent(tmp_path):
  """At the published sizes, with a checkpoint every `save_every` seconds."""
  import time
  config = dreamer.define_config()
  agent = dreamer.Dreamer(config, action_dim=6)
  agent._make_optimizers()
  began = time.monotonic()
  agent.save(tmp_path / 'variables.pkl')
  assert time.monotonic() - began < 0.01 * config.save_every


# Environments that fail.


def test_failing_environments_are_replaced(tmp_path, monkeypatch, capfd):
  monkeypatch.setenv('HOOKS_MARK', str(tmp_path / 'mark-'))
  monkeypatch.setattr(
      workers, 'make', functools.partial(workers.make, timeout=4))
  status = running.run(
      tmp_path / 'run', task='hooks:three_failures', parallel='process',
      steps=400)
  assert status == 0
  warnings = capfd.readouterr().err.splitlines()
  assert len(warnings) == 3
  for warning, words in zip(warnings, ('SIGSEGV', 'no answer', 'nan')):
    assert warning.startswith('warning: an environment failed')
    assert words in warning
  lines = running.lines(tmp_path / 'run')
  assert [x['env_failures'] for x in lines if 'model_loss' in x] == [3, 3]
  names = running.episodes(tmp_path / 'run')
  assert len(names) == 4
  for name in names:
    episode = episodes.load(tmp_path / 'run' / 'episodes' / name)
    assert len(episode['reward']) == 51
  assert not [
      command for parent, command in running.processes().values()
      if parent == os.getpid() and 'workers.serve' in command]


@pytest.mark.parametrize('parallel', ['none', 'process'])
def test_failures_in_a_row_end_the_run(parallel, tmp_path, capfd):
  assert running.run(
      tmp_path, task='hooks:always_fails', parallel=parallel) == 2
  error = capfd.readouterr().err
  assert error.count('warning: an environment failed') == 4
  assert 'error: hooks:always_fails' in error
  # The environment's own traceback.
  assert 'hooks.py' in error and "ZeroDivisionError('the dot fell off')" in error
  assert checkpoints.load(tmp_path / 'variables.pkl')


# Numbers that go bad.


@pytest.fixture(scope='module')
def agent():
  config = dreamer.define_config().parse(['--preset', 'debug'])
  config.horizon = 3
  config.precision = '32'
  return dreamer.Dreamer(config, action_dim=2)


def batch(reward=0.5):
  rng = np.random.default_rng(0)
  return {
      'image': rng.integers(0, 256, (4, 10, 64, 64, 3), np.uint8),
      'action': rng.uniform(-1, 1, (4, 10, 2)).astype(np.float32),
      'reward': np.full((4, 10), reward, np.float32),
      'discount': np.ones((4, 10), np.float32),
      'first': np.zeros((4, 10), bool)}


def test_bad_batch_is_skipped_and_counted(agent):
  agent.train(batch())
  before = agent.state()
  # The square of it is infinite, its gradient is finite.
  metrics = agent.train(batch(1e25))
  assert np.isinf(metrics['model_loss'])
  after = agent.state()
  assert agent.skipped == {'model': 1, 'actor': 0, 'value': 0}
  for name, value in before['variables'].items():
    changes = name.split('/')[0] in ('actor', 'value')
    assert (value != after['variables'][name]).any() == changes
  np.testing.assert_array_equal(
      before['optimizers']['model']['m']['encoder/h1/kernel'],
      after['optimizers']['model']['m']['encoder/h1/kernel'])
  for _ in range(18):
    agent.train(batch(1e25))
  assert not agent.stuck
  agent.train(batch())
  for _ in range(20):
    assert not agent.stuck
    agent.train(batch(np.nan))
  assert agent.stuck and agent.skipped['model'] == 39
  assert diagnosis.bad_numbers(agent, batch(np.nan))[:3] == [
      'data reward', 'likelihood reward', 'model_loss']
  assert diagnosis.bad_numbers(agent, batch(1e25))[0] == 'likelihood reward'
  assert diagnosis.bad_numbers(agent, batch()) == []
  assert not diagnosis.bad_variables(agent)


def test_overflows_of_scaled_losses_are_no_errors():
  variable = tf.Variable([1.0, 2.0])
  optimizer = tools.Optimizer('test', {'x': variable}, 0.1, scaled=True)
  scales = []
  for step in range(24):
    # As float16 would: what is above 65,504 overflows.
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(tf.cast(variable, tf.float16) * 100)
      loss = tf.cast(loss, tf.float32)
    grads, norm = optimizer.gradients(tape, loss)
    finite = tf.math.is_finite(norm)
    if finite:
      optimizer.apply(grads)
    optimizer.count(finite)
    scales.append(float(optimizer.state()['scale']))
    assert not optimizer.stuck
  assert scales[0] == 2 ** 14 and scales[-1] == 2 ** 9
  assert optimizer.skipped == 6
  for _ in range(199):
    optimizer.count(tf.constant(False))
  assert not optimizer.stuck
  optimizer.count(tf.constant(False))
  assert optimizer.stuck


def test_run_ends_when_nothing_is_learned(tmp_path, capfd):
  flags = dict(task='hooks:vast', train_steps=10, pretrain=10)
  assert running.run(tmp_path, **flags) == 2
  error, = capfd.readouterr().err.splitlines()
  assert 'likelihood reward' in error and '--clip_rewards' in error
  saved = checkpoints.load(tmp_path / 'variables.pkl')
  assert saved['updates'] == 0  # From before.
  skipped = [
      x['model_skipped'] for x in running.lines(tmp_path) if 'model_loss' in x]
  assert skipped == [10]


def test_bad_variables_are_not_saved(copy, capfd, monkeypatch):
  before = (copy / 'variables.pkl').read_bytes()
  restore = dreamer.Dreamer.restore

  def poisoned(agent, checkpoint):
    restore(agent, checkpoint)
    variable = agent.variables['actor/h0/kernel']
    variable.assign(variable * np.nan)

  monkeypatch.setattr(dreamer.Dreamer, 'restore', poisoned)
  with running.signal_at(loop.Run, '_random_policy', 5):
    assert running.run(copy) == 2
  error, = capfd.readouterr().err.splitlines()
  assert 'variable actor/h0/kernel' in error
  assert (copy / 'variables.pkl').read_bytes() == before
