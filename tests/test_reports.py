"""Lines on the terminal, and curves of TensorBoard."""

import json
import re
import resource
import shlex
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from common import terminal
from common.backend import tf
import dreamer
import evaluate
import running
from runs import logs, reports
import plotting

EPISODE = {'reward': np.float32([0, 1, 2])}


def make_reports(logdir, tasks=None, **flags):
  config = dreamer.define_config().parse(running.flags(logdir, **flags))
  logger = logs.Logger(config.logdir)
  return logger, reports.Reports(logger, config, tasks, quiet=False)


def events(logdir):
  found = event_accumulator.EventAccumulator(
      str(logdir), size_guidance={'tensors': 0})
  found.Reload()
  return found


def curve(found, tag):
  return [
      (event.step, float(tf.make_ndarray(event.tensor_proto)))
      for event in found.Tensors(tag)]


def test_tasks_have_their_own_curves_and_numbers(tmp_path, capsys):
  tasks = ['HopperBulletEnv-v0', 'dmc_walker_walk']
  logger, said = make_reports(tmp_path, tasks)
  said.phase('train', 0, 10)
  for step, task in enumerate(tasks):
    said.episodes('test', step, task, [EPISODE] * (step + 1), 5, 2)
  said.episodes('train', 2, tasks[0], [EPISODE], 6, 3)
  said.close()
  logger.close()
  line = capsys.readouterr().out.splitlines()[-1]
  assert 'train return Hopper 3.0 test return Hopper 3.0 walker_walk 3.0' in line
  found = events(tmp_path)
  tags = found.Tags()['tensors']
  assert 'sim/HopperBulletEnv-v0/test/return' in tags
  assert 'Overview/test_return/dmc_walker_walk' in tags
  # A curve in which tasks take turns is none.
  assert not {'sim/test/return', 'Overview/test_return'} & set(tags)
  # The lines have the plain names as before.
  lines = running.lines(tmp_path)
  assert [x.get('test/return') for x in lines] == [3, 3, None]
  assert [x['episodes'] for x in lines] == [5, 5, 6]
  # A restart shows the same numbers.
  _, again = make_reports(tmp_path, tasks)
  again.restore(said.state())
  again.phase('train', 0, 10)
  again.progress(1)
  again.close()
  assert 'walker_walk 3.0' in capsys.readouterr().out


def test_single_task_has_plain_curves(tmp_path):
  logger, said = make_reports(tmp_path, ['HopperBulletEnv-v0'])
  said.phase('train', 0, 10)
  said.episodes('test', 4, 'HopperBulletEnv-v0', [EPISODE], 5, 5)
  logger.close()
  found = events(tmp_path)
  for tag in ('sim/test/return', 'sim/HopperBulletEnv-v0/test/return',
              'Overview/test_return'):
    assert curve(found, tag) == [(4, 3)]


def test_losses_are_shown_without_their_constants(tmp_path):
  logger, said = make_reports(tmp_path)
  said.phase('train', 0, 10)
  constant = 64 * 64 * 3 * 0.5 * np.log(2 * np.pi)
  said.metrics(0, lambda: {
      'image_loss': constant + 7, 'model_loss': constant + 12})
  logger.close()
  found = events(tmp_path)
  assert curve(found, 'Overview/world_image_error')[0][1] == pytest.approx(7, abs=0.01)
  assert curve(found, 'Overview/world_model_error')[0][1] == pytest.approx(
      12 - 0.5 * np.log(2 * np.pi), abs=0.01)
  assert curve(found, 'agent/image_loss')[0][1] == pytest.approx(constant + 7)
  # Groups are in the order of their names.
  groups = sorted({tag.split('/')[0] for tag in found.Tags()['tensors']})
  assert groups[0] == 'Overview'


def test_curves_are_described(tmp_path):
  logger, said = make_reports(tmp_path)
  said.phase('train', 0, 10)
  said.episodes('test', 4, None, [EPISODE], 5, None)
  said.metrics(0, lambda: {'div': 1.0, 'value_grad_norm': 2.0})
  logger.close()
  found = events(tmp_path)
  for tag, words in (
      ('sim/test/return', 'without exploration'), ('agent/div', 'nats'),
      ('agent/value_grad_norm', 'gradient of the value')):
    assert words in found.SummaryMetadata(tag).summary_description


def test_rate_is_measured_over_whole_intervals(tmp_path):
  logger, said = make_reports(tmp_path, log_every=100)
  said.phase('train', 1000, 2000)
  for step in (1000, 1040, 1140):
    time.sleep(0.01)
    said.metrics(step, lambda: {})
  logger.close()
  rates = [json.loads(line).get('fps') for line in (
      tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert rates[:2] == [None, None]
  assert 0 < rates[2] < 100 / 0.01


def test_full_disk_is_one_line(tmp_path):
  logger = logs.Logger(tmp_path)
  logger.histograms(1, {'x': np.zeros(10)})
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
  try:
    with pytest.raises(terminal.UserError, match='cannot be written') as caught:
      for step in range(2000):
        logger.text(step, 'x', 'y' * 100)
      logger.flush()
    logger.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert '\n' not in str(caught.value)
  assert str(tmp_path) in str(caught.value)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Log directory of a run with a space in it, and what the run printed."""
  logdir = tmp_path_factory.mktemp('a run')
  flags = dict(steps=20, prefill=20, time_limit=20, freeze='^(actor|value)/')
  process = running.Process(logdir, **flags)
  assert process.end() == 0, process.output
  return logdir, process.output.splitlines()


def test_flags_are_shown_as_the_shell_takes_them(run):
  logdir, lines = run
  words = shlex.split(lines[1])
  again = dreamer.define_config().parse(words)
  assert again.logdir == logdir
  saved = json.loads((logdir / 'config.json').read_text())
  assert again.freeze == '^(actor|value)/'
  assert {**again.plain(), 'preset': ''} == {
      **{name: saved[name] for name in again.plain()}, 'preset': ''}


def test_first_lines_tell_device_precision_and_size(run):
  logdir, lines = run
  size = sum(x.size for x in running_variables(logdir))
  assert re.search(r'^device (CPU|GPU) \(.+\) · precision \w+', lines[2])
  assert f'{size:,} parameters' in lines[2]


def running_variables(logdir):
  return dreamer.load_agent(logdir).state()['variables'].values()


def test_last_lines_are_commands(run, tmp_path):
  """They take the flags, with the place of the run."""
  logdir, lines = run
  play, draw = (shlex.split(line.partition(':')[2]) for line in lines[-2:])
  assert [word.rpartition('/')[2] for word in (play[1], draw[1])] == [
      'evaluate.py', 'plotting.py']
  assert evaluate.define_config().parse(play[2:]).plain()['from'] == str(logdir)
  assert plotting.parse(draw[2:]).indir == [logdir]


def test_hyperparameters(run):
  logdir, _ = run
  found = events(logdir)
  data = plugin_data_pb2.HParamsPluginData.FromString(
      found.SummaryMetadata(
          '_hparams_/session_start_info').plugin_data.content)
  values = data.session_start_info.hparams
  assert values['freeze'].string_value == '^(actor|value)/'
  assert values['steps'].number_value == 20
  assert values['script'].string_value == 'dreamer.py'
  assert values['seed'].number_value == 0


def test_first_update_says_that_its_graph_is_built(tmp_path, capsys):
  assert running.run(tmp_path, steps=300) == 0
  lines = capsys.readouterr().out.splitlines()
  began = lines.index('building the graph of the update …')
  assert lines[began + 1].startswith('building the graph of the update took ')
  assert sum('building the graph' in line for line in lines) == 2
