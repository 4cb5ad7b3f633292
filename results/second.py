"""Runs the second study of transfer, with agents that learn: a table of runs.

python3 -m results.second --logdir ./logdir/second  runs what is missing
python3 -m results.second --do list                 a command a line
python3 -m results.second --do keep                 keeps what is complete
python3 -m results.second --do draw                 figures of --out
python3 -m results.second --do try                  a quarter of an hour of it

It may be stopped at any moment, its runs save themselves; the same command
continues. A run that is complete is kept in --out, from where it counts. Any of
its commands may as well be typed by hand.
"""

import collections
import csv
import math
import os
import pathlib
import shutil
import statistics

from analysis import tables
from common import files, terminal
from results import commands, keeping

# The study: all commands, their order and the figures follow from this table.

# Seeds of the targets, and of the sources that each starts from.
SEEDS = {20: 120, 21: 121, 22: 122, 23: 123, 24: 124}
# Further seeds from scratch, which all methods are compared with.
MORE_SCRATCH = 25, 26, 27, 28, 29

POLE = 'InvertedPendulumBulletEnv-v0'
PENDULUM = 'InvertedPendulumSwingupBulletEnv-v0'
HOPPER = 'HopperBulletEnv-v0'
BALANCE = 'dmc_cartpole_balance'
SPARSE = 'dmc_cartpole_balance_sparse'
TARGETS = SPARSE, PENDULUM, HOPPER
# Learned together by the source of all targets, and each by one of its own.
SOURCES = BALANCE, POLE
SHORT = {BALANCE: 'balance', POLE: 'pole'}
# Comparisons with scratch in the protocol, of which three are not run.
COMPARISONS = 24
# The target on which one source is compared with several, and the flag of such
# runs and their sources of one task: --precision auto differs by machine.
SINGLES = SPARSE,
EXACT = dict(precision='32')
# The factors ω of fractional transfer, and that of one source and of several.
FACTORS = 0.0, 0.2, 0.5
FACTOR = 0.2
# All is copied, but the weights of actions and the actor's output.
FULL = dict(scale='', transfer_factor=1.0)
# What meta-model transfer takes over of the source's autoencoder.
FORMS = {
    'encoder': dict(decoder='none'), 'frozen': {},
    'trained': dict(freeze_decoder=False)}
# Each seed has sources of its own.
MERGED = 'source|encoder|meta.'
# What figures call the methods, in their order there.
LABELS = {
    'scratch': 'Scratch',
    **{f'fractional-{factor}': f'FTL ω={factor:g}' for factor in FACTORS},
    'full': 'Full transfer', 'meta-encoder': 'Meta-model, encoder',
    'meta-frozen': 'Meta-model, frozen autoencoder',
    'meta-trained': 'Meta-model, decoder trained',
    'several': f'FTL ω={FACTOR:g}, both sources',
    **{f'single-{SHORT[task]}': f'FTL ω={FACTOR:g}, {SHORT[task]} alone'
       for task in SOURCES}}
# Environment steps of a run, those of the source of several tasks together, and
# those of an agent that gives a reward model.
STEPS = {
    SPARSE: 12_000, PENDULUM: 24_000, HOPPER: 12_000, BALANCE: 30_000,
    POLE: 30_000}
SHARED_STEPS = 100_000
REWARD_STEPS = 30_000
# Evaluations at the end of a source whose mean is its score, and the score from
# which on a source has learned its task.
LAST = 5
COMPETENT = {BALANCE: 800, POLE: 800}
# Of every run. With one thread it repeats bit for bit.
FLAGS = dict(
    preset='cpu', termination=True, pcont=True, render='fast', threads=1,
    prefill=1000, eval_every=1000, eval_episodes=1, log_images=False)
# The two runs of --do try: this target, from the source of the first seed.
TRIAL_TASK = SPARSE
TRIAL = dict(seed=0, steps=20_000, log_images=True)


def define_config():
  config = commands.define_config(
      './logdir/second', './results/second_study',
      len(os.sched_getaffinity(0)), 'try')
  config.define('plots', pathlib.Path('./plots'), 'Where --do try draws.')
  return config


def main(argv):
  config = define_config().command(argv, __doc__)
  runs = all_runs(config.logdir, config.out)
  if config.do == 'try':
    return trial(config)
  if config.do == 'draw':
    draw_sources(runs, config.out)
    status = commands.draw(drawings(
        config.out / 'runs' / 'targets', config.out / 'figures'), config.out)
    draw_findings(runs, config.out)
    return status
  chosen = commands.select(runs, config.only)
  return commands.follow(chosen, config, 'study', runs)


# The commands


