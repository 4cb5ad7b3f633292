"""Updates and runs on a GPU, where there is one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import running
from common import files

# Metrics of the first update and a later one, and what computed them.
PROGRAM = '''
import json
from common.backend import tf
import dreamer
import running
from runs import devices

tf.config.experimental.enable_tensor_float_32_execution(False)
config = dreamer.define_config()
config.preset_name('debug')
config.pcont = True
config.update(MORE)
devices.configure(config)
agent = dreamer.Dreamer(config, 2)
batch = running.random_batch(config)
updates = [agent.train(batch) for _ in range(10)]
for metrics in updates[0], updates[-1]:
  print(json.dumps({name: float(x) for name, x in metrics.items()}))
print(devices.describe(agent))
'''


def environment(gpus):
  return running.environment({'CUDA_VISIBLE_DEVICES': gpus})


@pytest.fixture
def gpu():
  """The first GPU that programs may use, as CUDA_VISIBLE_DEVICES has it."""
  first = os.environ['GPUS_OF_TESTS'].split(',')[0]
  try:
    subprocess.run(['nvidia-smi', '-L'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    first = ''
  if not first:
    pytest.skip('no GPU')
  return first


def metrics(gpus, **more):
  done = subprocess.run(
      [sys.executable, '-c', f'MORE = {more}\n{PROGRAM}'],
      capture_output=True, text=True, env=environment(gpus), timeout=600)
  assert done.returncode == 0, done.stderr
  first, later, device = done.stdout.splitlines()[-3:]
  assert device.startswith('device GPU' if gpus else 'device CPU')
  return json.loads(first), json.loads(later)


@pytest.mark.parametrize('precision, jit', [
    ('32', 'False'), ('32', 'auto'), ('16', 'False'), ('16', 'auto')])
def test_the_update_is_that_of_a_cpu(gpu, precision, jit):
  expected, _ = metrics('', precision='32', jit='False')
  found, later = metrics(gpu, precision=precision, jit=jit)
  assert set(found) == set(expected)
  if precision == '16':  # Overflows at the first scale of its loss.
    del expected['model_grad_norm']
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, 2e-3, 1e-3, err_msg=name)
  assert np.isfinite(list(later.values())).all(), later


def test_a_run_goes_on(gpu, tmp_path):
  for steps in (400, 600):
    done = subprocess.run(
        [sys.executable, 'dreamer.py', *running.flags(
            tmp_path, task='hooks:good', steps=steps)],
        capture_output=True, text=True, cwd=files.ROOT, timeout=600,
        env=environment(gpu))
    assert done.returncode == 0, done.stderr
    assert 'device GPU' in done.stdout
    assert 'precision mixed float16' in done.stdout
    assert 'XLA' not in done.stderr  # That it cannot compile.
  assert 'continues at step 400' in done.stdout
