"""Draws curves, score tables and transfer reports of any log directories.

  python3 plotting.py --indir ./logdir --outdir ./plots --xaxis step \\
      --yaxis test/return --bins 3e4
"""

import argparse
import difflib
import math
import pathlib
import re
import warnings

import matplotlib
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import ticker as mpl_ticker
import numpy as np

from analysis import scores
from common import terminal

# Okabe and Ito's and Paul Tol's colours, which colour-blind readers can tell
# apart; without the yellows, which nobody sees on white.
PALETTES = dict(
    contrast=(
        '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
        '#000000', '#999999'),
    muted=(
        '#332288', '#CC6677', '#117733', '#88CCEE', '#882255', '#44AA99',
        '#999933', '#AA4499'))
LINES = ('-', '--', '-.', ':')
LEGEND = 60  # names in a legend at most
STYLE = {
    'font.size': 9, 'axes.titlesize': 10, 'axes.labelsize': 9,
    'xtick.labelsize': 8, 'ytick.labelsize': 8, 'legend.fontsize': 9,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
    'axes.axisbelow': True, 'grid.color': '0.9', 'grid.linewidth': 0.6,
    'axes.edgecolor': '0.4', 'axes.linewidth': 0.8, 'xtick.color': '0.2',
    'ytick.color': '0.2', 'lines.linewidth': 1.5,
    # Journals ask for embedded TrueType; names of directories are no formulas.
    'pdf.fonttype': 42, 'text.parse_math': False}
AXIS_NAMES = {
    'step': 'Environment steps', 'test/return': 'Test return',
    'train/return': 'Training return'}
