"""Runs the small study of transfer that results/ reports: a table of commands.

python3 -m results.study --logdir ./logdir/study --jobs 2   runs what is missing
python3 -m results.study --do list                a command a line
python3 -m results.study --do keep                keeps what is complete
python3 -m results.study --do draw                figures of what --out holds

It may be stopped at any moment, its runs save themselves; the same command
continues. A run that is complete is kept in --out, from where it counts and
its source is read: the rest may be run elsewhere. Any of its commands may as
well be typed by hand.
"""

from common import terminal
from results import commands

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
    preset='small', cnn_depth=8, deter_size=64, num_units=64, termination=True,
    threads=1, prefill=1000, eval_every=1000, eval_episodes=2, log_images=False)


def define_config():
  return commands.define_config('./logdir/study', './results', 2)


def main(argv):
  config = define_config().command(argv, __doc__)
  runs = all_runs(config.logdir, config.out)
  if config.do == 'draw':
    return commands.draw(drawings(config.out), config.out)
  chosen = commands.select(runs, config.only)
  return commands.follow(chosen, config, 'study', runs)


# The commands


def make_run(
    logdir, out, name, script, seed, after=(), file=None, *, steps, **own):
  return commands.make_run(
      logdir, out, name, script,
      {**FLAGS, 'seed': seed, 'steps': steps, **own}, after, file)


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
        **commands.numbered('task', SOURCES))
    frozen = dict(encoder=str(source.file))
    singles = [
        add(f'{task}/frozen-autoencoder', 'dreamer-MMTL.py', earlier, [source],
            file=folder / f'{task}.pkl', task1=task, n_meta=0,
            steps=SINGLE_STEPS, **frozen)
        for task in SOURCES]
    models = commands.numbered('meta', [str(single.file) for single in singles])
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


# Figures


def drawings(out):
  """The arguments of plotting.py for each folder of figures.

  What is not kept is left out, and so is a folder with nothing to compare.
  """
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

  def compared(tasks, *methods):
    """The tasks with runs from scratch and of one of these methods."""
    return [
        task for task in tasks if (runs / task / 'scratch').is_dir()
        and any(path for name in methods for path in (runs / task).glob(name))]

  def plot(folder, names, *words, baseline=None):
    """One command in a list, which is empty without runs to draw."""
    kept = [name for name in names if (runs / name).is_dir()]
    if baseline:
      kept = [baseline, *kept] if kept and (runs / baseline).is_dir() else []
    return kept and [[
        '--indir', *(str(runs / name) for name in kept), '--outdir',
        str(out / 'figures' / folder), '--subdir', 'False', '--aggregate',
        'iqm', '--bins', str(max(least // 10, FLAGS['eval_every'])), *words]]

  targets = (
      compared(TARGETS, *(f'fractional-{factor}' for factor in shared), 'full',
               'meta-model'),
      *merge, '--transfer-report', '--methods',
      f'^dreamer$|ω=({factors}|1)$|^MMTL', '--labels', *scratch, 'FTL ω=1',
      'Full transfer', *meta)
  return [
      *plot('targets', *targets),
      *plot('first_stage', *targets, '--until', str(least)),
      *plot('omega', compared([first], 'fractional-*'), *merge,
            '--transfer-report', '--methods', '^dreamer$|ω=0'),
      *plot('sources', ['sources', *SOURCES], *merge),
      *plot('broken', [f'ablation/{broken}'], '--labels', f'dreamer {flag}=',
            'Dreamer', f'dreamer {flag}={value}', 'Broken on purpose',
            baseline=f'{broken}/scratch'),
      *plot('autoencoder', [f'{puzzle}/meta-model', f'autoencoder/{puzzle}'],
            *merge, '--transfer-report', '--labels', *scratch, *meta, *parts,
            baseline=f'{puzzle}/scratch')]


if __name__ == '__main__':
  terminal.run(main)
