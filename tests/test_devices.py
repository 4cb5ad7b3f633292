"""Several devices together make the update of one on the joined batch."""

import subprocess
import sys

import running

# The devices of a process are fixed when TensorFlow starts.
PROGRAM = '''
import numpy as np
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
for agent in (one, two):
  names = diagnosis.bad_numbers(agent, bad)
  assert names[:2] == ['data reward', 'likelihood reward'], names
  assert not diagnosis.bad_numbers(agent, batch)
  assert not diagnosis.bad_variables(agent)
print('equal')
'''


def test_two_devices_make_the_update_of_one():
  done = subprocess.run(
      [sys.executable, '-c', PROGRAM], capture_output=True, text=True,
      env=running.environment(), timeout=300)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().endswith('equal')
