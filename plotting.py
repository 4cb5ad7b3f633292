"""Draws curves, score tables and transfer reports of any log directories.

  python3 plotting.py --indir ./logdir --outdir ./plots --xaxis step \\
      --yaxis test/return --bins 3e4
"""

import pathlib
import re
import types
import warnings

from common import flags


def define_config():
  config = flags.Config()
  define = config.define
  config.heading('Runs')
  define('indir', [], 'Folders of runs, in any nesting.', type=pathlib.Path,
         nargs='+', metavar='FOLDER', required=True)
  define('outdir', None, 'Folder that figures and tables go to.',
         type=pathlib.Path, metavar='FOLDER', required=True)
  define('subdir', True, 'Put them into a folder in it that is named like the '
         'first --indir.')
  define('xaxis', 'step', 'Key of metrics.jsonl for the x axis.')
  define('yaxis', 'test/return', 'Key of metrics.jsonl for the y axis.')
  define('tasks', ['.*'], 'Tasks to draw, in this order.', nargs='+',
         regex=True, metavar='REGEX')
  define('methods', ['.*'], 'Methods to draw.', nargs='+', regex=True,
         metavar='REGEX')
  define('merge', [], 'Flags in which the seeds of one method may differ: '
         "'source|encoder|decoder|meta.' if each has a source of its own.",
         type=str, nargs='+', regex=True, metavar='REGEX')
  define('group_by', 'flags', 'Runs are seeds of one method if they have the '
         'same script and flags (flags), or lie in the same folder (path), '
         'which tells changes of the code apart.', ['flags', 'path'])
  define('until', None, 'Leave out evaluations after so many environment '
         'steps.', type=float, positive=True, metavar='STEPS')
  config.heading('Statistics')
  define('bins', None, 'Environment steps per bin, over which curves are '
         'averaged; else a thirtieth of the longest run.', type=float,
         positive=True, metavar='STEPS')
  define('aggregate', 'mean', 'Centre and spread of the runs: mean (with '
         'standard deviation, ddof 0), median (with quartiles), iqm '
         '(interquartile mean with stratified bootstrap 95 % intervals) or '
         'none (single curves).')
  define('baselines', None, 'Published scores of Dreamer, PlaNet, SLAC, D4PG '
         'and A3C as levels: all, or those that patterns find, such as '
         'dreamer_5e6; curve is Dreamer over environment steps, mean and range '
         'of its seeds in bins of 100,000.',
         type=str, nargs='*', regex=True, metavar='REGEX')
  define('transfer_report', False, 'Compare transfer with the scratch runs of '
         'the same task and flags.', nargs='?')
  define('baseline', None, 'Method to compare with in their place.', type=str,
         metavar='METHOD')
  define('threshold', None, 'Return for steps to threshold; else nine tenths '
         'of the way to the final score of scratch.', type=float,
         metavar='RETURN')
  define('profiles', False, 'Draw performance profiles over all tasks, and the '
         'probability that a run of a method beats one of the baseline '
         '(Agarwal et al. 2021).', nargs='?')
  define('tests', False, 'Add p-values of permutation tests to the tables of '
         '--transfer-report and --profiles, and the same corrected for the '
         'number of comparisons (Holm).', nargs='?')
  config.heading('Look')
  define('size', [2.5, 2.1], 'Width and height of a panel in inches.', nargs=2,
         positive=True)
  define('cols', None, 'Panels beside each other.', type=int, low=1,
         metavar='NUMBER')
  define('xlim', None, 'Limits of the x axes.', type=float, nargs=2,
         metavar=('LOW', 'HIGH'))
  define('ylim', None, 'Limits of the y axes.', type=float, nargs=2,
         metavar=('LOW', 'HIGH'))
  define('xlabel', '', 'Text of the x axis.')
  define('ylabel', '', 'Text of the y axis.')
  define('xticks', 6, 'Ticks on the x axis at most.', low=1)
  define('yticks', 6, 'Ticks on the y axis at most.', low=1)
  define('labels', {}, 'Texts for methods and tasks.', metavar='NAME LABEL')
  define('palette', ['contrast'], 'Colours of the methods: contrast, muted, a '
         'Matplotlib colormap, or colours.', nargs='+', metavar='NAME')
  define('colors', {}, 'Colours of single methods.', metavar='METHOD COLOR')
  return config


if __name__ == '__main__':
  flags.check(define_config, __doc__)  # Before slow imports.

import matplotlib
from matplotlib import colors as mpl_colors
import numpy as np

from analysis import drawing
from analysis import reading
from analysis import scores
from analysis import style
from analysis import tables
from common import terminal

CAPTIONS = dict(
    mean='mean ± standard deviation with ddof 0', median='median [quartiles]',
    iqm='interquartile mean [95 % bootstrap interval]',
    probability='probability [95 % bootstrap interval]',
    difference='mean [95 % bootstrap interval], against the baseline')