def all_runs(logdir, out):
  """The runs of the table, each after those that it reads, seed by seed."""
  runs = []

  def add(name, script, seed, *, task=None, steps, after=(), file=None, **own):
    named = dict(task=task) if script == 'dreamer.py' else dict(task1=task)
    runs.append(commands.make_run(
        logdir, out, name, script, {
            **FLAGS, 'seed': seed, 'steps': steps,
            **(named if task else {}), **own}, after, file))
    return runs[-1]

  for seed, earlier in SEEDS.items():

    def source(name, script, folder=logdir, **own):
      return add(
          f'sources/{name}', script, earlier,
          file=folder / 'sources' / str(earlier) / f'{name}.pkl', **own)

    def target(task, name, script, after=(), **own):
      return add(
          f'targets/{task}/{name}', script, seed, task=task, steps=STEPS[task],
          after=after, **own)

    def fractional(task, name, agent):
      target(task, name, 'dreamer-FTL.py', [agent],
             **taken(agent.file, transfer_factor=FACTOR), **EXACT)

    singles = {
        task: source(name, 'dreamer.py', task=task, steps=STEPS[task], **EXACT)
        for task, name in SHORT.items()}
    # Kept with the results, like the reward models: most runs start from it.
    several = source(
        'several', 'dreamer-multi-task.py', out, steps=SHARED_STEPS,
        **commands.numbered('task', SOURCES))
    rewards = [
        source(f'reward-{SHORT[task]}', 'dreamer-MMTL.py', out, task=task,
               after=[several], **rewarding(several.file))
        for task in SOURCES]
    for task in TARGETS:
      target(task, 'scratch', 'dreamer.py')
      for name, (script, after, own) in methods(several, rewards).items():
        target(task, name, script, after, **own)
      if task in SINGLES:
        fractional(task, 'several', several)
        for own in SOURCES:
          fractional(task, f'single-{SHORT[own]}', singles[own])
  for seed in MORE_SCRATCH:
    for task in TARGETS:
      add(f'targets/{task}/scratch', 'dreamer.py', seed, task=task,
          steps=STEPS[task])
  return runs


def methods(several, rewards):
  """The methods of transfer: `{name: (script, runs that it reads, flags)}`.

  Args:
    several: run of the source of several tasks.
    rewards: runs that give reward models on its autoencoder.
  """
  models = dict(
      n_meta=len(rewards), encoder=str(several.file),
      **commands.numbered('meta', [str(reward.file) for reward in rewards]))
  return {
      **{f'fractional-{factor}': (
          'dreamer-FTL.py', [several],
          taken(several.file, transfer_factor=factor))
         for factor in FACTORS},
      'full': ('dreamer-FTL.py', [several], taken(several.file, **FULL)),
      **{f'meta-{name}': (
          'dreamer-MMTL.py', [several, *rewards], {**models, **form})
         for name, form in FORMS.items()}}


def taken(file, **own):
  """Flags of dreamer-FTL.py to start from the agent in a file."""
  return dict(transfer=True, source=str(file), **own)


def rewarding(file):
  """Flags of a run that gives a reward model on the autoencoder of a file."""
  return dict(steps=REWARD_STEPS, n_meta=0, encoder=str(file))


# Figures and tables


def draw_sources(runs, out):
  """Writes how well the sources that are kept have learned their tasks."""
  rows = source_rows(runs)
  if rows:
    terminal.say(f'sources\n{tables.write(out / "sources", rows, "mean")}\n')


def source_rows(runs):
  """A row for each source and task that it learned, with all seeds.

  `scores` are means of the last evaluations, and `learned` counts those that
  reach `level`.
  """
  found = {}
  for run in runs:
    if run.file and keeping.recorded(run):
      tasks = [run.flags[key] for key in ('task', 'task1', 'task2')
               if key in run.flags]
      for task in tasks:
        name = run.name.split('/', 1)[1].rsplit('/', 1)[0]
        found.setdefault((name, task), []).append(
            score_of(run, task if len(tasks) > 1 else None))
  return [
      dict(source=name, task=task, level=float(COMPETENT[task]),
           scores=', '.join(f'{score:.0f}' for score in scores),
           learned=f'{sum(x >= COMPETENT[task] for x in scores)} of '
           f'{len(scores)}')
      for (name, task), scores in found.items()]


def score_of(run, task=None):
  """The mean of the last evaluations of a run, of one of its tasks."""
  key = f'{task}/test/return' if task else 'test/return'
  returns = [
      row[key] for row in keeping.rows(run.results / 'metrics.jsonl')
      if key in row]
  return statistics.fmean(returns[-LAST:])


def draw_findings(runs, out):
  """Writes what the protocol says of each comparison with scratch."""
  rows = findings(runs, out)
  if rows:
    terminal.say(f'\nfindings\n{tables.write(out / "findings", rows, "iqm")}\n')


