"""Reports of a run to its user: on the terminal, and through its logger."""

import contextlib
import os
import shlex
import shutil
import sys
import threading
import time

import numpy as np

from common import files, terminal
from data.logdir import Logdir
from runs import devices, logs


class Reports:
  """First and last lines, the live line, episodes and metrics of a run.

  Args:
    logger: `logs.Logger`, or `logs.NoLogger` where nothing is to be said.
    config: flags of the run.
    tasks: names of the tasks where metrics are kept by task, else None.
    quiet: whether to leave the terminal alone.
  """

  def __init__(self, logger, config, tasks, quiet):
    self._logger = logger
    self._config = config
    self._tasks = tasks
    self._quiet = quiet
    self._status = None
    self._built = False
    self._returns = {}
    self._measured = None

  def announce(self, agent, strategy, step, workers):
    """The first lines: the run, its flags, device and size."""
    if self._quiet:
      return
    c = self._config
    terminal.say(f'{agent.script} in {c.logdir}' + (
        f', chief of {workers} workers' * (workers > 1)))
    terminal.say(shlex.join(c.words()))
    terminal.say(devices.describe(agent, strategy))
    devices.check_gpu()
    if step:
      terminal.say(f'continues at step {step:,}')
    self._logger.text(step, 'config', logs.table(c.plain()))
    flags = {k: v for k, v in c.changed().items() if k != 'logdir'}
    self._logger.hyperparameters({
        'script': agent.script, 'task': c.task, 'seed': c.seed, **flags})
    if agent.report:
      terminal.say(agent.report)
      files.write_text(Logdir(c.logdir).transfer, agent.report + '\n')
      self._logger.text(step, 'transfer', logs.verbatim(agent.report))

  def phase(self, name, step, total):
    """Begins the live line of a phase."""
    self.close()
    self._status = terminal.Status(name, step, total, quiet=self._quiet)
    self._measured = time.monotonic(), step

  def progress(self, step):
    """Moves the live line."""
    self._status.update(step, self._note())

  def close(self):
    """Leaves the last live line on the screen."""
    if self._status:
      self._status.close()

  @contextlib.contextmanager
  def update(self, step):
    """Context of an update; the first builds its graph, and says so."""
    if self._built:
      yield
      return
    self._built = True
    began, done = time.monotonic(), threading.Event()
    words = 'building the graph of the update'
    if not self._quiet and not sys.stdout.isatty():
      terminal.say(f'{words} …')

    def show():
      while not done.wait(1):
        self._status.update(
            step, f'{words}, {time.monotonic() - began:.0f} s')

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
    seconds = time.monotonic() - began
    self._status.update(step, self._note())
    if seconds > 2 and not self._quiet:
      terminal.say(f'{words} took {terminal.duration(seconds)}')

  def episodes(
      self, mode, step, task, episodes, stored, stored_of_task, more=None):
    """A line for finished episodes: their mean return and length.

    Args:
      mode: 'train' or 'test'.
      step: environment step.
      task: name of the task.
      episodes: dicts with `reward` [records].
      stored: number of episodes in replay.
      stored_of_task: the same of the task alone.
      more: further numbers to report of the episodes, by name.
    """
    score = np.mean([episode['reward'].sum() for episode in episodes])
    length = np.mean([len(episode['reward']) - 1 for episode in episodes])
    values = {
        f'{mode}/return': score,
        f'{mode}/length': length * self._config.action_repeat,
        **{f'{mode}/{name}': value for name, value in (more or {}).items()},
        'episodes': stored}
    own = {}
    if self._tasks:
      own = {
          f'{task}/{name}': value for name, value
          in dict(values, episodes=stored_of_task).items()}
    # A curve in which tasks take turns says nothing.
    curves = own if self._mixed else {**values, **own}
    self._logger.scalars(step, {**values, **own}, 'sim', curves)
    self._returns[f'{mode}/{task}' if self._mixed else mode] = float(score)
    self.progress(step)

  def metrics(self, step, values):
    """A line of the agent's metrics, those that `values()` reads."""
    began, first = self._measured
    self._measured = time.monotonic(), step
    if not self._config.log_scalars:
      return
    values = values()
    # Over less than the interval, as after a restart, the rate is noise.
    if step - first >= self._config.log_every:
      values['fps'] = (step - first) / (self._measured[0] - began)
    self._logger.scalars(step, values, 'agent')

  def coverage(self, step, measures, line, warnings):
    """How parts of other agents fit the target, before the first update."""
    terminal.say(line)
    for warning in warnings:
      terminal.warn(warning)
    self._logger.scalars(step, measures, 'transfer')

  def farewell(self, step, stopped):
    """The last lines: how to go on."""
    if self._quiet:
      return
    if stopped:
      terminal.say(
          f'stopped at step {step:,}; the same command continues.')
    logdir = str(self._config.logdir)
    for verb, words in (
        ('play the agent', ['evaluate.py', '--from', logdir]),
        ('draw its curve', [
            'plotting.py', '--indir', logdir, '--outdir', './plots'])):
      terminal.say(f'{verb}:  {command(words)}')

  def state(self):
    return dict(self._returns)

  def restore(self, state):
    self._returns = dict(state)

  @property
  def _mixed(self):
    return bool(self._tasks) and len(self._tasks) > 1

  def _note(self):
    parts = []
    for mode in ('train', 'test'):
      found = {
          key: value for key, value in self._returns.items()
          if key.split('/')[0] == mode}
      words = ' '.join(
          f'{short(key[len(mode) + 1:])} {value:.1f}'.strip()
          for key, value in found.items())
      if words:
        parts.append(f'{mode} return {words}')
    return ' '.join(parts)


def short(task):
  """A task's name without the parts that many share."""
  return task.removesuffix('-v0').removesuffix('BulletEnv').removeprefix('dmc_')


def command(words):
  """A line for the shell that starts one of the project's programs."""
  python, program = sys.executable, files.ROOT / words[0]
  for name in ('python3', 'python'):
    found = shutil.which(name)
    # Not by identity: the Python of an environment is a link to another.
    if found and os.path.dirname(found) == os.path.dirname(python):
      python = name
      break
  else:
    python = relative(python)
  return shlex.join([python, relative(program), *words[1:]])


def relative(path):
  """A path from the working directory if it lies below it."""
  path, here = os.path.abspath(path), os.getcwd()
  return os.path.relpath(path, here) if path.startswith(here + '/') else path
