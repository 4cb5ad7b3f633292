"""Meta-model runs say how well their autoencoder draws the target."""

import json
import subprocess
import sys

import numpy as np
import pytest

from analysis import forecast
from common import terminal
from common.backend import tf
from data import checkpoints, episodes
import dreamer
import rank
import running
from runs import loop

mmtl = running.script_module('dreamer-MMTL.py')
LINE = 'autoencoder: image_r2 '


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A directory with the checkpoint and module files of an agent."""
  folder = tmp_path_factory.mktemp('source')
  config = dreamer.define_config()
  config.preset_name('debug')
  config.seed = 7
  agent = dreamer.Dreamer(config, 1)
  rng = np.random.default_rng(0)
  for variable in agent.variables.values():
    variable.assign(rng.normal(0, 0.3, variable.shape).astype(np.float32))
  agent.save(folder / 'variables.pkl')
  for module in (agent._encode, agent._decode):
    agent.save_single(module, folder / 'modules' / f'{module.name}.pkl')
  return folder


def words(logdir, source, **values):
  return running.flags(
      logdir, **{
          'task': '', 'task1': 'hooks:uneven', 'threads': 1, 'steps': 220,
          'eval_every': 400, 'encoder': source / 'variables.pkl', **values})


def run(logdir, source, **values):
  """Runs dreamer-MMTL.py in this process; returns the exit status."""
  with pytest.raises(SystemExit) as end:
    terminal.run(mmtl.main, words(logdir, source, **values))
  return end.value.code


def run_to_first_update(logdir, source, **values):
  """The same, ended like kill -9 before the first update: none is built."""
  class Killed(BaseException):
    pass

  def kill():
    raise Killed

  with running.at_call(loop.Run, '_train', 1, kill), pytest.raises(Killed):
    terminal.run(mmtl.main, words(logdir, source, **values))


def measured(logdir):
  return [line for line in running.lines(logdir) if 'image_r2' in line]


def warnings(err):
  """Lines on stderr, without one that only tests get."""
  return [line for line in err.splitlines() if '--threads 1' not in line]


def copy_episodes(logdir, folder):
  folder.mkdir()
  for path in episodes.paths(logdir / 'episodes'):
    (folder / path.name).write_bytes(path.read_bytes())


def test_run_measures_once_as_rank_does(source, tmp_path, capsys):
  logdir = tmp_path / 'run'
  with running.at_call(
      loop.Run, '_train', 1, lambda: copy_episodes(logdir, tmp_path / 'seen')):
    assert run(logdir, source) == 0
  out, err = capsys.readouterr()
  line, = (x for x in out.splitlines() if x.startswith(LINE))
  assert rank.MEASURES['image_r2'][1] in line
  assert rank.MEASURES['image_error'][1] in line
  warning, = warnings(err)
  assert warning.startswith('warning: the autoencoder draws 0% of the variance')
  assert 'frozen, it hides' in warning and 'rank.py' in warning
  found, = measured(logdir)
  rows = running.lines(logdir)
  assert rows.index(found) < rows.index(
      next(row for row in rows if 'model_loss' in row))

  with pytest.raises(SystemExit):
    terminal.run(rank.main, [
        '--from', str(source / 'modules'), '--episodes',
        str(tmp_path / 'seen'), '--out', str(tmp_path / 'rank.json')])
  expected, = json.loads(
      (tmp_path / 'rank.json').read_text())['measures'].values()
  assert set(expected) == set(found) - {'step'}
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, abs=1e-6)

  # Goes on without saying it again.
  capsys.readouterr()
  assert run(logdir, source, steps=230) == 0
  assert LINE not in ''.join(capsys.readouterr())
  assert measured(logdir) == [found]


def test_what_is_learned_does_not_depend_on_the_measure(
    source, tmp_path, monkeypatch):
  assert run(tmp_path / 'with', source, steps=310) == 0
  monkeypatch.setattr(
      mmtl.MetaModel, 'coverage', lambda agent, directory: None)
  assert run(tmp_path / 'without', source, steps=310) == 0
  one, two = (
      checkpoints.load(tmp_path / name / 'variables.pkl')
      for name in ('with', 'without'))
  assert one['updates'] == two['updates'] >= 4
  for part in ('variables', 'optimizers', 'calls'):
    tf.nest.map_structure(np.testing.assert_array_equal, one[part], two[part])
  assert len(measured(tmp_path / 'with')) == 1
  assert running.lines(tmp_path / 'without') == [
      x for x in running.lines(tmp_path / 'with') if 'image_r2' not in x]


def test_a_run_stopped_in_prefill_says_it_when_it_goes_on(
    source, tmp_path, capsys):
  with running.signal_at(loop.Run, '_random_policy', 50):
    assert run(tmp_path, source, freeze_decoder=False) == 143
  assert LINE not in capsys.readouterr().out
  # In the first evaluation, after which it is measured.
  with running.signal_at(loop.Run, '_evaluate', 1):
    assert run(tmp_path, source, freeze_decoder=False) == 143
  run_to_first_update(tmp_path, source, freeze_decoder=False)
  out, err = capsys.readouterr()
  assert out.count(LINE) == 1
  assert 'decoder is trained, but its frozen encoder may hide' in err
  assert len(measured(tmp_path)) == 1


@pytest.mark.parametrize('flags', [dict(decoder='none'), {}])
def test_an_encoder_alone_draws_nothing(source, tmp_path, capsys, flags):
  encoder = source / 'modules' / 'encoder.pkl'
  if flags:
    encoder = source / 'variables.pkl'
  run_to_first_update(tmp_path / 'run', source, encoder=encoder, **flags)
  out, err = capsys.readouterr()
  assert LINE not in out and not warnings(err)
  assert not measured(tmp_path / 'run')
  assert 'no decoder was ' + (
      'taken over' if flags else 'found') + ': it is trained' in out


def test_a_measure_that_fails_does_not_end_the_run(source, tmp_path, capsys):
  def damage():
    episodes.paths(tmp_path / 'episodes')[-1].write_bytes(b'not an episode')

  with running.at_call(loop.Run, '_report_coverage', 1, damage):
    run_to_first_update(tmp_path, source)
  assert 'how well frozen parts fit is not known: ' in capsys.readouterr().err
  assert not measured(tmp_path)


def test_the_rule_is_one_number():
  measures = {'image_r2': forecast.COVERED, 'image_error': 3.0}
  assert forecast.coverage(measures, 'x') == []
  line, = forecast.coverage(
      dict(measures, image_r2=forecast.COVERED - 0.01), 'x')
  assert line.startswith('x draws 49% of the variance')
  page = (running.ROOT / 'docs' / 'forecast.md').read_text()
  assert f'image_r2 below {forecast.COVERED:g} ' in page
  assert f'{forecast.COVERED:g} of image_r2' in page


PROGRAM = '''
import sys
from common.backend import tf
from data import checkpoints
import running

cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mmtl = running.script_module('dreamer-MMTL.py')
config = mmtl.define_config().parse([
    '--preset', 'debug', '--encoder', sys.argv[1], '--task1', 'x'])
one = mmtl.Agent.start(config, 1).coverage(sys.argv[2])
with tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1']).scope():
  two = mmtl.Agent.start(config, 1).coverage(sys.argv[2])
assert one == two, (one, two)
print(sorted(one[0]))
'''


def test_devices_do_not_change_the_measure(source, tmp_path):
  class Config:
    task, decisions, seed = 'hooks:uneven', 100, 0
    def __contains__(self, name):
      return hasattr(self, name)
  for episode in forecast.played(Config()):
    episodes.write(tmp_path / (
        f'20200101T{len(list(tmp_path.iterdir())):06}000000-{"0" * 32}-'
        f'{len(episode["reward"])}.npz'), episode)
  done = subprocess.run(
      [sys.executable, '-c', PROGRAM, str(source / 'variables.pkl'),
       str(tmp_path)], env=running.environment(), capture_output=True,
      text=True)
  assert done.stdout == "['image_error', 'image_r2']\n", done.stderr
