"""Compares pages and figures of results/ with the runs that are kept there."""

from results import second
import running

# What pages call the targets of the second study.
TARGET_NAMES = {
    second.SPARSE: 'cart pole, sparse',
    second.PENDULUM: 'InvertedPendulumSwingup', second.HOPPER: 'Hopper'}


def one_line(path):
  """The text of a page, with single spaces between its words."""
  return ' '.join((running.ROOT / path).read_text().split())


def check_drawn(table, stored, out, least):
  """Draws the runs of a study again; tables are the same, figures are there.

  Args:
    table: module of the study.
    stored: what it keeps.
    out: directory to draw into.
    least: tables that there are at least.
  """
  out.mkdir()
  (out / 'runs').symlink_to(stored / 'runs')
  assert table.main(['--do', 'draw', '--out', str(out)]) == 0
  tables = sorted(out.glob('*.csv')) + sorted((out / 'figures').rglob('*.csv'))
  assert len(tables) >= least
  for path in tables:
    assert path.read_text() == (stored / path.relative_to(out)).read_text()
  for path in (out / 'figures').rglob('*.png'):
    assert (stored / path.relative_to(out)).stat().st_size > 5000


def finding_words(row):
  """A row of findings.csv as it stands in the table of a page."""
  words = [
      '{:{form}} [{:{form}}, {:{form}}]'.format(
          *(float(row[name + end]) for end in ('', '_low', '_high')), form=form)
      for name, form in (('area_ratio', '.2f'), ('final_difference', '.0f'))]
  return ' | '.join([
      f'| {TARGET_NAMES[row["task"]]}', second.LABELS[row['method']], *words,
      f'{float(row["p_corrected"]):.2g}', f'{row["finding"]} |'])
