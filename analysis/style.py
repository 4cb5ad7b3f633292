"""The look of figures: colours, fonts, ticks, legends that fit, files."""

import math
import textwrap

import matplotlib
from matplotlib import font_manager
from matplotlib import lines as mpl_lines
from matplotlib import textpath
from matplotlib import ticker as mpl_ticker
import numpy as np

from analysis import tables

# Okabe and Ito's and Paul Tol's colours, which colour-blind readers can tell
# apart; without the yellows, which nobody sees on white.
PALETTES = dict(
    contrast=(
        '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
        '#000000', '#882255'),
    muted=(
        '#332288', '#CC6677', '#117733', '#88CCEE', '#882255', '#44AA99',
        '#999933', '#AA4499'))
LINES = ('-', '--', '-.', ':')
DPI = 200
LEGEND = 60  # names in a legend at most
COLUMNS = 6  # of a legend at most
RC = {
    'font.size': 9, 'axes.titlesize': 10, 'axes.labelsize': 9,
    'xtick.labelsize': 8, 'ytick.labelsize': 8, 'legend.fontsize': 9,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
    'axes.axisbelow': True, 'grid.color': '0.9', 'grid.linewidth': 0.6,
    'axes.edgecolor': '0.4', 'axes.linewidth': 0.8, 'xtick.color': '0.2',
    'ytick.color': '0.2', 'lines.linewidth': 1.5,
    # Journals ask for embedded TrueType; names of directories are no formulas.
    'pdf.fonttype': 42, 'text.parse_math': False}


def applied():
  """A context in which figures have this look."""
  return matplotlib.rc_context(RC)


def save(figure, stem):
  """Writes PNG and PDF, whose bytes follow from the figure alone."""
  # Agg draws no more than 65,536 pixels either way.
  dpi = min(DPI, 6e4 / max(figure.get_size_inches()))
  with applied():
    figure.savefig(f'{stem}.png', dpi=dpi)
    figure.savefig(f'{stem}.pdf', dpi=dpi, metadata={'CreationDate': None})


def ticks(most):
  """A locator of round numbers, `most` at most."""
  return mpl_ticker.MaxNLocator(
      max(most - 1, 1), steps=[1, 2, 2.5, 5, 10], min_n_ticks=1)


def step_text(value, _=None):
  return tables.si(value)


def value_text(value, _=None):
  return tables.si(value) if abs(value) >= 1e4 else f'{value:g}'


def apart(values, least):
  """The values that are at least so far from those kept before, ascending."""
  kept = []
  for value in sorted(values):
    if not kept or value - kept[-1] >= least:
      kept.append(value)
  return kept


def wrapped(text, width):
  """Text in lines of at most `width` characters."""
  return '\n'.join(textwrap.wrap(
      text, width, break_on_hyphens=False)) or text


def text_width(texts, size, weight='normal'):
  """The inches that the widest line of some texts takes."""
  measure = textpath.TextToPath().get_text_width_height_descent
  prop = font_manager.FontProperties(size=size, weight=weight)
  points = [
      measure(line, prop, False)[0] for text in set(texts)
      for line in text.split('\n')]
  return max(points, default=0) / 72


def tick_texts(axis):
  """The texts of an axis with a locator, for the limits that it has now."""
  low, high = sorted(axis.get_view_interval())
  values = [
      value for value in axis.get_major_locator()() if low <= value <= high]
  return axis.get_major_formatter().format_ticks(values)


