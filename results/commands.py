"""Commands of a table that run side by side, are stopped, continued and kept.

A table is a module beside this one, such as study.py: its runs, in the order in
which they are started, and figures of what is kept of them. Everything that
reads --do, --only, --jobs, --logdir and --out for it is here.
"""

import dataclasses
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

from common import files, flags, terminal
from data.logdir import Logdir
from results import keeping
from runs import signals

# Signals that end the program, and its runs.
ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def define_config(logdir, out, jobs, *more):
  """The flags of every table; `more` are further values of --do."""
  config = flags.Config()
  define = config.define
  define('do', 'run', 'What to do; see above.',
         ['run', 'list', 'keep', 'draw', *more])
  define('logdir', pathlib.Path(logdir), 'Where runs are, as '
         'TASK/METHOD/SEED.')
  define('out', pathlib.Path(out), 'Where results are kept.')
  define('only', '', 'Pattern on TASK/METHOD/SEED: these runs, and the sources '
         'that they need.')
  define('jobs', jobs, 'Runs side by side; each takes a core.', low=1)
  return config


def follow(chosen, config, title, table):
  """Does what --do run, list or keep ask; returns the exit status.

  Args:
    chosen: runs that `select` leaves.
    config: flags from `define_config`.
    title: word in the live line.
    table: all runs, of each of which runs.csv has a line.
  """
  if config.do == 'run':
    return work(chosen, config, title, table)
  if config.do == 'keep':
    with Logdir(config.logdir).lock():
      done = keep(chosen)
      keeping.write_table(table, config.out)
    say_complete(chosen, wanted(chosen, done))
    return 0
  for run in chosen:
    terminal.say(f'{run.command}  # {state(run)}')
  return 0


# Runs


@dataclasses.dataclass(eq=False)
class Run:
  """A command, where it writes, and the runs that it reads.

  `results` is what is kept of it, `file` what others start from if it is a
  source.
  """

  name: str
  logdir: pathlib.Path
  results: pathlib.Path
  script: str
  flags: dict
  after: tuple = ()
  file: pathlib.Path = None

  @property
  def output(self):
    return self.logdir / 'output.txt'

  @property
  def words(self):
    """The arguments of the script."""
    values = {'logdir': self.logdir, **self.flags}
    return [word for k, v in values.items() for word in (f'--{k}', str(v))]

  @property
  def command(self):
    """The command as a user would type it."""
    return shlex.join(['python3', self.script, *self.words])


def make_run(logdir, out, name, script, values, after=(), file=None):
  """The run TASK/METHOD/SEED, from TASK/METHOD and its flags, --seed too."""
  name = f'{name}/{values["seed"]}'
  return Run(
      name, logdir / name, out / 'runs' / name, script, values, tuple(after),
      file)


def numbered(name, values):
  """Flags `name1`, `name2` and so on."""
  return {f'{name}{index}': value for index, value in enumerate(values, 1)}


def select(runs, pattern):
  """The runs whose names the pattern finds, and those that they read."""
  try:
    chosen = {run for run in runs if re.search(pattern, run.name)}
  except re.error as error:
    raise terminal.UserError(
        f"--only '{pattern}' is not a regular expression: {error}.") from None
  for run in reversed(runs):
    if run in chosen:
      chosen.update(run.after)
  if not chosen:
    raise terminal.UserError(
        f"--only '{pattern}' fits no run: --do list shows them.")
  return [run for run in runs if run in chosen]


def state(run):
  """How far a run is, and what it reads that is not kept yet."""
  if keeping.kept(run):
    return 'complete'
  if keeping.recorded(run):
    return f'complete, but {run.file} is not here'
  missing = [other.name for other in run.after if not keeping.kept(other)]
  return f'at step {keeping.reached(run):,}' + (
      f', after {" and ".join(missing)}' * bool(missing))


# Running them


