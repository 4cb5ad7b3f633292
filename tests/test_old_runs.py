"""Log directories that the code of commit 000f46c wrote go on as there.

`data/old_runs` has four runs that it stopped, three of them in the middle of
an episode, and what it made of them when it continued.
"""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data import checkpoints

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ROOT / 'tests' / 'data' / 'old_runs'
EXPECTED = json.loads((RUNS / 'expected.json').read_text())
SCRIPTS = {
    'single': 'dreamer.py', 'multi': 'dreamer-multi-task.py',
    'ftl': 'dreamer-FTL.py', 'mmtl': 'dreamer-MMTL.py'}
DEFINE = (
    'task', 'task1', 'task2', 'transfer', 'source', 'n_meta', 'meta1',
    'encoder')


def tolerance(key, row):
  """How far a metric may be off, as a share of it.

  A processor that rounds otherwise changes the last bits of an action, and feet
  on the ground soon make another episode of that.
  """
  chaotic = key.endswith('/return') and any('Hopper' in name for name in row)
  return 0.2 if chaotic else 1e-3


@pytest.mark.parametrize('name', SCRIPTS)
def test_run_goes_on_as_in_the_code_that_wrote_it(name, tmp_path):
  logdir = tmp_path / name
  shutil.copytree(RUNS / name, logdir)
  saved = json.loads((logdir / 'config.json').read_text())
  flags = {
      'preset': 'debug', 'threads': 1, 'log_images': False,
      **{key: saved[key] for key in DEFINE if saved.get(key)},
      'steps': EXPECTED[name]['steps'], 'logdir': logdir}
  subprocess.run(
      [sys.executable, ROOT / SCRIPTS[name],
       *(str(x) for k, v in flags.items() for x in (f'--{k}', v))],
      check=True, stdout=subprocess.DEVNULL)
  rows = [
      json.loads(line)
      for line in (logdir / 'metrics.jsonl').read_text().splitlines()]
  assert len(rows) == len(EXPECTED[name]['metrics'])
  for row, expected in zip(rows, EXPECTED[name]['metrics']):
    assert {key: row[key] for key in expected} == {
        key: pytest.approx(value, abs=1e-3, rel=tolerance(key, row))
        for key, value in expected.items()}
  # To the bit on the machine that wrote them; others round otherwise.
  variables = checkpoints.load(logdir / 'variables.pkl')['variables']
  for key, (total, size) in EXPECTED[name]['sums'].items():
    array = np.float64(variables[key])
    np.testing.assert_allclose(
        [array.sum(), np.abs(array).sum()], [total, size], atol=1e-4 * size,
        err_msg=key)