def findings(runs, out):
  """A row for each comparison with scratch in the tables of the figures.

  p is multiplied by the number of comparisons in the protocol (Bonferroni). So
  each is decided as soon as it has all of its own runs, and one without them
  has no p and no finding yet.
  """
  path = out / 'figures' / 'targets' / 'transfer.csv'
  if not path.exists():
    return []
  planned = collections.Counter(
      tuple(run.name.split('/')[1:3]) for run in runs
      if run.name.startswith('targets/'))
  with files.reading(path):
    table = list(csv.DictReader(path.read_text(encoding='utf-8').splitlines()))
  rows = []
  for row in table:
    task, method = row['task'], row['method']
    ours, scratch = planned[task, method], planned[task, 'scratch']
    area, final = (
        tuple(float(row[name + end]) for end in ('', '_low', '_high'))
        for name in ('area_ratio', 'final_difference'))
    complete = (int(row['runs']), int(row['scratch_runs'])) == (ours, scratch)
    p = min(1.0, COMPARISONS * float(row['p'])) if complete else math.nan
    rows.append(dict(
        task=task, method=method, runs=f'{row["runs"]} of {ours}',
        scratch_runs=f'{row["scratch_runs"]} of {scratch}', area_ratio=area,
        final_difference=final, p_corrected=p,
        finding='runs missing' if math.isnan(p) else finding(area, p)))
  return rows


def finding(area, p):
  """The protocol's word for an area ratio `(mean, low, high)` and its p."""
  mean, low, high = area
  if p < 0.05 and not math.isnan(mean):
    return 'helps' if mean > 1 else 'harms'
  if low > 1 or high < 1:
    return f'undecided, a hint of {"help" if low > 1 else "harm"}'
  return 'undecided'


def drawings(targets, figures, merge=MERGED):
  """The arguments of plotting.py for each folder of figures.

  Tasks and methods of which no run is kept are left out, and so is a folder
  whose methods have nothing to compare them with.

  Args:
    targets: directory of TASK/METHOD/SEED.
    figures: directory that they are drawn into.
    merge: pattern of flags in which runs of one method may differ.
  """
  kept = {(path.parent.name, path.name) for path in targets.glob('*/*')}

  def plot(folder, tasks, baseline, others, *words):
    """One command in a list, which is empty if nothing can be compared."""
    tasks = [task for task in tasks if (task, baseline) in kept]
    methods = [
        name for name in LABELS if name in (baseline, *others)
        and any((task, name) in kept for task in tasks)]
    if len(methods) < 2:
      return []
    return [[
        '--indir', str(targets), '--outdir', str(figures / folder),
        '--subdir', 'False', '--group-by', 'path', '--merge', merge,
        '--aggregate', 'iqm', '--bins', '2000',
        '--tasks', *(f'^{task}$' for task in tasks), '--methods',
        *(f'^{name}$' for name in methods), '--transfer-report', '--tests',
        '--baseline', baseline, *words, '--labels',
        *(word for name in methods for word in (name, LABELS[name]))]]

  singles = [name for name in LABELS if name.startswith('single-')]
  others = [name for name in LABELS if name not in ('several', *singles)]
  return [
      *plot('targets', TARGETS, 'scratch', others, '--profiles'),
      *plot('single', SINGLES, 'several', singles)]


def trial(config):
  """Transfer from a source of the results beside training from scratch."""
  source = config.out / 'sources' / str(min(SEEDS.values())) / 'several.pkl'
  if not source.exists():
    raise terminal.UserError(
        f'{source} is missing: it comes with the repository, or from make '
        'second.')
  logdir = config.logdir / 'try'
  runs = [
      commands.make_run(
          logdir, config.plots, f'{TRIAL_TASK}/{method}', script,
          {**FLAGS, **TRIAL, **own})
      for method, script, own in (
          ('scratch', 'dreamer.py', dict(task=TRIAL_TASK)),
          ('full', 'dreamer-FTL.py', dict(
              task1=TRIAL_TASK, transfer=True, source=str(source), **FULL)))]
  status = commands.work(runs, config, 'try') or commands.draw([[
      '--indir', str(logdir / TRIAL_TASK), '--outdir', str(config.plots),
      '--subdir', 'False', '--bins', str(FLAGS['eval_every']), '--labels',
      'dreamer', 'Scratch', 'FTL ω=1', 'Full transfer']], logdir)
  for run in [] if status else runs:
    film = run.results / keeping.FILM
    if film.exists():
      copy = config.plots / f'{run.name.split("/")[1]}.gif'
      with files.writing(copy):
        shutil.copyfile(film, copy)
      terminal.say(f'{copy} is an episode of its last evaluation.')
  return status


if __name__ == '__main__':
  terminal.run(main)
