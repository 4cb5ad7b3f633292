"""Several devices together make the update of one on the joined batch."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

import running
from common import machine
from common.backend import keras, tf
from runs import devices
import tools

ONEDNN = 'TF_ENABLE_ONEDNN_OPTS'
# The devices of a process are fixed when TensorFlow starts.
PROGRAM = '''
import numpy as np
from common import machine
from common.backend import tf
import dreamer
import running
from runs import diagnosis

cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

config = dreamer.define_config()
config.preset_name('debug')
config.pcont = True
config.precision = '32'
config.free_nats = 0.1  # One half of the batch may lie below, one above.
config.update({
    key: type(config.default(key))(value) for key, value in MORE.items()})
batch = running.random_batch(config)

one = dreamer.Dreamer(config, 2)
with tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1']).scope():
  two = dreamer.Dreamer(config, 2)
start = {name: x.numpy() for name, x in one.variables.items()}
for _ in range(3):
  expected, found = one.train(batch), two.train(batch)
  for name in expected:
    np.testing.assert_allclose(
        found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
for name, x in one.variables.items():
  moved = np.abs(x.numpy() - start[name]).max()
  apart = np.abs(x.numpy() - two.variables[name].numpy()).max()
  assert apart < 0.05 * moved, (name, moved, apart)
two.restore(one.state())
for name, x in one.variables.items():
  assert np.array_equal(x.numpy(), two.variables[name].numpy()), name

bad = dict(batch, reward=batch['reward'].copy())
bad['reward'][-1, -1] = np.nan  # On the second device alone.
for agent in () if MORE else (one, two):  # Options change nothing of it.
  names = diagnosis.bad_numbers(agent, bad)
  assert names[:2] == ['data reward', 'likelihood reward'], names
  assert not diagnosis.bad_numbers(agent, batch)
  assert not diagnosis.bad_variables(agent)
print('equal')
'''


@pytest.mark.parametrize('more', [{}, dict(
    kl_balance=0.8, free_nats_of='step', decode_stride=2, imag_stride=2,
    return_norm=True, actor_entropy=0.1, actor_min_std=0.1, lr_end=0.1)])
def test_two_devices_make_the_update_of_one(more):
  done = subprocess.run(
      [sys.executable, '-c', f'MORE = {more}\n{PROGRAM}'],
      capture_output=True, text=True, env=running.environment(), timeout=600)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().endswith('equal')


# Eight devices in place of GPUs.
SPREAD = '''
from common import machine
from common.backend import tf
from runs import devices

cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 8)
devices._gpus = lambda: tf.config.list_logical_devices('CPU')
for batch_size in (50, 8, 7):
  team = devices.Team(batch_size)
  print(team.strategy.num_replicas_in_sync)
'''


def test_batch_is_spread_over_as_many_devices_as_divide_it():
  found = subprocess.run(
      [sys.executable, '-c', SPREAD], env=running.environment(),
      capture_output=True, text=True, check=True)
  lines = found.stdout.splitlines()
  assert lines == [
      'a batch of 50 sequences is shared by 5 of 8 GPUs, the most that divide '
      'it: with --batch_size 56 all would learn.', '5', '8',
      'a batch of 7 sequences is shared by 7 of 8 GPUs, the most that divide '
      'it: with --batch_size 8 all would learn.', '7']


@pytest.mark.parametrize('share, gpus, expected', [
    (50, 0, 1), (50, 1, 1), (50, 2, 2), (50, 4, 2), (50, 8, 5), (7, 4, 1)])
def test_replicas(share, gpus, expected):
  assert devices.replicas(share, gpus) == expected


@pytest.mark.parametrize('jit, gpus, replicas, works, expected', [
    ('auto', 0, 1, True, False), ('auto', 1, 1, True, True),
    ('auto', 1, 1, False, False), ('auto', 2, 2, True, False),
    ('True', 0, 1, True, True), ('False', 1, 1, True, False)])
def test_what_xla_compiles(
    monkeypatch, capsys, jit, gpus, replicas, works, expected):
  def small_program():
    if not works:
      raise tf.errors.InternalError(None, None, 'libdevice not found\nat all')

  monkeypatch.setattr(
      tf.config, 'list_physical_devices', lambda kind: ['GPU:0'] * gpus)
  monkeypatch.setattr(devices, '_small_program', small_program)
  assert devices.compiles(jit, replicas) == expected
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == (not works)
  assert works or 'XLA' in lines[0] and '(libdevice not found)' in lines[0]


def test_keras_has_xla_compile_nothing_by_itself(monkeypatch):
  """It would on a machine with a GPU, also where XLA is off or cannot."""
  import tensorflow
  monkeypatch.setattr(
      tensorflow.compat.v2.config, 'list_physical_devices',
      lambda kind=None: ['GPU:0'])
  assert keras.optimizers.Adam().jit_compile  # What is guarded against.
  weight = tf.Variable([1.0])
  optimizer = tools.Optimizer('model', {'weight': weight}, 0.1)
  update = tf.function(lambda: optimizer.apply([tf.ones([1])]), autograph=False)
  graph = update.get_concrete_function().graph.as_graph_def()
  assert '_XlaMustCompile' not in str(graph)


def test_xla_compiles_the_small_program():
  devices._small_program()


# Two logical devices in place of GPUs.
TWO = '''
from common import machine, terminal
from common import machine
from common.backend import tf
import dreamer
from runs import devices

cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
devices._gpus = lambda: tf.config.list_logical_devices('CPU')
terminal.run(dreamer.main, FLAGS)
'''


def test_xla_is_refused_to_several_devices(tmp_path):
  flags = running.flags(tmp_path / 'run', jit=True, batch_size=2)
  found = subprocess.run(
      [sys.executable, '-c', f'FLAGS = {flags}\n{TWO}'],
      env=running.environment(), capture_output=True, text=True, timeout=300)
  assert found.returncode == 2
  line, = found.stderr.splitlines()
  assert '--jit True compiles for one device, and 2 learn together' in line


@pytest.mark.parametrize('jit, machines', [('True', 1), ('auto', 2)])
def test_xla_is_allowed_otherwise(jit, machines):
  team = devices.Team(2)
  team.strategy = OneSpeaks(machines, 1)
  team.check_jit(jit)


class OneSpeaks:
  """A strategy of machines of which the others say zero."""

  def __init__(self, machines, replicas):
    self.num_replicas_in_sync = machines * replicas
    self._replicas = replicas

  def run(self, function, args):
    return function(*args)

  def reduce(self, kind, value, axis):
    total = value * self._replicas
    return total / self.num_replicas_in_sync if kind == 'MEAN' else total


@pytest.mark.parametrize('machines', [2, 7, 15])
@pytest.mark.parametrize('replicas', [1, 5])
def test_sums_of_whole_numbers_are_exact(machines, replicas):
  team = devices.Team(1)
  team.size = machines
  team.strategy = OneSpeaks(machines, replicas)
  numbers = np.random.default_rng(0).integers(2 ** 32, size=500).tolist()
  assert team.sum(*numbers) == numbers


def nvidia_smi(folder, monkeypatch, text, status=0):
  program = folder / 'nvidia-smi'
  program.write_text(f'#!/bin/sh\necho "{text}"\nexit {status}\n')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(folder), prepend=':')
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  monkeypatch.setattr(devices, '_gpus', list)


def test_gpu_that_tensorflow_does_not_see(tmp_path, monkeypatch, capsys):
  nvidia_smi(tmp_path, monkeypatch, 'GPU 0: NVIDIA H100 (UUID: GPU-1)')
  devices.check_gpu()
  warning, = capsys.readouterr().err.splitlines()
  assert 'tensorflow[and-cuda]==' in warning
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # Hidden on purpose.
  devices.check_gpu()
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('text, status', [('failed', 9), ('', 0)])
def test_machine_without_a_gpu(tmp_path, monkeypatch, capsys, text, status):
  nvidia_smi(tmp_path, monkeypatch, text, status)
  devices.check_gpu()
  assert capsys.readouterr().err == ''


def test_line_about_a_machine_names_its_gpus(tmp_path, monkeypatch):
  nvidia_smi(
      tmp_path, monkeypatch, 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n'
      'GPU 1: NVIDIA H200 (UUID: GPU-2)')
  assert ' cores, NVIDIA H100 80GB HBM3, NVIDIA H200, Python 3.' in (
      machine.describe())


@pytest.mark.parametrize('text, name', [
    ('cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n',
     'AMD EPYC (family 25, model 17)'),
    ('processor\t: 0\nmodel name\t: ARMv7 rev 4\n', 'ARMv7 rev 4'),
    ('processor\t: 0\nCPU part\t: 0xd0c\n', platform.machine())])
def test_name_of_a_processor_tells_generations_apart(tmp_path, text, name):
  file = tmp_path / 'cpuinfo'
  file.write_text(text)
  assert machine.cpu(file) == name
  assert machine.cpu(tmp_path / 'missing') == platform.machine()


CONVOLUTION = '''
from common.backend import tf

@tf.function
def convolve(x, kernel):
  return tf.nn.conv2d(x, kernel, 2, 'VALID')

convolve(tf.ones([2, 64, 64, 3]), tf.ones([4, 4, 3, 8]))
'''


@pytest.mark.skipif(not machine.is_x86(), reason='of x86 processors')
@pytest.mark.parametrize('given, used', [({}, True), ({ONEDNN: '0'}, False)])
def test_convolutions_are_those_of_onednn_unless_it_is_off(given, used):
  others = {k: v for k, v in os.environ.items() if k != ONEDNN}
  done = subprocess.run(
      [sys.executable, '-c', CONVOLUTION], capture_output=True, text=True,
      check=True, env={**others, **given, 'ONEDNN_VERBOSE': '1'})
  # Matrix products are in either case.
  assert ('exec,cpu,convolution,' in done.stdout) == used, done.stdout


FAILED_GROWTH = '''
from common import machine
from common.backend import tf
import dreamer
from runs import devices

def fail(device, grows):
  raise ValueError('cannot grow')

tf.config.experimental.set_memory_growth = fail
tf.config.experimental.get_memory_growth = lambda device: False
real = tf.config.list_physical_devices
tf.config.list_physical_devices = lambda kind: real('CPU')
config = dreamer.define_config().parse(['--threads', '3'])
devices.configure(config)
print(tf.config.threading.get_intra_op_parallelism_threads())
tf.ones([])
config.threads = 2
devices.configure(config)
'''


def test_settings_without_effect_are_named_and_leave_the_others():
  found = subprocess.run(
      [sys.executable, '-c', FAILED_GROWTH], env=running.environment(),
      capture_output=True, text=True, check=True)
  assert found.stdout.split() == ['3']
  warnings = found.stderr.splitlines()
  assert warnings[0].startswith('warning: --gpu_growth True has no effect')
  assert any('--threads 2 has no effect' in line for line in warnings)
