"""Runs transfer of the second study again, from sources that have learned.

python3 -m results.competent --logdir ./logdir/competent  runs what is missing
python3 -m results.competent --do list                    a command a line
python3 -m results.competent --do keep                    keeps what is complete
python3 -m results.competent --do draw                    figures of --out

Sources of the second study that had not learned both of their tasks are trained
on, and all methods start from them again. It may be stopped at any moment, its
runs save themselves; the same command continues. Any of its commands may as
well be typed by hand.
"""

import os
import pathlib

from common import files, terminal
from results import commands, keeping, second

# Seeds of the targets, and of the sources that are trained on.
SEEDS = {20: 120, 21: 121, 23: 123}
# Where the sources are, and how many environment steps they are given more.
STUDY = pathlib.Path('./results/second_study')
LONGER_STEPS = 60_000
# Flags of the second round of those that had still not learned after one.
TWICE = {121: {}, 123: dict(collect_short=75)}
# Methods before the reward models that meta-model transfer needs, and after.
FIRST = 'full', f'fractional-{second.FACTOR}'
LAST = (
    *(f'meta-{form}' for form in second.FORMS),
    *(f'fractional-{factor}' for factor in second.FACTORS
      if factor != second.FACTOR))
# The whole agent is copied.
WHOLE = dict(second.FULL, reset='')


def define_config():
  return commands.define_config(
      './logdir/competent', './results/competent',
      len(os.sched_getaffinity(0)))


def main(argv):
  config = define_config().command(argv, __doc__)
  runs = all_runs(config.logdir, config.out)
  if config.do == 'draw':
    return draw(runs, config.out)
  chosen = commands.select(runs, config.only)
  return commands.follow(chosen, config, 'study', runs)


def all_runs(logdir, out):
  """The runs of the table: sources, reward models, targets seed by seed."""

  def make(name, script, seed, after=(), file=None, **own):
    return commands.make_run(
        logdir, out, name, script,
        {**second.FLAGS, **second.EXACT, 'seed': seed, **own}, after, file)

  def source(name, script, seed, after=(), **own):
    return make(f'sources/{name}', script, seed, after,
                out / 'sources' / str(seed) / f'{name}.pkl', **own)

  def trained_on(name, seed, agent, after=(), **own):
    return source(
        name, 'dreamer-FTL.py', seed, after, steps=LONGER_STEPS,
        **commands.numbered('task', second.SOURCES),
        **second.taken(agent, **WHOLE), **own)

  first = {
      seed: trained_on(
          'longer', earlier, STUDY / 'sources' / str(earlier) / 'several.pkl')
      for seed, earlier in SEEDS.items()}
  twice = {
      seed: trained_on('longer-twice', SEEDS[seed], once.file, [once],
                       **TWICE[SEEDS[seed]])
      for seed, once in first.items() if SEEDS[seed] in TWICE}
  longer = {**first, **twice}
  rewards = {
      seed: [
          source(f'longer-reward-{second.SHORT[task]}', 'dreamer-MMTL.py',
                 SEEDS[seed], [several], task1=task,
                 **second.rewarding(several.file))
          for task in second.SOURCES]
      for seed, several in longer.items()}
  methods = {
      seed: second.methods(longer[seed], rewards[seed]) for seed in SEEDS}

  def targets(names):
    return [
        make(f'targets/{task}/{name}', script, seed, after,
             steps=second.STEPS[task], task1=task, **own)
        for name in names for seed, found in methods.items()
        for script, after, own in [found[name]] for task in second.TARGETS]

  return [
      *first.values(), *twice.values(), *targets(FIRST),
      *(run for two in rewards.values() for run in two), *targets(LAST)]


# Figures and tables


def draw(runs, out):
  """Draws these runs and those of the second study that count here as well.

  `compared` gets a link to each, as TASK/METHOD/SEED. A method without all of
  its runs on a target is left out there.
  """
  runs = [*runs, *counted(runs)]
  targets = out / 'compared'
  missing = {
      folder_of(run) for run in runs if not keeping.recorded(run)}
  for run in runs:
    kind, name = run.name.split('/', 1)
    if kind == 'targets' and folder_of(run) not in missing:
      link(targets / name, run.results)
  second.draw_sources(runs, out)
  # The runs here are in float32, those of the second study in bfloat16.
  status = commands.draw(
      second.drawings(
          targets, out / 'figures', f'{second.MERGED}|precision'), out)
  second.draw_findings(runs, out)
  return status


def counted(runs):
  """The runs of the second study that count here as well.

  Those whose source had learned, of the methods of `runs`, such sources
  themselves, and all runs from scratch.
  """
  methods = {folder_of(run) for run in runs} | {'sources/several'}
  seeds = {
      seed for pair in second.SEEDS.items() if pair not in SEEDS.items()
      for seed in pair}
  return [
      run for run in second.all_runs(pathlib.Path('./logdir/second'), STUDY)
      if folder_of(run).endswith('/scratch')
      or folder_of(run) in methods and run.flags['seed'] in seeds]


def folder_of(run):
  """What the runs of a method on a target have in common in their names."""
  return run.name.rsplit('/', 1)[0]


def link(path, folder):
  """Makes a relative link, if it is not there."""
  files.make_directory(path.parent)
  with files.writing(path):
    if not path.is_symlink():
      path.symlink_to(os.path.relpath(folder.resolve(), path.parent.resolve()))


if __name__ == '__main__':
  terminal.run(main)