# Text in the legend, colour and dashes of the published scores.
PUBLISHED = {
    'dreamer_1e6': ('Dreamer, published (1M)', '0.6', (0, (6, 2))),
    'dreamer_5e6': ('Dreamer, published (5M)', '0.25', (0, (6, 2))),
    'planet_1e6': ('PlaNet (1M)', '#117733', (0, (4, 1.5, 1, 1.5))),
    'slac_3e6': ('SLAC (3M)', '#AA4499', (0, (2, 1))),
    'd4pg_100m': ('D4PG (100M)', '#882255', (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    'a3c_100m_proprio': ('A3C (100M, proprio)', '#999933', (0, (1, 1.5)))}
CAPTIONS = dict(
    mean='mean ± standard deviation', median='median [quartiles]',
    iqm='interquartile mean [95 % bootstrap interval]',
    difference='mean [95 % bootstrap interval], against scratch')
MEASURES = {
    'jump_start': ('Jump-start', 0), 'area_ratio': ('Area ratio', 1),
    'final_difference': ('Final difference', 0),
    'steps_saved': ('Steps saved', 0)}


def main(argv):
  # A sign that the font lacks is drawn as a box; there is nothing to do.
  warnings.filterwarnings('ignore', 'Glyph')
  args = parse(argv)
  outdir = args.outdir
  if args.subdir:
    outdir = outdir / args.indir[0].resolve().name
  figures, tables = make(args)
  try:
    outdir.mkdir(parents=True, exist_ok=True)
    for name, (rows, how) in tables.items():
      table = scores.write_tables(outdir / name, rows, how)
      terminal.say(f'{name} ({CAPTIONS[how]})\n{table}\n')
    for name, figure in figures.items():
      save(figure, outdir / name)
  except OSError as error:
    raise terminal.UserError(
        f"cannot write to --outdir '{outdir}': {error.strerror}.") from None
  names = ', '.join(dict.fromkeys([*figures, *tables]))
  terminal.say(f'wrote {names} to {outdir}')


def make(args):
  """`({name: Figure}, {name: (rows, kind of interval)})` for parsed flags."""
  curves = scores.load(args.indir, args.xaxis, args.yaxis)
  tasks = scores.by_task(select(curves, args))
  width = args.bins or scores.automatic_width(flat(tasks))
  ranges = {
      task: scores.score_range(
          task, flat({task: methods}), width, args.yaxis)
      for task, methods in tasks.items()}
  looks = styles(tasks, args)
  how = 'mean' if args.aggregate == 'none' else args.aggregate
  with matplotlib.rc_context(STYLE):
    figures = {'curves': draw_curves(tasks, width, looks, args)}
    if scores.common_methods(tasks) and args.aggregate != 'none':
      figures['all-tasks'] = draw_all_tasks(tasks, width, ranges, looks, args)
    tables = {'scores': (scores.score_rows(tasks, ranges, how), how)}
    if args.transfer_report:
      rows = scores.transfer_rows(tasks, width, args.threshold)
      if not rows:
        raise terminal.UserError(
            '--transfer-report needs runs with transfer and scratch runs '
            '(dreamer.py, or dreamer-FTL.py without transfer) of one task.')
      tables['transfer'] = rows, 'difference'
      figures['transfer'] = draw_transfer(rows, looks, args)
      points = scores.omega_rows(tasks)
      if len({point['omega'] for point in points} - {None}) > 1:
        figures['omega'] = draw_omega(points, args)
  return figures, tables


def flat(tasks):
  return [
      curve for methods in tasks.values() for curves in methods.values()
      for curve in curves]


def save(figure, stem):
  """Writes PNG and PDF."""
  # Agg draws no more than 65,536 pixels either way.
  dpi = min(200, 6e4 / max(figure.get_size_inches()))
  with matplotlib.rc_context(STYLE):
    for ending in ('.png', '.pdf'):
      figure.savefig(stem.with_suffix(ending), dpi=dpi)


# What to draw


def select(curves, args):
  """What --tasks, --methods and --until name, tasks in the order named."""
  if args.until:
    curves = scores.until(curves, args.until)
  tasks = matching(args.tasks, {c.task for c in curves}, '--tasks')
  methods = matching(args.methods, {c.method for c in curves}, '--methods')
  chosen = [c for task in tasks for c in curves
            if c.task == task and c.method in methods]
  if not chosen:
    raise terminal.UserError(
        'no run fits both --tasks and --methods: widen one of them.')
  return chosen


def matching(patterns, names, flag):
  """The names that one of the patterns finds, in the order of the patterns."""
  result = []
  for pattern in patterns:
    found = sorted(
        (name for name in names if re.search(pattern, name)),
        key=scores.method_order)
    if not found:
      known = ', '.join(sorted(names, key=scores.method_order))
      raise terminal.UserError(
          f"{flag} '{pattern}' fits nothing; there is {known}.")
    result += [name for name in found if name not in result]
  return result


def styles(tasks, args):
  """`{method: dict(color, linestyle)}`, the same in all panels and figures."""
  methods = sorted(
      {method for methods in tasks.values() for method in methods},
      key=scores.method_order)
  palette = colors_of(args.palette, len(methods))
  looks = {}
  for index, method in enumerate(methods):
    turn, place = divmod(index, len(palette))
    looks[method] = dict(
        color=args.colors.get(method, palette[place]),
        linestyle=LINES[turn % len(LINES)])
  known = set(methods) | set(tasks)
  for flag, names in (
      ('--colors', args.colors), ('--labels', args.labels)):
    for name in sorted(set(names) - known - set(PUBLISHED)):
      terminal.warn(f"{flag} names '{name}', which is not drawn.")
  return looks


def colors_of(palette, number):
  """Colours from a palette's or colormap's name or from a list of colours."""
  if len(palette) == 1 and palette[0] in PALETTES:
    return PALETTES[palette[0]]
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
  drawn, sources = {}, {}
  for axes, (task, methods) in zip(panels, tasks.items()):
    for name, values in chosen_baselines(task, args).items():
      sources[name] = draw_baseline(axes, name, values)
    for method, curves in methods.items():
      drawn[method] = looks[method]
      centres, values = scores.aligned(curves, width)
      if args.aggregate == 'none':
        for row in values:
          some = np.isfinite(row)
          draw_line(axes, centres[some], row[some], looks[method], 0.8)
      else:
        draw_band(
            axes, centres, scores.curve_summary(args.aggregate, values),
            looks[method])
    axes.set_title(title(task, args))
    dress(axes, args, args.ylim)
  if args.baselines is not None and not sources:
    terminal.warn('no published score for these tasks and --baselines.')
  label_outer(panels, args)
  handles = {
      label(method, args): mpl_lines.Line2D([], [], **look)
      for method, look in sorted(
          drawn.items(), key=lambda item: scores.method_order(item[0]))}
  handles.update({
      args.labels.get(name, PUBLISHED[name][0]): sources[name]
      for name in PUBLISHED if name in sources})
  add_legend(figure, handles)
  return figure


def draw_all_tasks(tasks, width, ranges, looks, args):
  """Normalised scores over all tasks, of the methods that ran all of them."""
  figure, (axes,) = grid(1, args)
  handles = {}
  for method in scores.common_methods(tasks):
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
  axes.set_title(f'{len(tasks)} tasks')
  dress(axes, args)
  axes.set_xlabel(args.xlabel or axis_name(args.xaxis))
  axes.set_ylabel((args.ylabel or axis_name(args.yaxis)) + ' (normalised)')
  add_legend(figure, handles)
  return figure


def draw_line(axes, xs, ys, look, width=None):
  # A line through one point would not be seen.
  marker = 'o' if len(xs) == 1 else None
  axes.plot(xs, ys, marker=marker, markersize=4, linewidth=width, **look)


def draw_band(axes, xs, summary, look):
  centre, low, high = summary
  some = np.isfinite(centre)
  draw_line(axes, xs[some], centre[some], look)
  some = np.isfinite(low)
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
  """A row of panels per task, a column per measure, a mark per method."""
  tasks = list(dict.fromkeys(row['task'] for row in rows))
  groups = [[row for row in rows if row['task'] == task] for task in tasks]
  heights = [0.6 + 0.22 * len(group) for group in groups]
  figure = mpl_figure.Figure(
      figsize=(8.5, sum(heights) + 0.5), layout='constrained')
  grids = figure.subplots(
      len(tasks), len(MEASURES), squeeze=False, sharey='row',
      height_ratios=heights)
  for axes, (name, _) in zip(grids[0], MEASURES.values()):
    axes.set_title(name)
  for line, task, group in zip(grids, tasks, groups):
    for axes, (measure, (_, reference)) in zip(line, MEASURES.items()):
      axes.axvline(reference, color='0.35', linewidth=1, linestyle='--')
      for place, row in enumerate(group):
        centre, low, high = row[measure]
        color = looks[row['method']]['color']
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot([centre], [place], 'o', color=color, markersize=4.5)
      axes.set_ylim(len(group) - 0.4, -0.6)
      axes.grid(False, axis='y')
      axes.tick_params(axis='y', length=0)
      axes.set_yticks(
          range(len(group)), [label(row['method'], args) for row in group])
      axes.xaxis.set_major_locator(mpl_ticker.MaxNLocator(4))
      axes.xaxis.set_major_formatter(lambda x, _: scores.si(x))
    line[0].set_ylabel(title(task, args))
  figure.supxlabel(
      'Against training from scratch (dashed): mean and 95 % interval; '
      'better to the right', fontsize=9)
  return figure


def draw_omega(points, args):
  """Scores over the transfer factor, one panel per task."""
  tasks = list(dict.fromkeys(
      point['task'] for point in points if point['omega'] is not None))
  figure, panels = grid(len(tasks), args)
  handles = {}
  for axes, task in zip(panels, tasks):
    for score, color in zip(('overall', 'final'), PALETTES['muted']):
      lines = {}
      for point in points:
        if (point['task'], point['score']) == (task, score):
          lines.setdefault(point['method'], []).append(point)
      for method, line in lines.items():
        draw = draw_grid if line[0]['omega'] is not None else draw_reference
        handles[f'{label(method, args)}, {score}'] = draw(axes, line, color)
    axes.set_title(title(task, args))
    axes.yaxis.set_major_locator(ticks(args.yticks))
    axes.yaxis.set_major_formatter(lambda y, _: value_text(y))
  for index, axes in enumerate(panels):
    outer(axes, index, panels, 'Transfer factor ω', axis_name(args.yaxis))
  add_legend(figure, handles)
  return figure


def draw_grid(axes, points, color):
  points = sorted(points, key=lambda point: point['omega'])
  xs = [point['omega'] for point in points]
  centre, low, high = np.array([point['estimate'] for point in points]).T
  axes.set_xticks(xs)
  axes.vlines(xs, low, high, color=color, linewidth=1.2)
  line, = axes.plot(xs, centre, 'o-', color=color, markersize=4)
  return line


def draw_reference(axes, points, color):
  centre, low, high = points[0]['estimate']
  if math.isfinite(low):
    axes.axhspan(low, high, color=color, alpha=0.1, linewidth=0)
  return axes.axhline(centre, color=color, linewidth=1.1, linestyle='--')


def grid(number, args):
  """An empty figure and its first `number` panels."""
  cols = min(args.cols or columns(number), number)
  rows = math.ceil(number / cols)
  width, height = args.size
  figure = mpl_figure.Figure(
      figsize=(cols * width, rows * height), layout='constrained')
  spec = figure.add_gridspec(rows, cols)
  panels = [figure.add_subplot(spec[divmod(i, cols)]) for i in range(number)]
  return figure, panels


def columns(number):
  return number if number <= 4 else math.ceil(math.sqrt(number))


def dress(axes, args, ylim=None):
  """Limits, ticks and their labels."""
  axes.xaxis.set_major_locator(ticks(args.xticks))
  axes.yaxis.set_major_locator(ticks(args.yticks))
  axes.xaxis.set_major_formatter(lambda x, _: scores.si(x))
  axes.yaxis.set_major_formatter(lambda y, _: value_text(y))
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


def ticks(most):
  return mpl_ticker.MaxNLocator(
      max(most - 1, 1), steps=[1, 2, 2.5, 5, 10], min_n_ticks=1)


def value_text(value):
  return scores.si(value) if abs(value) >= 1e4 else f'{value:g}'


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


def add_legend(figure, handles):
  """One legend below the panels, with as many columns as fit, evenly filled."""
  more = len(handles) - LEGEND
  handles = dict(list(handles.items())[:LEGEND])
  if more > 0:
    handles[f'and {more} more'] = mpl_lines.Line2D([], [], linestyle='')
  # Matplotlib leaves out names that start with an underscore.
  names = ['\u200b' + n if n.startswith('_') else n for n in handles]
  place = lambda cols: figure.legend(
      list(handles.values()), names, loc='outside lower center', ncols=cols,
      frameon=False, handlelength=2.2, columnspacing=1.4, borderpad=0.1,
      borderaxespad=0.3)
  narrow = place(1)
  cols = max(1, int(figure.bbox.width // narrow.get_window_extent().width))
  narrow.remove()
  legend = place(math.ceil(len(names) / math.ceil(len(names) / cols)))
  figure.align_ylabels()
  # The panels keep their size.
  inches = legend.get_window_extent().height / figure.dpi
  figure.set_figheight(figure.get_figheight() + inches)


def axis_name(key):
  return AXIS_NAMES.get(key) or re.sub(r'[/_]+', ' ', key).strip().capitalize()


def label(method, args):
  return args.labels.get(method, method)


def title(task, args):
  """'dmc_walker_walk' as 'Walker Walk', 'HopperBulletEnv-v0' as 'Hopper'."""
  short = re.sub(r'BulletEnv-v\d+', '', task)
  if re.match(r'dmc_|atari_', task):
    short = task.split('_', 1)[1].replace('_', ' ').title()
  return args.labels.get(task, short)


# Flags


class Parser(argparse.ArgumentParser):

  def error(self, message):
    message = message.removeprefix('argument ')
    unknown = re.match(r'unrecognized arguments: (--[^\s=]+)', message)
    if unknown:
      near = difflib.get_close_matches(
          unknown.group(1), self._option_string_actions, 2)
      message = f'unknown flag {unknown.group(1)}'
      if near:
        message += f', did you mean {" or ".join(near)}?'
    raise terminal.UserError(f'{message.rstrip(".")} (--help lists the flags)')


def parse(argv):
  """Flags as a namespace; what is wrong with them raises `UserError`."""
  parser = Parser(
      prog='plotting.py', description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--indir', nargs='+', type=pathlib.Path, required=True,
      help='folders of runs, in any nesting')
  add('--outdir', type=pathlib.Path, required=True,
      help='where figures and tables go')
  add('--subdir', type=boolean, default=True,
      help='put them into a folder named like the first --indir (True)')
  add('--xaxis', default='step', help='key of metrics.jsonl (step)')
  add('--yaxis', default='test/return',
      help='key of metrics.jsonl (test/return)')
  add('--tasks', nargs='+', type=pattern, default=['.*'], metavar='REGEX',
      help='tasks to draw, in this order')
  add('--methods', nargs='+', type=pattern, default=['.*'], metavar='REGEX',
      help='methods to draw')
  add('--baselines', nargs='*', type=pattern, metavar='REGEX',
      help=f'published scores: all, or of {", ".join(PUBLISHED)}')
  add('--until', type=positive, metavar='STEPS',
      help='leave out what comes after so many steps')
  add('--bins', type=positive,
      help='steps per bin (a thirtieth of the longest run)')
  add('--aggregate', type=aggregate, default='mean', metavar='HOW',
      help='mean (with standard deviation), median (with quartiles), iqm '
      '(interquartile mean with stratified bootstrap 95%% intervals) or none '
      '(single curves)')
  add('--transfer-report', '--transfer_report', nargs='?', type=boolean,
      const=True, default=False,
      help='compare transfer with scratch runs of the same task')
  add('--threshold', type=number,
      help='return for steps to threshold (nine tenths of scratch)')
  add('--size', nargs=2, type=positive, default=(2.5, 2.1),
      metavar=('WIDTH', 'HEIGHT'), help='inches of a panel (2.5 2.1)')
  add('--cols', type=whole, help='panels beside each other')
  add('--xlim', nargs=2, type=number, metavar=('LOW', 'HIGH'))
  add('--ylim', nargs=2, type=number, metavar=('LOW', 'HIGH'))
  add('--xlabel', help='text of the x axis')
  add('--ylabel', help='text of the y axis')
  add('--xticks', type=whole, default=6, help='most ticks on the x axis (6)')
  add('--yticks', type=whole, default=6, help='most ticks on the y axis (6)')
  add('--labels', nargs='+', default=[], metavar='NAME LABEL',
      help='pairs: what to write for a method or task')
  add('--palette', nargs='+', default=['contrast'],
      help=f'{", ".join(PALETTES)}, a Matplotlib colormap, or colours')
  add('--colors', nargs='+', default=[], metavar='METHOD COLOR',
      help='pairs: the colour of a method')
  # argparse takes -1e3 for a flag; a blank in front makes it a value.
  args = parser.parse_args([
      f' {word}' if re.match(r'-[\d.]', word) else word for word in argv])
  return checked(args)


def checked(args):
  for flag in ('labels', 'colors'):
    words = getattr(args, flag)
    if len(words) % 2:
      raise terminal.UserError(
          f'--{flag} takes pairs of a name and its {flag[:-1]}: '
          f"'{words[-1]}' stands alone.")
    setattr(args, flag, dict(zip(words[::2], words[1::2])))
  for flag in ('xlim', 'ylim'):
    limits = getattr(args, flag)
    if limits and limits[0] >= limits[1]:
      raise terminal.UserError(f'--{flag} takes the lower limit first.')
  named = len(args.palette) == 1 and (
      args.palette[0] in PALETTES or args.palette[0] in matplotlib.colormaps)
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


def number(text):
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise argparse.ArgumentTypeError(f"takes a number, not '{text}'")
  return value


def positive(text):
  value = number(text)
  if value <= 0:
    raise argparse.ArgumentTypeError(f'must be more than 0, not {text}')
  return value


def whole(text):
  value = number(text)
  if value < 1 or value != int(value):
    raise argparse.ArgumentTypeError(
        f'must be a whole number from 1, not {text}')
  return int(value)


def boolean(text):
  if text.lower() not in ('true', 'false'):
    raise argparse.ArgumentTypeError(f"takes True or False, not '{text}'")
  return text.lower() == 'true'


def aggregate(text):
  # Commands written for other Dreamer scripts say True or False.
  kind = {'true': 'mean', 'false': 'none', 'std': 'mean'}.get(
      text.lower(), text.lower())
  if kind not in ('mean', 'median', 'iqm', 'none'):
    raise argparse.ArgumentTypeError(
        f"takes mean, median, iqm or none, not '{text}'")
  return kind


def pattern(text):
  try:
    re.compile(text)
  except re.error as error:
    raise argparse.ArgumentTypeError(
        f"'{text}' is no regular expression: {error}") from None
  return text


if __name__ == '__main__':
  terminal.run(main)