def main(argv):
  # A sign that the font lacks is drawn as a box; there is nothing to do.
  warnings.filterwarnings('ignore', 'Glyph')
  args = parse(argv)
  outdir = args.outdir
  if args.subdir:
    outdir = outdir / args.indir[0].resolve().name
  figures, rows_of = make(args)
  try:
    outdir.mkdir(parents=True, exist_ok=True)
    for name, (rows, how) in rows_of.items():
      table = tables.write(outdir / name, rows, how)
      terminal.say(f'{name} ({CAPTIONS[how]})\n{table}\n')
    for name, figure in figures.items():
      style.save(figure, outdir / name)
  except OSError as error:
    raise terminal.UserError(
        f"cannot write to --outdir '{outdir}': {error.strerror}.") from None
  names = ', '.join(dict.fromkeys([*figures, *rows_of]))
  terminal.say(f'wrote {names} to {outdir}')


def make(args):
  """`({name: Figure}, {name: (rows, kind of interval)})` for parsed flags."""
  curves = select(
      reading.load(
          args.indir, args.xaxis, args.yaxis, args.merge, args.group_by), args)
  tasks = reading.by_task(curves)
  args.short = reading.labels(curves)
  width = args.bins or scores.automatic_width(curves)
  ranges = {
      task: scores.score_range(
          task, flat({task: methods}), width, args.yaxis)
      for task, methods in tasks.items()}
  looks = styles(tasks, args)
  how = 'mean' if args.aggregate == 'none' else args.aggregate
  with style.applied():
    figures = {'curves': drawing.draw_curves(tasks, width, looks, args)}
    if reading.common_methods(tasks) and args.aggregate != 'none':
      figures['all-tasks'] = drawing.draw_all_tasks(
          tasks, width, ranges, looks, args)
    rows_of = {'scores': (scores.score_rows(tasks, ranges, how), how)}
    if args.transfer_report:
      rows, baselines = scores.transfer_rows(
          tasks, width, args.threshold, one_baseline(curves, args), args.tests)
      if not rows:
        raise terminal.UserError(
            '--transfer-report needs runs with transfer and scratch runs '
            '(dreamer.py, or dreamer-FTL.py without transfer) of one task, or '
            'a method named with --baseline.')
      say_baselines(baselines)
      rows_of['transfer'] = rows, 'difference'
      figures['transfer'] = drawing.draw_transfer(rows, looks, args)
      points = scores.omega_rows(tasks, baselines)
      if len({point['omega'] for point in points} - {None}) > 1:
        figures['omega'] = drawing.draw_omega(points, args)
    if args.profiles:
      baseline = reference(tasks, curves, args)
      figures['profiles'] = drawing.draw_profiles(tasks, ranges, looks, args)
      rows = scores.improvement_rows(tasks, baseline, args.tests)
      if rows:
        rows_of['improvement'] = rows, 'probability'
        figures['improvement'] = drawing.draw_improvement(
            rows, len(tasks), looks, args)
  say_short_names(curves, args)
  return figures, rows_of


def flat(tasks):
  return [
      curve for methods in tasks.values() for curves in methods.values()
      for curve in curves]


def one_baseline(curves, args):
  """The method that --baseline names, or None without it."""
  if args.baseline is None:
    return None
  names = {curve.method for curve in curves}
  for method, short in args.short.items():
    if args.baseline in (method, short):
      return method
  found = matching([args.baseline], names, '--baseline', args.short)
  if len(found) > 1:
    raise terminal.UserError(
        f"--baseline '{args.baseline}' fits {' and '.join(map(repr, found))}: "
        'write the whole name of one.')
  return found[0]


def reference(tasks, curves, args):
  """The method on all tasks that --profiles compares the others with."""
  methods = scores.everywhere(tasks)
  named = one_baseline(curves, args)
  kinds = {curve.method: curve.kind for curve in curves}
  found = [named] if named else [
      method for method in methods if reading.is_scratch(kinds[method])]
  if len(found) == 1 and found[0] in methods:
    return found[0]
  raise terminal.UserError(
      '--profiles compares methods on all tasks with one of them: name it with '
      f'--baseline. There is {", ".join(methods) or "none on all tasks"}.')


def say_baselines(baselines):
  """Tells which method each one was compared with."""
  groups = {}
  for used in baselines.values():
    for method, baseline in used.items():
      groups.setdefault(baseline, {})[method] = True
  for baseline, methods in groups.items():
    terminal.say(f'compared with {baseline!r}: {", ".join(methods)}')
  terminal.say()


def say_short_names(curves, args):
  """Tells the whole names of methods that the figures name in few words."""
  for method, short in args.short.items():
    # A flag without value, as in freeze=, tells nothing more.
    if len(method) > len(short) + 25 and method not in args.labels:
      terminal.say(f"'{short}' in figures is {method}")


# What to draw


