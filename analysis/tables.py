"""Tables of scores as text, Markdown and CSV."""

import numpy as np
import pandas as pd


def si(number):
  """A number of steps as people write it: 200K, 1M, 1.5M."""
  for unit, letter in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if abs(number) >= 0.9995 * unit:
      return f'{number / unit:.4g}{letter}'
  return f'{number:.4g}'


def write(stem, rows, how):
  """Writes rows as `stem` + .txt, .csv and .md; returns the text.

  Values `(centre, low, high)` become one cell, but three columns in the CSV.
  """
  # The values of a column keep their own types.
  frame = pd.DataFrame(rows, dtype=object)
  cells = pd.DataFrame({
      name.replace('_', ' '): [_cell(name, value, how) for value in frame[name]]
      for name in frame})
  text = _aligned(cells)
  stem.with_suffix('.txt').write_text(text + '\n', encoding='utf-8')
  stem.with_suffix('.md').write_text(_markdown(cells), encoding='utf-8')
  _flat(frame).to_csv(
      stem.with_suffix('.csv'), index=False, na_rep='nan',
      lineterminator='\r\n', encoding='utf-8')
  return text


def _flat(frame):
  columns = {}
  for name in frame:
    if isinstance(frame[name].iloc[0], tuple):
      for end, part in zip(('', '_low', '_high'), zip(*frame[name])):
        columns[name + end] = pd.Series(map(float, part), dtype=object)
    else:
      columns[name] = frame[name]
  return pd.DataFrame(columns)


def _cell(name, value, how):
  if not isinstance(value, (tuple, float)):
    return str(value)
  values = value if isinstance(value, tuple) else (value,)
  if not np.isfinite(values[0]):
    return '–'
  if name in ('p', 'p_holm', 'p_corrected'):
    # So that one sees on which side of 0.05 it is.
    return f'{values[0]:.{3 if 0.045 < values[0] < 0.055 else 2}g}'
  # One number of decimals for a value and its interval.
  largest = max(abs(value) for value in values if np.isfinite(value))
  decimals = 1 if largest >= 10 else 2 if largest >= 1 else 3
  show = si if name.startswith('steps') else f'{{:.{decimals}f}}'.format
  if np.isnan(values[-1]) or len(values) == 1:
    return show(values[0])
  centre, low, high = values
  if how == 'mean':
    return f'{show(centre)} ± {show(centre - low)}'
  return f'{show(centre)} [{show(low)}, {show(high)}]'


def _aligned(cells):
  columns = {}
  for name in cells:
    width = max(len(name), cells[name].str.len().max())
    columns[name.ljust(width)] = cells[name].str.ljust(width)
  lines = [columns, *zip(*columns.values())]
  return '\n'.join('  '.join(line).rstrip() for line in lines)


def _markdown(cells):
  cells = cells.replace(r'\|', r'\\|', regex=True)
  lines = [cells, ['---'] * len(cells.columns), *cells.itertuples(index=False)]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
