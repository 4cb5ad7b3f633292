"""Runs the small study of transfer that results/ reports: a table of commands.

python3 -m results.study --logdir ./logdir/study --jobs 2   runs what is missing
python3 -m results.study --do list                a command a line
python3 -m results.study --do keep                keeps what is complete
python3 -m results.study --do draw                figures of what --out holds
python3 -m results.study --do try                 twenty minutes of transfer

It may be stopped at any moment, its runs save themselves; the same command
continues. A run that is complete is kept in --out, from where it counts and
its source is read: the rest may be run elsewhere. Any of its commands may as
well be typed by hand.
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

# Signals that end a study, and its runs.
ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

# The study: all commands, their order and the figures follow from this table.

# Seeds of the targets, and of the sources that each starts from. With the same
# seed a source would have begun with the fresh weights of its target.
SEEDS = {10: 110, 11: 111, 12: 112}
# Learned together by the source of transfer.
SOURCES = 'InvertedDoublePendulumBulletEnv-v0', 'Walker2DBulletEnv-v0'
# The factors ω of fractional transfer on each target.
TARGETS = {
    'InvertedPendulumBulletEnv-v0': (0.0, 0.2, 0.5),
    'HopperBulletEnv-v0': (0.0, 0.2, 0.5)}
# Factors that complete the grid.
GRID = {'InvertedPendulumBulletEnv-v0': (0.1, 0.3, 0.4)}
# All is copied, but the weights of actions and the actor's output, of which the
# source has another number. The factor only names the method in figures.
FULL = dict(scale='', transfer_factor=1.0)
# Broken on purpose: the policy learns in a model whose transitions do not.
BROKEN = {'InvertedPendulumBulletEnv-v0': dict(freeze='^dynamics.(gru|img)')}
# Copies of the source's autoencoder alone, by what of it is not trained: is it
# what harms in meta-model transfer?
AUTOENCODER = {'InvertedPendulumBulletEnv-v0': dict(
    fixed='^(encoder|decoder)/', trained='')}
# Environment steps; those of the source are shared by its tasks.
SOURCE_STEPS = 40_000
SINGLE_STEPS = 15_000
STEPS = {
    'InvertedPendulumBulletEnv-v0': 25_000, 'HopperBulletEnv-v0': 50_000}
# Of every run. With one thread it repeats bit for bit.
FLAGS = dict(
    preset='cpu', cnn_depth=8, deter_size=64, num_units=64, termination=True,
    threads=1, prefill=1000, eval_every=1000, eval_episodes=2, log_images=False)
# Of the two runs of --do try: this target, from the source in results/.
TRIAL_TASK = 'InvertedPendulumBulletEnv-v0'
TRIAL = dict(steps=60_000, eval_every=2500)



def define_config():
  config = flags.Config()
  define = config.define
  define('do', 'run', 'What to do; see above.',
         ['run', 'list', 'keep', 'draw', 'try'])
  define('logdir', pathlib.Path('./logdir/study'), 'Where runs are, as '
         'TASK/METHOD/SEED.')
  define('out', pathlib.Path('./results'), 'Where results are kept.')
  define('plots', pathlib.Path('./plots'), 'Where --do try draws.')
  define('only', '', 'Pattern on TASK/METHOD/SEED: these runs, and the sources '
         'that they need.')
  define('jobs', 2, 'Runs side by side; each takes a core.', low=1)
  return config


def main(argv):
  config = define_config().command(argv, __doc__)
  runs = all_runs(config.logdir, config.out)
  if config.do == 'try':
    return trial(config)
  if config.do == 'draw':
    return draw(drawings(config.out))
  chosen = select(runs, config.only)
  if config.do == 'run':
    return work(chosen, config, runs)
  if config.do == 'keep':
    with Logdir(config.logdir).lock():
      done = keep(chosen)
      keeping.write_table(runs, config.out)
    terminal.say(f'{len(done)} of {len(chosen)} runs are complete.')
    return None
  for run in chosen:
    terminal.say(f'{run.command}  # {state(run)}')


def state(run):
  """How far a run is, and what it reads that is not kept yet."""
  if keeping.kept(run):
    return 'complete'
  missing = [other.name for other in run.after if not keeping.kept(other)]
  return f'at step {keeping.reached(run):,}' + (
      f', after {" and ".join(missing)}' * bool(missing))


# The commands


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


def make_run(
    logdir, out, name, script, seed, after=(), file=None, *, steps, **own):
  values = {**FLAGS, 'seed': seed, 'steps': steps, **own}
  name = f'{name}/{seed}'
  return Run(
      name, logdir / name, out / 'runs' / name, script, values, tuple(after),
      file)


def all_runs(logdir, out):
  """The runs of the table, each after those that it reads.

  Seed by seed; the grid of factors and what is to explain come last.
  """
  runs = []

  def add(*args, **own):
    runs.append(make_run(logdir, out, *args, **own))
    return runs[-1]

  def transfer(name, task, seed, source, **own):
    add(name, 'dreamer-FTL.py', seed, [source], task1=task,
        transfer=True, source=str(source.file), steps=STEPS[task], **own)

  def fractional(task, factors, *args):
    for factor in factors:
      transfer(
          f'{task}/fractional-{factor}', task, *args, transfer_factor=factor)

  sources = {}
  for seed, earlier in SEEDS.items():
    folder = out / 'sources' / str(earlier)
    source = sources[seed] = add(
        'sources/multi-task', 'dreamer-multi-task.py', earlier,
        file=folder / 'multi-task.pkl', steps=SOURCE_STEPS,
        **numbered('task', SOURCES))
    frozen = dict(encoder=str(source.file))
    singles = [
        add(f'{task}/frozen-autoencoder', 'dreamer-MMTL.py', earlier, [source],
            file=folder / f'{task}.pkl', task1=task, n_meta=0,
            steps=SINGLE_STEPS, **frozen)
        for task in SOURCES]
    models = numbered('meta', [str(single.file) for single in singles])
    for task, factors in TARGETS.items():
      add(f'{task}/scratch', 'dreamer.py', seed, task=task, steps=STEPS[task])
      fractional(task, factors, seed, source)
      transfer(f'{task}/full', task, seed, source, **FULL)
      add(f'{task}/meta-model', 'dreamer-MMTL.py', seed, [source, *singles],
          task1=task, n_meta=len(singles), steps=STEPS[task], **frozen,
          **models)
  for seed, source in sources.items():
    for task, factors in GRID.items():
      fractional(task, factors, seed, source)
    for task, broken in BROKEN.items():
      add(f'ablation/{task}/broken', 'dreamer.py', seed, task=task,
          steps=STEPS[task], **broken)
    for task, kinds in AUTOENCODER.items():
      for kind, freeze in kinds.items():
        transfer(f'autoencoder/{task}/{kind}', task, seed, source, scale='',
                 copy='^(encoder|decoder)/', freeze=freeze, transfer_factor=0.0)
  return runs


def numbered(name, values):
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


# Running them


def work(runs, config, study=()):
  """Runs what is missing, `jobs` at a time; returns the exit status.

  A signal ends the study, and is passed on to its runs so that they save. The
  table of results has a line for each run of `study`.
  """
  done = keep(runs)
  waiting = [run for run in runs if run not in done]
  terminal.say(f'{len(done)} of {len(runs)} runs are complete.')
  going, failed, came, status = {}, [], [], 0
  progress = Progress(waiting)
  with Logdir(config.logdir).lock(), signals.handled(
      ENDING, came.append, ignorable=ENDING):
    try:
      while True:
        ready = [run for run in waiting if done.issuperset(run.after)]
        for run in ready[:0 if status else config.jobs - len(going)]:
          waiting.remove(run)
          going[run] = start(run), time.monotonic()
        if not going:
          break
        time.sleep(0.3)
        progress.show()
        while came:
          status = 128 + came.pop(0)
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
          remain = len(runs) - len(done)
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
      if study:
        keeping.write_table(study, config.out)
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


class Progress:
  """Environment steps of several runs together, as a live line."""

  def __init__(self, runs):
    self._runs = runs.copy()
    self._due = time.monotonic()
    steps = sum(run.flags['steps'] for run in runs)
    self._status = terminal.Status('study', self._steps(), steps, quiet=not runs)

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


# Figures


def drawings(out):
  """The arguments of plotting.py for each folder of figures."""
  runs = out / 'runs'
  first, (broken, changed) = next(iter(TARGETS)), next(iter(BROKEN.items()))
  (flag, value), = changed.items()
  (puzzle, kinds), = AUTOENCODER.items()
  shared = sorted(set.intersection(*map(set, TARGETS.values())))
  factors = '|'.join(f'{factor:g}' for factor in shared)
  least = min(STEPS.values())
  scratch = 'dreamer', 'Scratch'
  # Each seed has a source of its own.
  merge = '--merge', 'source|encoder|meta.'
  meta = f'MMTL N={len(SOURCES)}', 'Meta-model'
  parts = [
      word for kind, freeze in kinds.items()
      for word in (f'FTL ω=0 freeze={freeze}', f'Autoencoder, {kind}')]
  targets = (
      [runs / task for task in TARGETS], *merge, '--transfer-report',
      '--methods', f'^dreamer$|ω=({factors}|1)$|^MMTL', '--labels', *scratch,
      'FTL ω=1', 'Full transfer', *meta)

  def plot(folder, indirs, *words):
    return [
        '--indir', *map(str, indirs), '--outdir', str(out / 'figures' / folder),
        '--subdir', 'False', '--aggregate', 'iqm', '--bins',
        str(max(least // 10, FLAGS['eval_every'])), *words]

  return [
      plot('targets', *targets),
      plot('first_stage', *targets, '--until', str(least)),
      plot('omega', [runs / first], *merge, '--transfer-report', '--methods',
           '^dreamer$|ω=0'),
      plot('sources', [runs / name for name in ('sources', *SOURCES)],
           *merge),
      plot('broken', [runs / broken / 'scratch', runs / 'ablation' / broken],
           '--labels', f'dreamer {flag}=', 'Dreamer',
           f'dreamer {flag}={value}', 'Broken on purpose'),
      plot('autoencoder',
           [runs / puzzle / name for name in ('scratch', 'meta-model')] +
           [runs / 'autoencoder' / puzzle], *merge, '--transfer-report',
           '--labels', *scratch, *meta, *parts)]


def draw(commands):
  """Runs plotting.py; returns the exit status."""
  statuses = []
  for words in commands:
    terminal.say('\n' + shlex.join(['python3', 'plotting.py', *words]))
    statuses.append(subprocess.run(
        [sys.executable, str(files.ROOT / 'plotting.py'), *words]).returncode)
  return max(statuses)


def trial(config):
  """Transfer from the source of the results beside training from scratch."""
  earlier = next(iter(SEEDS.values()))
  source = config.out / 'sources' / str(earlier) / 'multi-task.pkl'
  if not source.exists():
    raise terminal.UserError(
        f'{source} is missing: it comes with the repository, or from make '
        'study.')
  logdir = config.logdir / 'try'
  runs = [
      make_run(
          logdir, logdir / 'results', f'{TRIAL_TASK}/{method}', script, 0,
          **own, **TRIAL)
      for method, script, own in (
          ('scratch', 'dreamer.py', dict(task=TRIAL_TASK)),
          ('fractional', 'dreamer-FTL.py', dict(
              task1=TRIAL_TASK, transfer=True, transfer_factor=0.2,
              source=str(source))))]
  return work(runs, config) or draw([[
      '--indir', str(logdir / TRIAL_TASK), '--outdir', str(config.plots),
      '--subdir', 'False', '--bins', str(TRIAL['eval_every'])]])


if __name__ == '__main__':
  terminal.run(main)