def work(runs, config, title, table=()):
  """Runs what is missing, `jobs` at a time; returns the exit status.

  A signal ends the program, and is passed on to its runs so that they save. What
  another process makes, as after a kill of this program, is waited for.
  `title` and `table` are those of `follow`.
  """
  done = keep(runs)
  waiting = wanted(runs, done)
  for run in waiting:
    if keeping.other_schedule(run):
      raise terminal.UserError(
          f'{run.logdir} holds a run whose learning rates fell over other '
          f'--steps than {run.flags["steps"]:,}: move it away, and the same '
          'command makes it anew.')
  total = len(waiting) + len(done)
  say_complete(runs, waiting)
  going, told, failed, came, status = {}, [], [], [], 0
  progress = Progress(waiting, title)
  with Logdir(config.logdir).lock(), signals.handled(
      ENDING, came.append, ignorable=ENDING):
    try:
      while True:
        elsewhere = {
            run: holder for run in waiting
            for holder in [Logdir(run.logdir).holder()] if holder}
        for run in [run for run in elsewhere if run not in told]:
          told.append(run)
          terminal.say(f'waits    for {run.name}, of process {elsewhere[run]}')
        for run in [run for run in told if run not in elsewhere]:
          told.remove(run)
          if keeping.complete(run):
            waiting.remove(run)
            done |= keep([run])
            terminal.say(f'done     {run.name}; {total - len(done)} remain')
        ready = [
            run for run in waiting
            if run not in elsewhere and done.issuperset(run.after)]
        free = config.jobs - len(going) - len(elsewhere)
        for run in ready[:0 if status else max(0, free)]:
          waiting.remove(run)
          going[run] = start(run), time.monotonic()
        if not going and (status or not elsewhere):
          break
        time.sleep(0.3)
        progress.show()
        while came:
          number = came.pop(0)
          if status and number == signal.SIGHUP:
            continue  # A second signal would keep runs from saving.
          status = 128 + number
          for process, _ in going.values():
            process.terminate()
        for run, (process, began) in [*going.items()]:
          if process.poll() is None:
            continue
          del going[run]
          if keeping.complete(run):
            word = 'done'
            done |= keep([run])
          else:
            word = 'stopped' if status else 'failed'
          remain = total - len(done)
          terminal.say(
              f'{word:<8} {ended(run, process, began)}; {remain} remain')
          if word == 'failed':
            failed.append(run.name)
            terminal.say(last_words(run))
    finally:
      progress.close()
      for process, _ in going.values():
        process.terminate()
      for process, _ in going.values():
        process.wait()
      if table:
        keeping.write_table(table, config.out)
  if status:
    terminal.say('stopped; the same command continues.')
  elif failed:
    terminal.say(f'failed: {", ".join(failed)}' + (
        f'; {len(waiting)} runs need what failed' * bool(waiting)))
  return status or int(bool(failed))


def keep(runs):
  """Keeps the runs that are complete; returns all that are."""
  done = set()
  for run in runs:
    if not keeping.kept(run):
      if not keeping.complete(run):
        continue
      keeping.keep(run)
    done.add(run)
  return done


def wanted(runs, done):
  """The runs that are to be made, in their order.

  A source of which the file alone is missing, as in a fresh clone, is made
  again only for runs that read it.
  """
  chosen = []
  for run in reversed(runs):
    read = any(run in other.after for other in chosen)
    if run not in done and (read or not keeping.recorded(run)):
      chosen.append(run)
  return chosen[::-1]


def say_complete(runs, waiting):
  terminal.say(f'{len(runs) - len(waiting)} of {len(runs)} runs are complete.')


class Progress:
  """Environment steps of several runs together, as a live line."""

  def __init__(self, runs, title):
    self._runs = runs.copy()
    self._due = time.monotonic()
    steps = sum(run.flags['steps'] for run in runs)
    self._status = terminal.Status(title, self._steps(), steps, quiet=not runs)

  def _steps(self):
    return sum(keeping.reached(run) for run in self._runs)

  def show(self):
    """Looks at the runs every five seconds."""
    if time.monotonic() >= self._due:
      self._status.update(self._steps())
      self._due = time.monotonic() + 5

  def close(self):
    self._status.update(self._steps())
    self._status.close()


def start(run):
  """The process of a run, whose output goes on in a file beside it."""
  terminal.say(f'start    {run.name} at step {keeping.reached(run):,}')
  keeping.begin(run)
  # In a session of its own, so that Ctrl-C reaches it once: a second signal
  # would keep it from saving.
  with files.writing(run.output), run.output.open('ab') as file:
    return subprocess.Popen(
        [sys.executable, str(files.ROOT / run.script), *run.words],
        stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        start_new_session=True)


def ended(run, process, began):
  time_taken = terminal.duration(time.monotonic() - began)
  status = process.returncode
  return (
      f'{run.name} at step {keeping.reached(run):,} after {time_taken}' +
      f' with exit status {status}' * bool(status))


def last_words(run):
  lines = run.output.read_text(errors='replace').splitlines()
  return '\n'.join([f'{run.output} ends with', *lines[-8:]])


def draw(commands, out):
  """Runs plotting.py for each of these; returns the exit status.

  Args:
    commands: lists of arguments; none is an error.
    out: where the runs are kept that they draw.
  """
  if not commands:
    raise terminal.UserError(
        f'{out} has no runs to compare yet: the same command without --do draw '
        'makes them.')
  statuses = []
  for words in commands:
    terminal.say('\n' + shlex.join(['python3', 'plotting.py', *words]))
    statuses.append(subprocess.run(
        [sys.executable, str(files.ROOT / 'plotting.py'), *words]).returncode)
  # One that a signal ended has a negative status.
  return next((abs(status) for status in statuses if status), 0)
