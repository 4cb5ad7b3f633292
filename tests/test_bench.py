"""What the benchmark counts and writes; how fast things are is not tested."""

import contextlib
import json
import math

import pytest

from benchmarks import bench, measuring
from common import machine, precision, terminal
from common.backend import tf
import dreamer

# After common.backend, which keeps its symbols apart from those of OpenGL.
from tensorflow.python.framework import op_callbacks


class Count:
  """Counts operations of products and convolutions while they run."""

  def __init__(self):
    self.total = 0

  def __enter__(self):
    tf.config.run_functions_eagerly(True)
    op_callbacks.add_op_callback(self._see)
    return self

  def __exit__(self, *_):
    op_callbacks.remove_op_callback(self._see)
    tf.config.run_functions_eagerly(False)

  def _see(self, kind, inputs, attributes, outputs, *_, **__):
    kind = tf.compat.as_str(kind)
    shapes = [x.shape for x in inputs]
    if kind == 'MatMul':
      transposed = attributes[attributes.index('transpose_a') + 1]
      inner = shapes[0][0 if transposed else 1]
      self.total += 2 * inner * math.prod(outputs[0].shape)
    elif kind.startswith('Conv2D'):
      # Pixels of the smaller image times elements of the kernel.
      image, kernel = {
          'Conv2D': lambda: (outputs[0].shape, shapes[1]),
          'Conv2DBackpropFilter': lambda: (shapes[2], outputs[0].shape),
          'Conv2DBackpropInput': lambda: (shapes[2], shapes[1]),
          'Conv2DBackpropInputV2': lambda: (shapes[2], shapes[1])}[kind]()
      self.total += 2 * math.prod(image[:3]) * math.prod(kernel)


@pytest.fixture(scope='module')
def executed():
  """Operations that parts of a small update execute, and the whole."""
  agent, batch = measuring.make_agent('debug'), measuring.random_batch('debug')
  totals = {}
  with measuring.plain_convolutions():
    for name, part in measuring.pieces(agent, batch).items():
      with Count() as count:
        part()
      totals[name] = count.total
    agent._make_optimizers()
    with Count() as count:
      agent.gradients(dreamer.tensors(batch), tf.constant([0, 1]))
    totals['update'] = count.total
  return totals


@pytest.fixture(scope='module')
def counted():
  return measuring.operations(measuring.settings('debug'), measuring.ACTIONS)


# The debug preset: 4 sequences of 10 records, 5 imagined steps, depth 2,
# 12 deterministic, 4 stochastic and 16 hidden units, and then the operations
# of a forward pass for one state.
POSTS, STARTS = 40, 40
MODEL = 2 * ((4 + 6) * 12 + 3 * (12 + 12) * 12 + 12 * 12 + 12 * 8)
VALUE = 2 * (3 * 16 * 16 + 16)
REWARD = 2 * (2 * 16 * 16 + 16)


def test_encoder_but_for_the_gradient_of_images(counted, executed):
  assert executed['encoder'] - counted['encoder'] == (
      POSTS * 2 * 31 * 31 * 4 * 4 * 3 * 2)


def test_decoder(counted, executed):
  assert executed['decoder'] == counted['decoder']


def test_observe_but_for_the_gradient_of_given_actions(counted, executed):
  assert executed['observe'] - counted['observe'] == (
      (POSTS - 4) * 2 * measuring.ACTIONS * 12)


def test_reward(counted, executed):
  assert executed['reward'] == counted['reward and pcont'] == (
      3 * POSTS * REWARD)


def test_imagination(counted, executed):
  # Run eagerly, this part has more than is needed: the reward of all 5 states
  # and gradients through the values of all 5, where 4 do; the gradients of
  # kernels that are not the actor's; and that of the stochastic start.
  needed = sum(counted[name] for name in (
      'imagined actions', 'imagined states', 'imagined rewards and pconts',
      'imagined values'))
  kernels = 5 * (MODEL + REWARD + VALUE)
  assert executed['imagination and actor'] - needed == (
      STARTS * (2 * REWARD + VALUE + kernels + 2 * 4 * 12))


