"""Runs the small study of transfer that results/ reports: a table of commands.

python3 -m results.study --logdir ./logdir/study --jobs 2   runs what is missing
python3 -m results.study --do list                          shows every command
python3 -m results.study --do draw                          figures of what --out holds
python3 -m results.study --do try                           twenty minutes of transfer

It may be stopped at any moment, its runs save themselves; the same command
continues. A run that is complete is kept in --out, from where it counts and
its source is read: the rest may be run elsewhere. Any of its commands may as
well be typed by hand.
"""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

from common import files, flags, options, terminal
from data import checkpoints
from data.logdir import CONFIG, Logdir, TRANSFER

# The study: all commands, their order and the figures follow from this table.

# Seeds of the targets, and of the sources that each starts from. Were they the
# same, a source would have begun with the fresh weights of its target.
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

AGENT_LINES = 200  # that are kept of a run's metrics.jsonl


def define_config():
  config = flags.Config()
  define = config.define
  define('do', 'run', 'What to do; see above.',
         ['run', 'list', 'draw', 'try'])
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
  for run in chosen:
    state = 'complete' if kept(run) else f'{reached(run):,}'
    terminal.say(f'{state:>9}  {run.command}')


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
  def words(self):
    """The arguments of the script."""
    values = {'logdir': self.logdir, **self.flags}
    return [word for k, v in values.items() for word in (f'--{k}', str(v))]

  @property
  def command(self):
    """What a user would type."""
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


# What became of them


def rows(path):
  """Lines of JSON, but for one that a crash cut off."""
  found = []
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(ValueError):
      found.append(json.loads(line))
  return found


def saved_flags(folder):
  """The configuration in a log directory; empty if it cannot be read."""
  with contextlib.suppress(terminal.UserError):
    return Logdir(folder).read_config()
  return {}


def is_of(run, folder):
  """Whether a directory holds a run with these flags, or continues as one."""
  saved = saved_flags(folder)
  config = options.SCRIPTS[run.script]().parse(run.words)
  return saved.get('script') == run.script and all(
      saved.get(key, config.default(key)) == value
      for key, value in config.plain().items() if config.fixed(key))


def reached(run, key='step'):
  """The last step that the metrics report of `key`, 0 if there is none."""
  return max(
      (row['step'] for row in rows(Logdir(run.logdir).metrics) if key in row),
      default=0)


def complete(run):
  """Whether a run has been evaluated at its end, and saved afterwards.

  One that has other flags is not: when it is started again, it says which.
  """
  metrics = Logdir(run.logdir).metrics
  checkpoint = Logdir(run.logdir).checkpoint
  return (
      is_of(run, run.logdir)
      and reached(run, 'test/return') >= run.flags['steps']
      and checkpoint.exists()
      and checkpoint.stat().st_mtime_ns >= metrics.stat().st_mtime_ns)


def kept(run):
  """Whether the results hold a run, and what others start from."""
  steps = [row['steps'] for row in rows(run.results / 'run.json')]
  return (
      is_of(run, run.results) and bool(steps)
      and steps[0] >= run.flags['steps']
      and (run.file is None or run.file.exists()))


# Running them


def work(runs, config, study=()):
  """Runs what is missing, `jobs` at a time; returns the exit status.

  The table of results has a line for each run of `study`.
  """
  done = set()

  def finish(run):
    if not kept(run):
      keep(run)
    done.add(run)

  for run in runs:
    if kept(run) or complete(run):
      finish(run)
  waiting = [run for run in runs if run not in done]
  terminal.say(f'{len(done)} of {len(runs)} runs are complete.')
  going, failed = [], []
  with Logdir(config.logdir).lock(), Signals() as signals:
    try:
      while True:
        ready = [run for run in waiting if done.issuperset(run.after)]
        free = 0 if signals.status else config.jobs - len(going)
        for run in ready[:free]:
          waiting.remove(run)
          going.append(Child(run))
        if not going:
          break
        time.sleep(0.3)
        signals.forward(going)
        for child in [child for child in going if child.ended]:
          going.remove(child)
          if complete(child.run):
            word = 'done'
            finish(child.run)
          elif signals.status:
            word = 'stopped'
          else:
            word = 'failed'
            failed.append(child.run.name)
          terminal.say(
              f'{word:<8} {child.report()}; {len(runs) - len(done)} remain')
          if word == 'failed':
            terminal.say(child.last_words())
    finally:
      for child in going:
        child.stop()
      if study:
        write_table(study, config.out)
  if signals.status:
    terminal.say('stopped; the same command continues.')
  elif failed:
    terminal.say(f'failed: {", ".join(failed)}' + (
        f'; {len(waiting)} runs need what failed' * bool(waiting)))
  return signals.status or int(bool(failed))


