"""Draws curves, score tables and transfer reports of any log directories.

  python3 plotting.py --indir ./logdir --outdir ./plots --xaxis step \\
      --yaxis test/return --bins 3e4
"""

import math
import pathlib
import re
import types
import warnings

from common import flags

# Text in the legend, colour and dashes of the published scores.
PUBLISHED = {
    'dreamer_1e6': ('Dreamer, published (1M)', '0.6', (0, (6, 2))),
    'dreamer_5e6': ('Dreamer, published (5M)', '0.25', (0, (6, 2))),
    'planet_1e6': ('PlaNet (1M)', '#117733', (0, (4, 1.5, 1, 1.5))),
    'slac_3e6': ('SLAC (3M)', '#AA4499', (0, (2, 1))),
    'd4pg_100m': ('D4PG (100M)', '#882255', (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    'a3c_100m_proprio': ('A3C (100M, proprio)', '#999933', (0, (1, 1.5)))}


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
  define('baselines', None, f'Published scores: all, or of '
         f'{", ".join(PUBLISHED)}.', type=str, nargs='*', regex=True,
         metavar='REGEX')
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
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import ticker as mpl_ticker
import numpy as np

from analysis import reading
from analysis import scores
from analysis import style
from analysis import tables
from common import terminal

AXIS_NAMES = {
    'step': 'Environment steps', 'test/return': 'Test return',
    'train/return': 'Training return'}
CAPTIONS = dict(
    mean='mean ± standard deviation with ddof 0', median='median [quartiles]',
    iqm='interquartile mean [95 % bootstrap interval]',
    probability='probability [95 % bootstrap interval]',
    difference='mean [95 % bootstrap interval], against the baseline')
MEASURES = {
    'jump_start': ('Jump-start', 0), 'area_ratio': ('Area ratio', 1),
    'final_difference': ('Final difference', 0),
    'steps_saved': ('Steps saved', 0)}
CHANCES = {'overall': ('Overall score', 0.5), 'final': ('Final score', 0.5)}


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
    figures = {'curves': draw_curves(tasks, width, looks, args)}
    if reading.common_methods(tasks) and args.aggregate != 'none':
      figures['all-tasks'] = draw_all_tasks(tasks, width, ranges, looks, args)
    rows_of = {'scores': (scores.score_rows(tasks, ranges, how), how)}
    if args.transfer_report:
      rows, baselines = scores.transfer_rows(
          tasks, width, args.threshold, one_baseline(curves, args))
      if not rows:
        raise terminal.UserError(
            '--transfer-report needs runs with transfer and scratch runs '
            '(dreamer.py, or dreamer-FTL.py without transfer) of one task, or '
            'a method named with --baseline.')
      say_baselines(baselines)
      rows_of['transfer'] = rows, 'difference'
      figures['transfer'] = draw_transfer(rows, looks, args)
      points = scores.omega_rows(tasks, baselines)
      if len({point['omega'] for point in points} - {None}) > 1:
        figures['omega'] = draw_omega(points, args)
    if args.profiles:
      figures['profiles'] = draw_profiles(tasks, ranges, looks, args)
      rows = scores.improvement_rows(tasks, reference(tasks, curves, args))
      if rows:
        rows_of['improvement'] = rows, 'probability'
        figures['improvement'] = draw_improvement(rows, len(tasks), looks, args)
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
  """What --tasks, --methods and --until name, tasks in the order named."""
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
        color=named(args.colors, method, args) or palette[place],
        linestyle=style.LINES[turn % len(style.LINES)])
  known = {*methods, *tasks, *PUBLISHED, *map(args.short.get, methods)}
  for flag, names in (
      ('--colors', args.colors), ('--labels', args.labels)):
    for name in sorted(set(names) - known):
      terminal.warn(f"{flag} names '{name}', which is not drawn.")
  return looks


def named(values, method, args):
  """What --labels or --colors say of a method, by either of its names."""
  return values.get(method) or values.get(args.short.get(method))


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


# Figures


def draw_curves(tasks, width, looks, args):
  """One panel per task: a line and a band per method, or a line per run."""
  figure, panels = grid(len(tasks), args)
  drawn, sources, without, dots = {}, {}, [], []
  for axes, (task, methods) in zip(panels, tasks.items()):
    known = chosen_baselines(task, args)
    for name, values in known.items():
      sources[name] = draw_baseline(axes, name, values)
    if not known:
      without.append(task)
    longest = 0
    for method, curves in methods.items():
      drawn[method] = looks[method]
      centres, values = scores.aligned(curves, width)
      longest = max(longest, len(centres))
      if len(centres) == 1:
        drawn[method] = {**looks[method], 'marker': 'o'}
        if any(curve.xs[0] < curve.xs[-1] for curve in curves):
          dots.append(f'{method} on {task}')
      if args.aggregate == 'none':
        for row in values:
          some = np.isfinite(row)
          draw_line(axes, centres[some], row[some], looks[method], 0.8)
      else:
        draw_band(
            axes, centres, scores.curve_summary(args.aggregate, values),
            looks[method])
    style.set_title(
        axes, style.wrapped(title(task, args), title_width(args)))
    dress(axes, args, args.ylim)
    if longest == 1 and centres[0] > 0 and not args.xlim:
      axes.set_xlim(0, 2 * centres[0])
  if args.baselines is not None and without:
    terminal.warn(
        f'no published score for {listed(without)} and these --baselines.')
  if dots:
    terminal.warn(
        f'one point, drawn as a dot, is all that bins of {tables.si(width)} '
        f'steps leave of {listed(dots)}: smaller --bins draw a curve.')
  label_outer(panels, args)
  style.arrange(in_rows(panels))
  handles = {
      label(method, args): mpl_lines.Line2D([], [], **look)
      for method, look in sorted(
          drawn.items(), key=lambda item: reading.method_order(item[0]))}
  handles.update({
      args.labels.get(name, PUBLISHED[name][0]): sources[name]
      for name in PUBLISHED if name in sources})
  style.add_legend(figure, handles)
  return figure


def listed(names, most=5):
  more = f' and {len(names) - most} more' * (len(names) > most)
  return ', '.join(names[:most]) + more


def draw_all_tasks(tasks, width, ranges, looks, args):
  """Normalised scores over all tasks, of the methods that ran all of them."""
  figure, (axes,) = grid(1, args)
  handles = {}
  for method in reading.common_methods(tasks):
    curves = [methods[method] for methods in tasks.values()]
    centres, values = scores.aligned(sum(curves, []), width)
    groups = np.split(values, np.cumsum([len(group) for group in curves])[:-1])
    groups = [
        scores.normalise(group, ranges[task])
        for task, group in zip(tasks, groups)]
    draw_band(
        axes, centres, scores.curve_summary(args.aggregate, *groups),
        looks[method])
    handles[label(method, args)] = mpl_lines.Line2D([], [], **looks[method])
  style.set_title(axes, f'{len(tasks)} tasks')
  dress(axes, args)
  axes.set_xlabel(args.xlabel or axis_name(args.xaxis))
  axes.set_ylabel((args.ylabel or axis_name(args.yaxis)) + ' (normalised)')
  style.arrange([[axes]])
  style.add_legend(figure, handles)
  return figure


def draw_line(axes, xs, ys, look, width=None):
  # A line through one point would not be seen, nor would it behind others.
  single = dict(marker='o', markersize=6, zorder=3) if len(xs) == 1 else {}
  axes.plot(xs, ys, linewidth=width, **single, **look)


def draw_band(axes, xs, summary, look):
  centre, low, high = summary
  some = np.isfinite(centre)
  draw_line(axes, xs[some], centre[some], look)
  some = np.isfinite(low)
  if some.sum() == 1:
    axes.vlines(
        xs[some], low[some], high[some], color=look['color'], linewidth=1.5)
    return
  axes.fill_between(
      xs[some], low[some], high[some], color=look['color'], alpha=0.15,
      linewidth=0)


def chosen_baselines(task, args):
  if args.baselines is None:
    return {}
  names = args.baselines or list(PUBLISHED)
  known = scores.baselines(task)
  return {name: known[name] for name in names if name in known}


def draw_baseline(axes, name, values):
  """A line over the whole panel; returns it for the legend."""
  _, color, dashes = PUBLISHED[name]
  score, low, high = values
  if high > low:
    axes.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
  return axes.axhline(
      score, color=color, linewidth=1.1, linestyle=dashes, zorder=1.5)


def draw_transfer(rows, looks, args):
  """A row of panels per task, a column per measure, a mark per method.

  Names stand in lines above each other: the task, then its methods.
  """
  tasks = dict.fromkeys(row['task'] for row in rows)
  groups = {
      title(task, args): [row for row in rows if row['task'] == task]
      for task in tasks}
  return draw_marks(
      groups, MEASURES, looks, args, 'Against the baseline (dashed): mean and '
      '95 % interval; better to the right')


def draw_improvement(rows, number, looks, args):
  """Probabilities of improvement, a mark per method."""
  name = f'{number} task' + 's' * (number > 1)
  figure = draw_marks(
      {name: rows}, CHANCES, looks, args,
      'Probability that a run beats one of '
      f'{label(rows[0]["baseline"], args)}, with 95 % interval')
  for axes in figure.axes:
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
  return figure


def draw_marks(groups, measures, looks, args, below):
  """A row of panels per group of rows, a column per measure.

  Args:
    groups: {heading: rows with a `method` and an estimate per measure}.
    measures: {name: (title, where the baseline stands)}.
    looks: from `styles`.
    args: from `parse`.
    below: text below the panels.
  """
  names = [
      [style.wrapped(label(row['method'], args), 36) for row in group]
      for group in groups.values()]
  headings = [style.wrapped(heading, 36) for heading in groups]
  lines = [[1 + 0.65 * name.count('\n') for name in group] for group in names]
  # A unit of the y axes is a fifth of an inch.
  heights = [0.2 * (1.1 + sum(group)) for group in lines]
  figure = mpl_figure.Figure(
      figsize=(8.5, sum(heights) + 0.32 * len(groups) + 0.4), dpi=style.DPI)
  grids = figure.subplots(
      len(groups), len(measures), squeeze=False, sharey='row',
      height_ratios=heights)
  for axes, (name, _) in zip(grids[0], measures.values()):
    style.set_title(axes, name)
  for line, heading, group, texts, sizes in zip(
      grids, headings, groups.values(), names, lines):
    ends = np.cumsum(sizes)
    places = ends - np.array(sizes) / 2
    for axes, (measure, (_, baseline)) in zip(line, measures.items()):
      axes.axvline(baseline, color='0.35', linewidth=1, linestyle='--')
      for place, row in zip(places, group):
        centre, low, high = row[measure]
        color = looks[row['method']]['color']
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot([centre], [place], 'o', color=color, markersize=4.5)
      axes.set_ylim(ends[-1] + 0.1, -1)
      axes.grid(False, axis='y')
      axes.tick_params(axis='y', length=0)
      axes.set_yticks([-0.5, *places], [heading, *texts])
      axes.xaxis.set_major_locator(mpl_ticker.MaxNLocator(4))
      axes.xaxis.set_major_formatter(style.step_text)
    line[0].get_yticklabels()[0].set_fontweight('bold')
  texts = [text for group in names for text in group] + headings
  style.arrange(grids.tolist(), heights, texts, below)
  return figure


def draw_profiles(tasks, ranges, looks, args):
  """Shares of runs above each normalised score, of methods on all tasks."""
  figure, panels = grid(len(scores.SCORES), args)
  handles = {}
  for axes, (name, score) in zip(panels, scores.SCORES):
    groups = {
        method: [
            np.array([
                scores.normalise(score(curve), ranges[task])
                for curve in methods[method]])
            for task, methods in tasks.items()]
        for method in scores.everywhere(tasks)}
    values = np.concatenate(sum(groups.values(), []))
    thresholds = np.linspace(
        min(0, values.min()), max(1, values.max()), 201)
    for method, group in groups.items():
      draw_band(
          axes, thresholds, scores.profile(group, thresholds), looks[method])
      handles[label(method, args)] = mpl_lines.Line2D([], [], **looks[method])
    style.set_title(axes, f'{name.capitalize()} score')
    dress(axes, args)
    axes.set_ylim(0, 1.03)
  for index, axes in enumerate(panels):
    outer(
        axes, index, panels, 'Normalised score', 'Share of runs above')
  style.arrange(in_rows(panels))
  style.add_legend(figure, handles)
  return figure


def draw_omega(points, args):
  """Scores over the transfer factor, a panel per task and score.

  A line joins methods that differ in nothing but the factor.
  """
  tasks = list(dict.fromkeys(
      point['task'] for point in points if point['omega'] is not None))
  panels_of = [
      (task, score) for score in ('overall', 'final') for task in tasks]
  figure, panels = grid(len(panels_of), args, min(len(tasks), 4))
  factors = sorted({p['omega'] for p in points} - {None})
  spread = factors[-1] - factors[0]
  lines = list(dict.fromkeys(
      p['line'] for p in points if p['omega'] is not None))
  references = list(dict.fromkeys(
      p['method'] for p in points if p['omega'] is None))
  alone = [
      line for line in lines
      if len({p['omega'] for p in points if p['line'] == line}) == 1]
  palette = style.PALETTES['contrast'][:6]
  handles = {}
  for axes, (task, score) in zip(panels, panels_of):
    here = [p for p in points if (p['task'], p['score']) == (task, score)]
    for index, method in enumerate(references):
      for point in here:
        if point['omega'] is None and point['method'] == method:
          handles[label(method, args)] = draw_reference(
              axes, point['estimate'], str(0.3 * (index % 3)),
              style.LINES[1 + index % 3])
    for index, name in enumerate(lines):
      line = [p for p in here if p['omega'] is not None and p['line'] == name]
      if line:
        # Single points stand beside others at their factor, not on top.
        others = [
            p['line'] for p in here if p['omega'] == line[0]['omega']]
        first = {other for other in others if other not in alone}
        beside = [other for other in others if other in alone]
        shift = name in alone and 0.03 * spread * (
            len(first) + beside.index(name))
        text = label if name in alone else line_label
        handles[text(name, args)] = draw_grid(
            axes, line, palette[index % len(palette)],
            'osD^v'[index // len(palette) % 5], shift)
    style.set_title(axes, style.wrapped(
        f'{title(task, args)}, {score}', title_width(args)))
    # Factors closer than their texts are wide have small ticks.
    shown = style.apart(factors, 0.32 / args.size[0] * spread)
    axes.set_xticks(shown, [f'{factor:g}' for factor in shown])
    axes.set_xticks(factors, minor=True)
    axes.yaxis.set_major_locator(style.ticks(args.yticks))
    axes.yaxis.set_major_formatter(style.value_text)
  for index, axes in enumerate(panels):
    outer(axes, index, panels, 'Transfer factor ω', axis_name(args.yaxis))
  style.arrange(in_rows(panels))
  style.add_legend(figure, handles)
  return figure


def line_label(method, args):
  """The name of methods that differ in their transfer factors alone."""
  name = reading.without_omega(method)
  return args.labels.get(name) or reading.without_omega(
      args.short.get(method, method))


def draw_grid(axes, points, color, marker, shift):
  points = sorted(points, key=lambda point: point['omega'])
  xs = [point['omega'] + shift for point in points]
  centre, low, high = np.array([point['estimate'] for point in points]).T
  axes.vlines(xs, low, high, color=color, linewidth=1.2)
  line, = axes.plot(
      xs, centre, marker=marker, color=color, markersize=4,
      linestyle='-' if len(xs) > 1 else '')
  return line


def draw_reference(axes, estimate, color, linestyle):
  centre, low, high = estimate
  if math.isfinite(low):
    axes.axhspan(low, high, color=color, alpha=0.08, linewidth=0)
  return axes.axhline(centre, color=color, linewidth=1.1, linestyle=linestyle)


def grid(number, args, cols=None):
  """An empty figure and its first `number` panels, row by row."""
  cols = min(args.cols or cols or columns(number), number)
  rows = math.ceil(number / cols)
  width, height = args.size
  figure = mpl_figure.Figure(
      figsize=(cols * width, rows * height), dpi=style.DPI)
  spec = figure.add_gridspec(rows, cols)
  panels = [figure.add_subplot(spec[divmod(i, cols)]) for i in range(number)]
  return figure, panels


def in_rows(panels):
  cols = panels[0].get_gridspec().ncols
  return [panels[at:at + cols] for at in range(0, len(panels), cols)]


def columns(number):
  return number if number <= 4 else math.ceil(math.sqrt(number))


def dress(axes, args, ylim=None):
  """Limits, ticks and their labels."""
  axes.xaxis.set_major_locator(style.ticks(args.xticks))
  axes.yaxis.set_major_locator(style.ticks(args.yticks))
  axes.xaxis.set_major_formatter(style.step_text)
  axes.yaxis.set_major_formatter(style.value_text)
  # Axes start at zero where the data come near it.
  for low, high, limit in (
      (axes.dataLim.xmin, axes.dataLim.xmax, axes.set_xlim),
      (axes.dataLim.ymin, axes.dataLim.ymax, axes.set_ylim)):
    if 0 <= low < 0.3 * high:
      limit(0)
  if args.xlim:
    axes.set_xlim(*args.xlim)
  if ylim:
    axes.set_ylim(*ylim)


def label_outer(panels, args):
  xlabel = args.xlabel or axis_name(args.xaxis)
  ylabel = args.ylabel or axis_name(args.yaxis)
  for index, axes in enumerate(panels):
    outer(axes, index, panels, xlabel, ylabel)


def outer(axes, index, panels, xlabel, ylabel):
  """Labels the left panels, and the lowest of each column."""
  cols = axes.get_gridspec().ncols
  if index % cols == 0:
    axes.set_ylabel(ylabel)
  if index + cols >= len(panels):
    axes.set_xlabel(xlabel)


def axis_name(key):
  return AXIS_NAMES.get(key) or re.sub(r'[/_]+', ' ', key).strip().capitalize()


def label(method, args):
  return named(args.labels, method, args) or args.short.get(method, method)


def title_width(args):
  """How many characters stand above a panel."""
  return max(8, int(11.5 * args.size[0]))


def title(task, args):
  """'dmc_walker_walk' as 'Walker Walk', 'HopperBulletEnv-v0' as 'Hopper'."""
  short = re.sub(r'BulletEnv-v\d+', '', task)
  if re.match(r'dmc_|atari_', task):
    short = task.split('_', 1)[1].replace('_', ' ').title()
  return args.labels.get(task, short)


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
  if args.baselines:
    args.baselines = matching(args.baselines, PUBLISHED, '--baselines')
  return args


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