def test_value_loss(counted, executed):
  # That part is of all 5 states; needed are 4, and the values are there.
  assert 4 / 5 * executed['value'] == (
      counted['value loss'] + 4 * STARTS * VALUE)


def test_an_update_executes_little_more_than_needed(counted, executed):
  needed = sum(counted.values())
  assert needed < executed['update'] < 1.15 * needed


def test_operations_at_default_sizes():
  counted = measuring.operations(measuring.settings('paper'), 6)
  # Four convolutions of 2,500 images; their input gradients but the first.
  layers = [31 ** 2 * 3 * 32, 14 ** 2 * 32 * 64, 6 ** 2 * 64 * 128,
            2 ** 2 * 128 * 256]
  assert counted['encoder'] == 2500 * 2 * 16 * (3 * sum(layers) - layers[0])
  assert sum(counted.values()) == pytest.approx(902e9, rel=1e-3)


def test_termination_adds_pcont_and_leaves_out_last_states():
  plain = measuring.operations(measuring.settings('debug'), 6)
  ends = measuring.operations(measuring.settings('debug', pcont=True), 6)
  assert ends['encoder'] == plain['encoder']
  assert ends['reward and pcont'] == 3 * POSTS * (REWARD + VALUE)
  assert ends['value loss'] == plain['value loss'] * 9 / 10


def test_alternately_takes_turns_and_leaves_out_the_first():
  calls = []
  seconds = measuring.alternately(
      [lambda: calls.append('a'), lambda: calls.append('b')], rounds=3)
  assert ''.join(calls) == 'abababab'
  assert seconds.shape == (3, 2) and (seconds > 0).all()


def test_the_machine_is_described_without_git_and_pybullet(monkeypatch):
  real = bench.importlib.metadata.version

  def version(package):
    if package == 'pybullet':
      raise bench.importlib.metadata.PackageNotFoundError(package)
    return real(package)

  monkeypatch.setattr(bench.importlib.metadata, 'version', version)
  monkeypatch.setenv('PATH', '')
  found = bench.describe()
  assert found['commit'] == 'unknown'
  assert found['versions']['pybullet'] == 'absent'
  assert found['versions']['numpy'] == real('numpy')


def test_rows_say_whether_a_target_is_met():
  assert bench.row('x', 0.8, at_least=0.75)['met'] is True
  assert bench.row('x', 0.8, at_most=0.36)['met'] is False
  assert bench.row('x', 0.8)['met'] is None
  assert 'MISSED' in bench.line_of(bench.row('x', 0.8, at_most=0.36))
  assert 'met' in bench.line_of(bench.row('x', 0.8, at_least=0.75))