def arrange(rows, heights=None, names=(), below=''):
  """Gives panels equal widths, and room for the texts around them.

  Matplotlib's own layouts measure every text several times, which for hundreds
  of panels takes minutes. Here it is done once, and only along the edges.

  Args:
    rows: lists of axes of one figure, each row from the left.
    heights: of the rows, relative to each other; all the same if None.
    names: texts in place of the numbers on the y axes of the first column.
    below: text below all panels.
  """
  figure = rows[0][0].figure
  width, height = figure.get_size_inches()
  gap = 0.1
  labelled = any(row[0].get_ylabel() for row in rows)
  margins = []
  for column in range(len(rows[0])):
    if not names:
      texts = [
          text for row in rows for axes in row[column:column + 1]
          for text in tick_texts(axes.yaxis)]
    else:
      texts = names if column == 0 else []
    margins.append(gap + text_width(
        texts, RC['ytick.labelsize'], 'bold' if names else 'normal'))
  margins[0] += 0.22 * labelled
  # The last number on an x axis reaches over its end.
  right = 0.5 * text_width([
      text for row in rows for axes in row
      for text in tick_texts(axes.xaxis)[-1:]], RC['xtick.labelsize']) + 0.02
  inner = (width - sum(margins)) / len(margins) - right
  tops = [_lines_above(row) for row in rows]
  bottoms = [
      0.22 + 0.2 * any(axes.get_xlabel() for axes in row) for row in rows]
  foot = 0.24 if below else 0.02
  room = height - sum(tops) - sum(bottoms) - foot
  heights = np.array(heights or [1] * len(rows)) * room / sum(
      heights or [1] * len(rows))
  top = height
  for row, above, under, tall in zip(rows, tops, bottoms, heights):
    top -= above + tall
    left = 0.0
    for margin, axes in zip(margins, row):
      left += margin
      axes.set_position(
          [left / width, top / height, inner / width, tall / height])
      # Fixed places need not be found again at every drawing.
      axes.yaxis.set_label_coords(-(margin - 0.18) / inner, 0.5)
      axes.xaxis.set_label_coords(0.5, -0.25 / tall)
      left += inner + right
    top -= under
  if below:
    figure.text(
        0.5, 0.04 / height, below, ha='center', va='bottom',
        fontsize=RC['axes.labelsize'])


def set_title(axes, text):
  # A given height need not be found again at every drawing.
  axes.set_title(text, y=1.0, pad=7)


def _lines_above(row):
  lines = [
      1 + axes.get_title().count('\n') for axes in row if axes.get_title()]
  return 0.13 + 0.17 * max(lines, default=0)


def add_legend(figure, handles):
  """One legend below the panels, with as many columns as fit, evenly filled.

  Names that are wider than the figure get several lines. The figure grows by
  the height of the legend.
  """
  more = len(handles) - LEGEND
  handles = dict(list(handles.items())[:LEGEND])
  if more > 0:
    handles[f'and {more} more'] = mpl_lines.Line2D([], [], linestyle='')
  # Matplotlib leaves out names that start with an underscore.
  names = ['\u200b' + n if n.startswith('_') else n for n in handles]

  def place(cols):
    # Evenly filled columns.
    cols = math.ceil(len(names) / math.ceil(len(names) / cols))
    legend = figure.legend(
        list(handles.values()), names, loc='lower center', ncols=cols,
        frameon=False, handlelength=2.2, columnspacing=1.4, borderpad=0.1,
        borderaxespad=0.3)
    extent = legend.get_window_extent()
    if extent.width <= figure.bbox.width:
      return legend, extent
    legend.remove()
    return None, extent

  legend, extent = place(1)
  longest = max(map(len, names))
  while not legend and longest > 8:
    longest = int(longest * min(0.95, figure.bbox.width / extent.width))
    names = [wrapped(name, longest) for name in names]
    legend, extent = place(1)
  for cols in range(2, min(COLUMNS, len(names)) + 1):
    wider, size = place(cols)
    if wider:
      if legend:
        legend.remove()
      legend, extent = wider, size
  # The panels keep their size.
  boxes = [axes.get_position() for axes in figure.axes]
  before = figure.get_figheight()
  inches = before + extent.height / figure.dpi + 0.06
  figure.set_figheight(inches)
  shrink = before / inches
  for axes, box in zip(figure.axes, boxes):
    axes.set_position([
        box.x0, 1 - (1 - box.y0) * shrink, box.width, box.height * shrink])