def select(curves, args):
  """Curves that --tasks, --methods, --until leave, tasks in their order."""
  if args.until:
    curves = reading.until(curves, args.until)
  tasks = matching(args.tasks, {c.task for c in curves}, '--tasks')
  methods = matching(
      args.methods, {c.method for c in curves}, '--methods',
      reading.labels(curves))
  chosen = [c for task in tasks for c in curves
            if c.task == task and c.method in methods]
  if not chosen:
    raise terminal.UserError(
        'no run fits both --tasks and --methods: widen one of them.')
  return chosen


def matching(patterns, names, flag, short=None):
  """The names that one of the patterns finds, in the order of the patterns.

  `short` has other words for names, in which patterns are looked for as well.
  """
  short = short or {}
  result = []
  for pattern in patterns:
    found = sorted(
        (name for name in names if re.search(pattern, name)
         or re.search(pattern, short.get(name, name))),
        key=reading.method_order)
    if not found:
      known = ', '.join(sorted(names, key=reading.method_order))
      raise terminal.UserError(
          f"{flag} '{pattern}' fits nothing; there is {known}.")
    result += [name for name in found if name not in result]
  return result


def styles(tasks, args):
  """`{method: dict(color, linestyle)}`, the same in all panels and figures."""
  methods = sorted(
      {method for methods in tasks.values() for method in methods},
      key=reading.method_order)
  palette = colors_of(args.palette, len(methods))
  looks = {}
  for index, method in enumerate(methods):
    turn, place = divmod(index, len(palette))
    looks[method] = dict(
        color=drawing.named(args.colors, method, args) or palette[place],
        linestyle=style.LINES[turn % len(style.LINES)])
  known = {
      *methods, *tasks, *drawing.PUBLISHED, drawing.CURVE,
      *map(args.short.get, methods)}
  for flag, names in (
      ('--colors', args.colors), ('--labels', args.labels)):
    for name in sorted(set(names) - known):
      terminal.warn(f"{flag} names '{name}', which is not drawn.")
  return looks


def colors_of(palette, number):
  """Colours from a palette's or colormap's name or from a list of colours."""
  if len(palette) == 1 and palette[0] in style.PALETTES:
    return style.PALETTES[palette[0]]
  if len(palette) == 1 and palette[0] in matplotlib.colormaps:
    colormap = matplotlib.colormaps[palette[0]]
    if colormap.N < 64:
      return [mpl_colors.to_hex(colormap(index)) for index in range(colormap.N)]
    # The ends of many colormaps vanish on white.
    places = np.linspace(0.1, 0.85, number)
    return [mpl_colors.to_hex(colormap(place)) for place in places]
  return palette


# Flags


def parse(argv):
  """Flags as a namespace; what is wrong with them raises `UserError`."""
  config = define_config().command(argv, __doc__)
  args = types.SimpleNamespace(
      **{name: getattr(config, name) for name in config.plain()})
  args.aggregate = aggregate(args.aggregate)
  for flag in ('xlim', 'ylim'):
    limits = getattr(args, flag)
    if limits and limits[0] >= limits[1]:
      raise terminal.UserError(f'--{flag} takes the lower limit first.')
  named = len(args.palette) == 1 and (
      args.palette[0] in style.PALETTES
      or args.palette[0] in matplotlib.colormaps)
  for flag, words in (
      ('--palette', [] if named else args.palette),
      ('--colors', args.colors.values())):
    for word in words:
      if not mpl_colors.is_color_like(word):
        raise terminal.UserError(
            f"{flag}: '{word}' is no colour: write a name or #rrggbb.")
  for flag, value, reports in (
      ('tests', args.tests or None, ['transfer_report', 'profiles']),
      ('baseline', args.baseline, ['transfer_report', 'profiles']),
      ('threshold', args.threshold, ['transfer_report'])):
    if value is not None and not any(getattr(args, name) for name in reports):
      words = ' or '.join(f'--{name.replace("_", "-")}' for name in reports)
      raise terminal.UserError(f'--{flag} is for {words}: give it too.')
  if args.baselines:
    args.baselines = published(args.baselines, args.xaxis)
  return args


def published(words, xaxis):
  """The names that --baselines asks for; the curve has to be named in full."""
  levels = [word for word in words if word != drawing.CURVE]
  names = matching(levels, drawing.PUBLISHED, '--baselines')
  if len(levels) == len(words):
    return names
  if xaxis != 'step':
    raise terminal.UserError(
        f'--baselines {drawing.CURVE} is over environment steps: leave out '
        f'--xaxis {xaxis}.')
  return [drawing.CURVE, *names]


def aggregate(text):
  # Commands written for other Dreamer scripts say True or False.
  kind = {'true': 'mean', 'false': 'none', 'std': 'mean'}.get(
      text.lower(), text.lower())
  if kind not in ('mean', 'median', 'iqm', 'none'):
    raise terminal.UserError(
        f"--aggregate takes mean, median, iqm or none, not '{text}'.")
  return kind


if __name__ == '__main__':
  terminal.run(main)