class Child:
  """The process of a run."""

  def __init__(self, run):
    self.run = run
    self._began = time.monotonic()
    self._output = run.logdir / 'output.txt'
    terminal.say(f'start    {run.name} at step {reached(run):,}')
    make_directory(run.logdir)
    with (run.logdir / 'sessions.jsonl').open('a') as file:
      file.write(json.dumps(session(run)) + '\n')
    # In a session of its own, so that Ctrl-C reaches it once: a second signal
    # would keep it from saving.
    with self._output.open('ab') as file:
      self._process = subprocess.Popen(
          [sys.executable, str(files.ROOT / run.script), *run.words],
          stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
          start_new_session=True)

  @property
  def ended(self):
    return self._process.poll() is not None

  def terminate(self):
    self._process.terminate()

  def stop(self):
    self.terminate()
    self._process.wait()

  def report(self):
    time_taken = terminal.duration(time.monotonic() - self._began)
    status = self._process.returncode
    return (
        f'{self.run.name} at step {reached(self.run):,} after {time_taken}' +
        f' with exit status {status}' * bool(status))

  def last_words(self):
    lines = self._output.read_text(errors='replace').splitlines()
    return '\n'.join([f'{self._output} ends with', *lines[-8:]])


class Signals:
  """Signals that end the study; they are passed on to its runs."""

  statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

  def __enter__(self):
    self.status = 0
    self._came = []
    # What is ignored, by nohup for example, stays ignored.
    self._previous = {
        number: signal.signal(number, lambda which, _: self._came.append(which))
        for number in self.statuses
        if signal.getsignal(number) != signal.SIG_IGN}
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def forward(self, children):
    while self._came:
      self.status = self.statuses[self._came.pop(0)]
      for child in children:
        child.terminate()


def session(run):
  """What to know of a run beside its flags."""
  return dict(
      began=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
      commit=commit(), machine=machine(), command=run.command)


def commit():
  """The commit of the code, marked if a file of it was changed since."""
  def git(*words):
    return subprocess.run(
        ['git', *words], cwd=files.ROOT, capture_output=True, text=True)

  with contextlib.suppress(OSError):
    name = git('rev-parse', '--short', 'HEAD').stdout.strip()
    changed = git('diff', '--quiet', 'HEAD', '--', '*.py').returncode
    return name and name + '-dirty' * bool(changed) or 'unknown'
  return 'unknown'


def machine():
  cpu = re.search(
      r'model name\s*: (.*)', pathlib.Path('/proc/cpuinfo').read_text())
  return (
      f'{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, '
      f'Python {platform.python_version()}')


def make_directory(path):
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise terminal.UserError(
        f'{path} cannot be made: {error.strerror}.') from None


# Results


def write_table(runs, out):
  """Tells of all runs how far they came."""
  table = []
  for run in runs:
    table += rows(run.results / 'run.json') or [
        dict(run=run.name, steps=reached(run), command=run.command)]
  make_directory(out)
  with (out / 'runs.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, max(table, key=len))
    writer.writeheader()
    writer.writerows(table)


def keep(run):
  """Copies what is worth keeping of a complete run."""
  make_directory(run.results)
  if run.file:
    bundle(run)
  for name in (CONFIG, TRANSFER):
    if (run.logdir / name).exists():
      shutil.copyfile(run.logdir / name, run.results / name)
  lines = Logdir(run.logdir).metrics.read_text().splitlines(keepends=True)
  Logdir(run.results).metrics.write_text(''.join(thinned(lines)))
  # The last file, without which the others do not count.
  (run.results / 'run.json').write_text(json.dumps(summary(run)) + '\n')


def thinned(lines):
  """All lines of episodes, and every nth of the agent's so that few remain."""
  agent = [
      index for index, line in enumerate(lines)
      if '"test/return"' not in line and '"train/return"' not in line]
  every = -(-len(agent) // AGENT_LINES) or 1
  dropped = set(agent) - set(agent[::every])
  return [line for index, line in enumerate(lines) if index not in dropped]


def summary(run):
  """A row of runs.csv."""
  sessions = rows(run.logdir / 'sessions.jsonl')
  progress = checkpoints.load(Logdir(run.logdir).checkpoint)['progress']
  return dict(
      run=run.name, seed=run.flags['seed'], steps=reached(run),
      hours=round(progress['seconds'] / 3600, 3),
      random_return=random_return(run),
      commits=' '.join(dict.fromkeys(s['commit'] for s in sessions)),
      machine='; '.join(dict.fromkeys(s['machine'] for s in sessions)),
      command=run.command)


def random_return(run):
  """Mean return of the random actions before training, of a single task."""
  saved = saved_flags(run.logdir)
  returns = [
      row['train/return'] for row in rows(Logdir(run.logdir).metrics)
      if 'train/return' in row and row['step'] <= saved['prefill']]
  if saved.get('task2') or not returns:
    return None
  return round(sum(returns) / len(returns), 3)


def bundle(run):
  """Keeps of a source run what transfer needs: no optimizers, no progress."""
  checkpoint = Logdir(run.logdir).checkpoint
  data = checkpoints.load(checkpoint)
  make_directory(run.file.parent)
  if run.script == 'dreamer-multi-task.py':
    names = 'format', 'script', 'config', 'action_dim', 'step', 'variables'
    checkpoints.save(run.file, {name: data[name] for name in names})
  else:
    checkpoints.save_module(
        run.file, 'reward', checkpoints.module(checkpoint, 'reward'),
        data['config'])


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