def test_table_and_file(tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(
      bench, 'isolated', lambda name, quick: bench.measure(name, quick))
  out = tmp_path / 'bench.json'
  bench.main(['--quick', 'True', '--only', 'step', '--out', str(out)])
  result = json.loads(out.read_text())
  assert {
      'cpu', 'cores', 'memory', 'versions', 'commit', 'date', 'rows',
      'series', 'quick'} <= set(result)
  rows = {line['name']: line for line in result['rows']}
  ratio = rows['update, debug: floor / time']
  assert ratio['value'] > 0 and ratio['figure'] == 'step'
  assert rows['update, debug']['unit'] == 's'
  shown = capfd.readouterr().out
  assert all(name in shown for name in rows)


@pytest.mark.parametrize('fast', ['32', 'bfloat16', '16'])
def test_updates_are_measured_in_the_format_of_the_machine(monkeypatch, fast):
  monkeypatch.setattr(precision, 'resolve', lambda flag: fast)
  names = [row['name'] for row in bench.step(quick=True)[0]]
  times = [name for name in names if name.endswith('time / float32')]
  assert times == [f'update, debug, {fast}: time / float32'] * (fast != '32')
  assert len(names) == len(set(names))


def test_whole_run_is_told_by_its_parts(tmp_path):
  seconds, parts = measuring.whole_run([
      '--logdir', str(tmp_path), '--preset', 'debug', '--threads', '1',
      '--task', 'dmc_cartpole_balance', '--render', 'fast'])
  assert 0 < seconds < 1000
  rest = parts['all but updates']
  assert 0 < parts['evaluation'] < rest < 1
  assert 0 < parts['collection'] < rest
  assert parts['evaluation'] + parts['collection'] < rest


def test_formats_are_compared_on_the_same_batches():
  rows, _ = bench.formats(quick=True)
  values = {line['name']: line['value'] for line in rows}
  assert len(rows) == 2 * len(measuring.LOSSES)
  for name in measuring.LOSSES:
    assert values[f'{name} after 4 updates, float32'] > 0
    ratio = values[f'{name} after 4 updates, bfloat16 / float32']
    assert ratio == pytest.approx(1, abs=0.05) and ratio != 1


def test_operations_of_an_update_are_told_by_their_kinds():
  rows = {row['name']: row['value'] for row in bench.operations(quick=True)[0]}
  count = rows.pop('operations in an update, debug')
  assert 1000 < count < 20_000
  assert sum(rows.values()) == pytest.approx(1)
  assert len(rows) == len(measuring.KINDS) + 1
  assert all(0 < share < 0.95 for share in rows.values())


def test_presets_are_compared_in_one_run():
  before, now, ratio = [row['value'] for row in bench.presets(quick=True)[0]]
  assert before > 0 and now > 0 and 0.3 < ratio < 3


@pytest.mark.skipif(not machine.is_x86(), reason='of x86 processors')
@pytest.mark.parametrize('value', '01')
def test_updates_are_made_with_the_environment_that_is_asked(value, capfd):
  environment = dict(TF_ENABLE_ONEDNN_OPTS=value, ONEDNN_VERBOSE='1')
  with measuring.updating('debug', **environment) as update:
    assert update() > 0  # A loss.
  found = 'exec,cpu,convolution,' in capfd.readouterr().out
  assert found == (value == '1')


def test_onednn_is_compared_with_none(monkeypatch):
  made = []

  @contextlib.contextmanager
  def updating(preset, **environment):
    made.append((preset, environment))
    yield lambda: None

  monkeypatch.setattr(measuring, 'updating', updating)
  seconds, ratio = [row['value'] for row in bench.onednn(quick=True)[0]]
  assert made == [
      ('debug', {'TF_ENABLE_ONEDNN_OPTS': value}) for value in '01']
  assert seconds > 0 and ratio > 0


def test_plot(tmp_path):
  picture = tmp_path / 'growth.png'
  bench.plot({
      'batch_size': ('batch_size', [10, 20], 's / update', [1.0, 2.1]),
      'episodes': ('episodes', [10, 2000], 'batches / s', [60.0, 30.0]),
  }, picture)
  assert picture.read_bytes().startswith(b'\x89PNG')


def test_what_cannot_be_measured_is_a_line(tmp_path, capfd, monkeypatch):
  def fails(quick):
    raise terminal.UserError('no room')

  monkeypatch.setitem(bench.FIGURES, 'step', fails)
  monkeypatch.setattr(
      bench.concurrent.futures, 'ProcessPoolExecutor',
      lambda *_: bench.concurrent.futures.ThreadPoolExecutor(1))
  out = tmp_path / 'bench.json'
  bench.main(['--only', 'step', '--out', str(out)])
  line, = json.loads(out.read_text())['rows']
  assert line['value'] is None and 'no room' in line['name']
  assert 'no room' in capfd.readouterr().out


def test_unknown_figure_is_an_error():
  with pytest.raises(terminal.UserError, match='steep'):
    bench.main(['--only', 'steep'])
