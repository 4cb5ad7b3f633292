"""Starts runs, in this process or in one of their own, and reads their logs."""

import contextlib
import csv
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from common import options
from data import checkpoints

ROOT = pathlib.Path(__file__).parent.parent
SWINGUP = 'InvertedPendulumSwingupBulletEnv-v0'


def flags(logdir, **values):
  """Arguments of a debug run."""
  values = {
      'logdir': logdir, 'preset': 'debug', 'task': SWINGUP,
      'log_images': False, **values}
  return [word for k, v in values.items() for word in (f'--{k}', str(v))]


def run(logdir, **values):
  """Runs in this process as the script would; returns the exit status."""
  import dreamer
  from common import terminal
  try:
    terminal.run(dreamer.main, flags(logdir, **values))
  except SystemExit as exit:
    return exit.code


def environment(more=()):
  """Variables for a program that imports the modules of the project."""
  paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
  return {**os.environ, 'PYTHONPATH': paths, **dict(more)}


def random_batch(config):
  """A batch for two actions, in which episodes begin here and there."""
  rng = np.random.default_rng(0)
  shape = config.batch_size, config.batch_length
  return {
      'image': rng.integers(0, 256, (*shape, 64, 64, 3), dtype=np.uint8),
      'action': rng.uniform(-1, 1, (*shape, 2)).astype(np.float32),
      'reward': rng.normal(size=shape).astype(np.float32),
      'discount': np.ones(shape, np.float32),
      'first': rng.uniform(size=shape) < 0.1}


class Process:
  """A run in a process of its own."""

  def __init__(self, logdir, env=None, **values):
    self.logdir = pathlib.Path(logdir)
    self.output = ''
    # A pipe would be full one day.
    self._file = tempfile.TemporaryFile('w+')
    self.popen = subprocess.Popen(
        [sys.executable, str(ROOT / 'dreamer.py'), *flags(logdir, **values)],
        stdout=self._file, stderr=subprocess.STDOUT, cwd=ROOT / 'tests',
        env={**os.environ, **(env or {})})

  def wait_for(self, condition, seconds=500, pause=0.01):
    """Waits until `condition()` holds; the run must still be going then."""
    limit = time.monotonic() + seconds
    while not condition():
      if self.popen.poll() is not None or time.monotonic() > limit:
        self.end(signal.SIGKILL)
        raise AssertionError(f'too late: {self.output}')
      time.sleep(pause)

  def end(self, *signals):
    """Sends signals, all at once; returns the exit status."""
    if len(signals) > 1:  # A stopped process gets them together.
      self.popen.send_signal(signal.SIGSTOP)
    for number in signals:
      self.popen.send_signal(number)
    if len(signals) > 1:
      self.popen.send_signal(signal.SIGCONT)
    status = self.popen.wait(timeout=300)
    self._file.seek(0)
    self.output = self._file.read()
    return status

  def peek(self):
    """What the run has printed so far."""
    return pathlib.Path(f'/proc/self/fd/{self._file.fileno()}').read_text()

  def workers(self):
    """Ids of the worker processes."""
    return [
        pid for pid, (parent, command) in processes().items()
        if parent == self.popen.pid and 'workers.serve' in command]


def evaluations(steps, every=100):
  return [
      {'step': step, 'test/return': float(step)}
      for step in range(every, steps + 1, every)]


def write_run(run, lines=None, agent=None, updates=1, **config):
  """A log directory as the scripts leave it at their end."""
  run.logdir.mkdir(parents=True, exist_ok=True)
  defaults = options.SCRIPTS[run.script]()
  config = {
      'script': run.script, 'run': f'{hash(run.name):x}',
      **defaults.parse(run.words).plain(), **config}
  (run.logdir / 'config.json').write_text(json.dumps(config, indent=2))
  if lines is None:
    lines = evaluations(run.flags['steps'])
  (run.logdir / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines))
  progress = {'seconds': 1800.0}
  if agent:
    agent.save(run.logdir / 'variables.pkl', run='id', progress=progress)
  else:
    checkpoints.save(run.logdir / 'variables.pkl', {
        'format': checkpoints.CHECKPOINT, 'script': run.script, 'step': 1,
        'action_dim': 1, 'config': {}, 'variables': {}, 'updates': updates,
        'progress': progress})


def read_csv(path):
  """The rows of a table as dictionaries of text."""
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def processes():
  """`{id: (parent, command line)}` of the processes of this machine."""
  found = {}
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      stat = (path / 'stat').read_text().rpartition(')')[2].split()
      if stat[0] != 'Z':
        command = (path / 'cmdline').read_text().replace('\0', ' ')
        found[int(path.name)] = int(stat[1]), command
  return found


def lines(logdir):
  """Lines of metrics.jsonl without the one number that measures time."""
  path = pathlib.Path(logdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  found = [json.loads(line) for line in path.read_text().splitlines()]
  for line in found:
    line.pop('fps', None)
  return found


def episodes(logdir):
  """Names of the episodes, oldest first."""
  return sorted(
      path.name for path in (pathlib.Path(logdir) / 'episodes').glob('*.npz'))


def content(logdir):
  """`{name: bytes}` of all files but the lock, which has no content to keep."""
  return {
      str(path.relative_to(logdir)): path.read_bytes()
      for path in pathlib.Path(logdir).rglob('*')
      if path.is_file() and path.name != '.lock'}


@contextlib.contextmanager
def at_call(owner, name, count, action):
  """Does `action()` before call number `count` of a method."""
  real = getattr(owner, name)
  calls = 0

  def method(*args, **kwargs):
    nonlocal calls
    calls += 1
    if calls == count:
      action()
    return real(*args, **kwargs)

  setattr(owner, name, method)
  try:
    yield
  finally:
    setattr(owner, name, real)


def signal_at(owner, name, count, number=signal.SIGTERM):
  """Sends this process a signal before call number `count` of a method."""
  return at_call(owner, name, count, lambda: os.kill(os.getpid(), number))


def script_module(name):
  """The entry script called `name`, whose dash forbids a plain import."""
  if name == 'dreamer.py':
    return importlib.import_module('dreamer')
  path = ROOT / name
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
