"""Ranks sources of transfer by how well they fit a target task, untrained.

python3 rank.py --task HopperBulletEnv-v0 \\
    --from ./logdir ./results/sources/110/multi-task.pkl

Plays some episodes with random actions, or reads those of --episodes, and
measures on them what each source knows already: how its autoencoder draws the
target's images, how its dynamics predict them, and what its reward model says
of the rewards. Sources are log directories, checkpoints in either format, or
directories of module files (encoder.pkl, decoder.pkl, reward.pkl). Nothing is
trained but for two short fits, and nothing is written but --out and --picture.
"""

from analysis.measures import DECISIONS, FIT_STEPS, MEASURES, SEQUENCES
from common import flags, options


def define_config():
  config = flags.Config()
  define = config.define
  define('task', '', 'Target task, named as in dreamer.py.')
  define('from', [], 'Sources: log directories, checkpoints in either format, '
         'or directories of module files.', type=str, nargs='+',
         metavar='SOURCE', required=True)
  define('autoencoder', '', 'Checkpoint, log directory or directory of module '
         'files for the encoder and decoder of sources that are only a reward '
         'model.', path=True)
  define('episodes', '', 'Directory of episodes of the target to measure on, '
         'for example the episodes of a log directory; without it some are '
         'played with random actions.', path=True)
  define('decisions', DECISIONS, 'Decisions to play or to read.', low=100)
  options.environment(config)
  define('sequences', SEQUENCES, 'Sequences to measure on; two thirds of them '
         'serve the fits, the others the measures.', low=6)
  define('fit_steps', FIT_STEPS, 'Updates of each fit.', low=0)
  define('by', 'image_r2', 'Measure to rank by.', list(MEASURES))
  define('out', '', 'JSON file for all measures.', path=True)
  define('picture', '', 'PNG or PDF file for the images that each source '
         'draws worst.', path=True)
  define('seed', 0, 'Seed of the episodes, the sequences and the fits.', low=0,
         high=2 ** 31 - 1)
  return config


if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(define_config, __doc__)

import json
import pathlib

import numpy as np

from analysis import forecast, style
from common import files, terminal
from runs import settings
import wrappers
from matplotlib import figure as mpl_figure


def main(argv):
  config = define_config().command(argv, __doc__)
  names = getattr(config, 'from')
  check_output(config)
  if bool(config.task) == bool(config.episodes):
    raise terminal.UserError(
        'name either the target with --task, or its --episodes.')
  if config.task:
    wrappers.check_task(config.task)
    for line in settings.follow(config, [config.task]):
      terminal.say(line)
  found = {name: forecast.read(name, config.autoencoder) for name in names}
  episodes = (
      forecast.recorded(config.episodes, config.decisions) if config.episodes
      else forecast.played(config))
  batch = forecast.sequences(episodes, config.sequences, config.seed)
  results, pictures = {}, {}
  for name in found:
    source = forecast.build(
        found[name], batch['action'].shape[-1], config.seed, name)
    terminal.say(f'measuring {name}')
    results[name], pictures[name] = forecast.measure(
        source, batch, config.fit_steps, config.seed)
  order = ranked(results, config.by)
  terminal.say(table(order, results, config.by))
  for name in order:
    for line in forecast.coverage(
        results[name], f'the autoencoder of {name}'):
      terminal.say(line)
  if config.out:
    files.write_text(config.out, json.dumps(dict(
        target=config.task or config.episodes, by=config.by,
        decisions=sum(len(e['reward']) - 1 for e in episodes),
        ranking=order, measures={
            name: {k: None if np.isnan(v) else round(v, 6)
                   for k, v in results[name].items()} for name in order}),
        indent=2) + '\n')
    terminal.say(f'{config.out} has all measures.')
  if config.picture:
    save_picture(config.picture, order, pictures)
    terminal.say(
        f'{config.picture} shows the images that each source draws worst.')


def check_output(config):
  """Complains before anything is played."""
  for flag, endings in (('out', ('.json',)), ('picture', ('.png', '.pdf'))):
    path = pathlib.Path(getattr(config, flag) or f'x{endings[0]}')
    if path.suffix not in endings:
      raise terminal.UserError(
          f'--{flag} {path} must end in {" or ".join(endings)}.')
    if path.is_dir():
      raise terminal.UserError(
          f'--{flag} {path} is a directory: name a file in it.')
    if not path.parent.is_dir():
      raise terminal.UserError(
          f'--{flag} {path}: there is no directory {path.parent}; make it '
          'first.')


def ranked(results, by):
  """Names of the sources, best first; those without the measure come last."""
  sign = -1 if MEASURES[by][0] else 1
  def key(name):
    value = results[name].get(by, np.nan)
    return np.isnan(value), sign * value
  return sorted(results, key=key)


def table(order, results, by):
  """The measures as text: a row for each, a column for each source."""
  rows = [['', *(f'{place}.' for place in range(1, len(order) + 1)), '']]
  for name, (more, meaning) in MEASURES.items():
    values = [results[source].get(name, np.nan) for source in order]
    if np.isnan(values).all():
      continue
    rows.append([
        name + ' *' * (name == by),
        *('–' if np.isnan(x) else f'{x:.3g}' for x in values),
        f'{"↑" if more else "↓"} {meaning}'])
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
  names = [f'{place}. {name}' for place, name in enumerate(order, 1)]
  return '\n'.join([*lines, '* ranked by; ↑ more is better, ↓ less is', *names])


def save_picture(path, order, pictures, count=8):
  """Draws the images of the target that each source draws worst.

  A pair of rows for each source: the images, and what its autoencoder draws.
  """
  with style.applied():
    figure = mpl_figure.Figure(
        (0.85 * count + 0.5, 2.1 * len(order)), layout='constrained')
    parts = figure.subfigures(len(order), squeeze=False)[:, 0]
    for place, (name, part) in enumerate(zip(order, parts), 1):
      truth, drawn = (
          pictures[name][key].reshape(-1, 64, 64, 3)
          for key in ('truth', 'drawn'))
      error = np.square(truth - drawn).sum((1, 2, 3))
      # From the worst quarter, some apart: neighbours in time look alike.
      worst = np.argsort(-error)[::max(1, len(error) // 4 // count)][:count]
      part.suptitle(f'{place}. {name}', fontsize=8)
      rows = zip(part.subplots(2, count), (truth, drawn), ('target', 'drawn'))
      for line, images, label in rows:
        line[0].set_ylabel(label)
        for axes, image in zip(line, images[worst]):
          axes.imshow(image, interpolation='nearest')
    for axes in figure.axes:
      axes.set(xticks=[], yticks=[])
      axes.grid(False)
      axes.spines[:].set(visible=True, color='0.85')
    with files.writing(path):
      figure.savefig(path, dpi=150)


if __name__ == '__main__':
  terminal.run(main)
