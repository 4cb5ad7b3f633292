"""Curves, statistics, tables and figures from synthetic log directories."""

import csv
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tracemalloc

from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest
import scipy.stats

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis import drawing
from analysis import reading
from analysis import scores
from analysis import style
from analysis import tables
from common import terminal
import plotting

STEPS = np.arange(1, 101) * 1e4


def write_run(folder, ys, xs=STEPS, config=None, prefix='', ending='\n'):
  folder.mkdir(parents=True, exist_ok=True)
  if config is not None:
    (folder / 'config.json').write_text(json.dumps(config))
  with (folder / 'metrics.jsonl').open('w') as file:
    for index, (x, y) in enumerate(zip(xs, ys)):
      row = {'step': x, 'test/return': y, 'test/length': 1000.0}
      if prefix:
        row = {'step': x, prefix + 'test/return': y, 'test/return': y}
      file.write(json.dumps({**row, 'episodes': index}) + '\n')
      file.write(json.dumps({'step': x, 'model_loss': 1.0, 'fps': 30}) + '\n')
  return folder


def ftl(task, seed, **flags):
  return dict(
      task='dmc_walker_walk', task1=task, task2='', seed=seed,
      script='dreamer-FTL.py', **flags)


def make(logdir, *flags):
  return plotting.make(plotting.parse(
      ['--indir', str(logdir), '--outdir', 'unused', '--bins', '1e5', *flags]))


def bands(axes):
  return [band.get_paths()[0].vertices for band in axes.collections]


def drawn_lines(axes):
  return [line for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.fixture
def two_tasks(tmp_path):
  """Two tasks, two methods, three seeds: constant 10, 20, 60 and so on."""
  for task, base in (('dmc_walker_walk', 0), ('dmc_cup_catch', 100)):
    for method, gain in (('dreamer', 0), ('planet', 300)):
      for seed, ys in enumerate((10, 20, 60)):
        write_run(
            tmp_path / task / method / str(seed),
            np.full(100, base + gain + ys, float))
  return tmp_path


# Reading


def test_command_as_written(tmp_path):
  for seed in range(2):
    write_run(
        tmp_path / 'logdir' / 'dmc_walker_walk' / 'dreamer' / str(seed), STEPS)
  done = subprocess.run(
      [sys.executable, str(ROOT / 'plotting.py'), *(
          '--indir ./logdir --outdir ./plots --xaxis step '
          '--yaxis test/return --bins 3e4').split()],
      cwd=tmp_path, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, '')
  out = tmp_path / 'plots' / 'logdir'
  assert (out / 'curves.png').read_bytes()[:4] == b'\x89PNG'
  assert (out / 'curves.pdf').read_bytes()[:4] == b'%PDF'
  assert 'dmc_walker_walk' in (out / 'scores.txt').read_text()
  assert 'dreamer' in done.stdout


def test_a_bad_flag_is_one_line_and_a_status(tmp_path):
  done = subprocess.run(
      [sys.executable, str(ROOT / 'plotting.py'), '--indir', str(tmp_path),
       '--outdir', str(tmp_path), '--bin', '3e4'],
      capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert re.fullmatch(r'error: .*--bin.*--bins.*\n', done.stderr)


@pytest.mark.parametrize('flags, words', [
    ('--bins zero', '--bins'), ('--bins 0', '--bins'),
    ('--bins inf', '--bins'), ('--aggregate mode', 'iqm'),
    ('--tasks [', '--tasks'), ('--tasks nothing', 'dmc_walker_walk'),
    ('--methods nothing', 'planet'), ('--xlim 2 1', '--xlim'),
    ('--xlim 2', '--xlim'), ('--labels one', '--labels'),
    ('--colors dreamer notacolor', 'notacolor'),
    ('--palette notacolor', 'notacolor'), ('--baselines rainbow', 'rainbow'),
    ('--subdir maybe', '--subdir'), ('--cols 0', '--cols'),
    ('--until 0', '--until'), ('--until 1', 'larger'),
    ('--xticks 1.5', '--xticks'), ('--yaxis tset/return', 'test/return'),
    ('--transfer-report', 'scratch'), ('--indir missing', 'missing'),
    ('--wrong 1', '--wrong')])
def test_bad_flags(two_tasks, tmp_path, flags, words, capsys):
  methods = [] if '--methods' in flags else ['--methods', 'planet']
  if '--transfer' not in flags:
    methods = []
  with pytest.raises(SystemExit) as stop:
    terminal.run(plotting.main, [
        '--indir', str(two_tasks), '--outdir', str(tmp_path / 'out'),
        *methods, *flags.split()])
  assert stop.value.code == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: ') and words in error
  assert not (tmp_path / 'out').exists()


def test_required_flags_and_a_file_as_outdir(two_tasks, tmp_path, capsys):
  with pytest.raises(terminal.UserError, match='--indir'):
    plotting.main(['--outdir', 'x'])
  file = tmp_path / 'file'
  file.write_text('')
  with pytest.raises(terminal.UserError, match='--outdir'):
    plotting.main(['--indir', str(two_tasks), '--outdir', str(file)])


def test_until_is_as_if_the_runs_had_ended(tmp_path, capsys):
  for folder, xs in (('long', STEPS), ('short', STEPS[:40])):
    for seed in range(2):
      write_run(
          tmp_path / folder / 'dmc_walker_walk' / 'dreamer' / str(seed),
          xs + seed, xs)
  write_run(
      tmp_path / 'long' / 'dmc_walker_walk' / 'dreamer' / '9', STEPS[50:],
      STEPS[50:])
  for folder, flags in (
      ('long', ['--until', str(STEPS[39])]), ('short', [])):
    plotting.main([
        '--indir', str(tmp_path / folder), '--outdir', str(tmp_path / 'out'),
        '--bins', '5e4', *flags])
  assert '1 run' in capsys.readouterr().err
  long, short = (
      (tmp_path / 'out' / folder / 'scores.csv').read_text()
      for folder in ('long', 'short'))
  assert long == short


def test_no_runs(tmp_path):
  with pytest.raises(terminal.UserError, match='no metrics.jsonl'):
    make(tmp_path)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "model_loss": 2}\n')
  with pytest.raises(terminal.UserError, match='model_loss'):
    make(tmp_path)


@pytest.mark.parametrize('config, expected', [
    (dict(task='dmc_cup_catch', seed=3, script='dreamer.py'),
     ('dmc_cup_catch', 'dreamer', '3')),
    (ftl('Hopper', 1, transfer=True, transfer_factor=0.2),
     ('Hopper', 'FTL ω=0.2', '1')),
    (ftl('Hopper', 1, transfer=True, transfer_factor=0.0),
     ('Hopper', 'FTL ω=0', '1')),
    (ftl('Hopper', 2, transfer=False, transfer_factor=0.2),
     ('Hopper', 'scratch', '2')),
    (dict(task1='Ant', seed=0, n_meta=2, script='dreamer-MMTL.py'),
     ('Ant', 'MMTL N=2', '0')),
    (dict(task1='Ant', task2='Hopper', seed=0, script='dreamer-multi-task.py'),
     ('Ant + Hopper', 'multi-task', '0')),
    (dict(task='dmc_cup_catch'), ('dmc_cup_catch', 'planet', '7')),
    ({}, ('dmc_walker_walk', 'planet', '7'))])
def test_identity_from_configuration_else_from_path(
    tmp_path, config, expected):
  folder = tmp_path / 'dmc_walker_walk' / 'planet' / '7'
  write_run(folder, [1, 2], config=config)
  curve, = reading.load([tmp_path])
  assert (curve.task, curve.method, curve.seed) == expected


@pytest.mark.parametrize('inner, indir, expected', [
    ('a/b/task/method/seed', '.', ('task', 'method', 'seed')),
    ('logdir/frac-cheetah', 'logdir', ('logdir', 'frac-cheetah', '0')),
    ('logdir/walker/dreamer', 'logdir', ('walker', 'dreamer', '0')),
    ('walker/dreamer/3', 'walker/dreamer', ('walker', 'dreamer', '3')),
    ('logdir', 'logdir', (None, 'logdir', '0'))])
def test_identity_from_directory_names(tmp_path, inner, indir, expected):
  write_run(tmp_path / inner, [1, 2])
  curve, = reading.load([tmp_path / indir])
  task = expected[0] or tmp_path.name
  assert (curve.task, curve.method, curve.seed) == (task, *expected[1:])


def test_a_multi_task_run_gives_a_curve_per_task(tmp_path):
  config = dict(task1='A', task2='B', seed=0, script='dreamer-multi-task.py')
  folder = write_run(tmp_path / 'run', [1, 3], [10, 30], config, prefix='A/')
  text = (folder / 'metrics.jsonl').read_text()
  write_run(folder, [2, 4], [20, 40], config, prefix='B/')
  with (folder / 'metrics.jsonl').open('a') as file:
    file.write(text)
  curves = {curve.task: curve for curve in reading.load([tmp_path])}
  assert sorted(curves) == ['A', 'B']
  assert curves['A'].ys.tolist() == [1, 3]
  assert curves['B'].xs.tolist() == [20, 40]


def test_runs_that_differ_in_a_flag_are_not_averaged(tmp_path):
  for seed in range(2):
    for rate in (1e-4, 6e-4):
      write_run(tmp_path / f'{rate}-{seed}', [1, 2], config=dict(
          task='t', script='dreamer.py', seed=seed, model_lr=rate,
          logdir=f'x{rate}', steps=1e5 + seed))
  write_run(tmp_path / 'other', [1, 2], config=dict(
      task='u', script='dreamer.py', seed=0, model_lr=6e-4, batch_size=3))
  methods = sorted((c.task, c.method, c.seed) for c in reading.load([tmp_path]))
  assert methods == [
      ('t', 'dreamer model_lr=0.0001', '0'),
      ('t', 'dreamer model_lr=0.0001', '1'),
      ('t', 'dreamer model_lr=0.0006', '0'),
      ('t', 'dreamer model_lr=0.0006', '1'),
      ('u', 'dreamer model_lr=0.0006', '0')]


def sourced(task, seed, source, **flags):
  return ftl(
      task, seed, transfer=True, transfer_factor=0.2, source=source, **flags)


def test_runs_with_different_sources_are_not_averaged(tmp_path, capsys):
  for source in ('pendulums', 'walkers'):
    for seed in range(2):
      write_run(tmp_path / f'{source}{seed}', [1, 2], config=sourced(
          'Hop', seed, f'./logdir/{source}/variables.pkl'))
  for meta in ('a', 'b'):
    write_run(tmp_path / meta, [1, 2], config=dict(
        task1='Hop', seed=0, n_meta=8, script='dreamer-MMTL.py', meta8=meta))
  curves = reading.load([tmp_path])
  assert sorted({curve.method for curve in curves}) == [
      'FTL ω=0.2 source=./logdir/pendulums/variables.pkl',
      'FTL ω=0.2 source=./logdir/walkers/variables.pkl',
      'MMTL N=8 meta8=a', 'MMTL N=8 meta8=b']
  assert sorted({curve.label for curve in curves}) == [
      'FTL ω=0.2, source=pendulums', 'FTL ω=0.2, source=walkers',
      'MMTL N=8, meta8=a', 'MMTL N=8, meta8=b']
  assert '--merge' in capsys.readouterr().err


def test_sources_without_a_name_are_told_apart(tmp_path, capsys):
  """Those that were copied to the log directory, or lay above it."""
  for name, seed, digest in (('a', 0, 'a'), ('b', 1, 'a'), ('c', 2, 'b')):
    write_run(tmp_path / name, [1, 2], config=sourced(
        'Hop', seed, '', source_sha256=64 * digest))
    meta_model(
        tmp_path / f'm{name}', seed, meta1='cheetah', meta1_sha256=64 * digest)
  curves = reading.load([tmp_path])
  assert {curve.path.name: curve.method for curve in curves} == {
      'a': 'FTL ω=0.2 source=aaaaaaaa', 'b': 'FTL ω=0.2 source=aaaaaaaa',
      'c': 'FTL ω=0.2 source=bbbbbbbb',
      'ma': 'MMTL N=2 meta1=cheetah aaaaaaaa',
      'mb': 'MMTL N=2 meta1=cheetah aaaaaaaa',
      'mc': 'MMTL N=2 meta1=cheetah bbbbbbbb'}
  err = capsys.readouterr().err
  assert 'different source (FTL ω=0.2), meta1 (MMTL N=2) are methods' in err
  curves = reading.load([tmp_path], merge=['source|meta.'])
  assert {curve.method for curve in curves} == {'FTL ω=0.2', 'MMTL N=2'}


def test_runs_of_before_hashes_were_written_are_as_they_were(tmp_path, capsys):
  write_run(tmp_path / 'a', [1, 2], config=sourced('Hop', 0, 's'))
  write_run(tmp_path / 'b', [1, 2], config=sourced(
      'Hop', 1, 's', source_sha256=64 * 'a'))
  assert {curve.method for curve in reading.load([tmp_path])} == {'FTL ω=0.2'}
  assert not capsys.readouterr().err


def test_merged_flags_are_named(tmp_path, capsys):
  for seed in range(3):
    write_run(
        tmp_path / str(seed), [1, 2], config=sourced('Hop', seed, f's{seed}'))
    write_run(tmp_path / f'm{seed}', [1, 2], config=dict(
        task1='Hop', seed=seed, n_meta=1, script='dreamer-MMTL.py',
        encoder=f's{seed}', meta1=f'r{seed}'))
  curves = reading.load([tmp_path], merge=['source|encoder|meta.'])
  assert {curve.method for curve in curves} == {'FTL ω=0.2', 'MMTL N=1'}
  out, err = capsys.readouterr()
  assert not err
  assert 'differ in source are seeds of one method: FTL ω=0.2\n' in out
  assert 'differ in encoder, meta1 are seeds of one method: MMTL N=1\n' in out
  with pytest.raises(terminal.UserError, match="'sauce' fits no flag.*source"):
    reading.load([tmp_path], merge=['sauce'])


def test_flags_that_no_run_has_may_be_merged(tmp_path, capsys):
  """The same command draws what is there before runs with transfer are."""
  write_run(tmp_path / 'a', [1, 2], config=dict(
      task='Hop', seed=0, script='dreamer.py'))
  curve, = reading.load([tmp_path], merge=['source|encoder|meta.'])
  assert curve.method == 'dreamer'
  assert not capsys.readouterr().err
  with pytest.raises(terminal.UserError, match="'logdir' fits no flag"):
    reading.load([tmp_path], merge=['logdir'])


def meta_model(folder, seed=0, **flags):
  return write_run(folder, [1, 2], config=dict(
      task1='Hop', seed=seed, n_meta=2, script='dreamer-MMTL.py', **flags))


def test_forms_of_meta_model_transfer_have_names(tmp_path, capsys):
  """A decoder that was looked for beside the run is in no flag."""
  for seed in range(2):
    meta_model(tmp_path / f'a{seed}', seed, decoder_used='fresh')
    meta_model(tmp_path / f'b{seed}', seed, decoder_used='frozen')
    meta_model(
        tmp_path / f'c{seed}', seed, decoder_used='copied',
        freeze_decoder=False)
  # The first by another flag, and runs from before it was written down.
  meta_model(tmp_path / 'a2', 2, decoder_used='fresh', decoder='none')
  meta_model(tmp_path / 'b2', 2)
  meta_model(tmp_path / 'c2', 2, freeze_decoder=False)
  curves = reading.load([tmp_path])
  assert not capsys.readouterr().err
  names = {
      'a': 'MMTL N=2 encoder only', 'b': 'MMTL N=2',
      'c': 'MMTL N=2 decoder copied'}
  assert len(curves) == 9
  for curve in curves:
    expected = names[curve.path.name[0]]
    assert (curve.method, curve.label) == (expected, expected)


def test_all_eight_tasks_name_a_run(tmp_path):
  tasks = {f'task{index}': f'T{index}' for index in range(1, 9)}
  for name, last in (('a', 'T8'), ('b', 'other')):
    write_run(tmp_path / name, [1, 2], config={
        **tasks, 'task8': last, 'script': 'dreamer-multi-task.py'})
  assert [curve.task for curve in reading.load([tmp_path])] == [
      'T1 + T2 + T3 + T4 + T5 + T6 + T7 + T8',
      'T1 + T2 + T3 + T4 + T5 + T6 + T7 + other']


def test_a_seed_that_is_there_twice_warns(tmp_path, capsys):
  for folder in ('old', 'new'):
    for seed in range(2 if folder == 'new' else 1):
      write_run(tmp_path / folder / f'run{seed}', [1, 2], config=dict(
          task='t', script='dreamer.py', seed=seed))
  reading.load([tmp_path])
  warning, = capsys.readouterr().err.splitlines()
  assert 'seed 0 of dreamer on t' in warning and '--group-by path' in warning
  assert f'{tmp_path}/new/run0 and {tmp_path}/old/run0' in warning
  reading.load([tmp_path / 'new'])
  assert not capsys.readouterr().err


def test_directories_tell_changes_of_the_code_apart(tmp_path, capsys):
  for change in ('before', 'after'):
    for seed in range(2):
      write_run(
          tmp_path / change / 'dmc_cup_catch' / 'x' / str(seed), [1, 2],
          config=dict(task='dmc_cup_catch', script='dreamer.py', seed=seed))
  for indirs in ([tmp_path], [tmp_path / 'before', tmp_path / 'after']):
    curves = reading.load(indirs, group_by='path')
    assert sorted((curve.method, curve.seed) for curve in curves) == [
        ('after/x', '0'), ('after/x', '1'), ('before/x', '0'),
        ('before/x', '1')]
    assert {curve.task for curve in curves} == {'dmc_cup_catch'}
  assert not capsys.readouterr().err
  write_run(
      tmp_path / 'after' / 'dmc_cup_catch' / 'x' / '2', [1, 2], config=dict(
          task='dmc_cup_catch', script='dreamer.py', seed=2, horizon=3))
  reading.load([tmp_path], group_by='path')
  assert 'after/x on dmc_cup_catch differ in horizon' in (
      capsys.readouterr().err)


def test_a_flag_that_an_older_run_lacks_has_its_default(tmp_path):
  for seed, flags in enumerate((dict(horizon=15, freeze=''), dict(), dict(
      horizon=10))):
    write_run(tmp_path / str(seed), [1, 2], config=dict(
        task='t', script='dreamer.py', seed=seed, **flags))
  curves = reading.load([tmp_path])
  assert [curve.method for curve in curves] == [
      'dreamer horizon=15', 'dreamer horizon=15', 'dreamer horizon=10']
  assert [curve.label for curve in curves] == [
      'dreamer', 'dreamer', 'dreamer, horizon=10']


def test_labels_name_as_few_flags_as_tell_methods_apart(tmp_path):
  small = dict(cnn_depth=16, deter_size=128, num_units=128, preset='cpu')
  long = '^(' + '|'.join(f'dynamics/layer{i}' for i in range(30)) + ')/'
  for name, flags in (
      ('a', {}), ('b', small), ('c', dict(freeze=long)),
      ('d', dict(freeze=long + 'kernel'))):
    write_run(tmp_path / name, [1, 2], config=dict(
        task='t', script='dreamer.py', preset=flags.pop('preset', 'paper'),
        **flags))
  a, b, c, d = (curve.label for curve in reading.load([tmp_path]))
  assert a == 'dreamer'
  assert b == 'dreamer, preset=cpu,\N{NO-BREAK SPACE}…'
  assert len({a, b, c, d}) == 4
  for label in (c, d):
    assert label.startswith('dreamer, freeze=^(dynamics/') and len(label) < 60


def test_damaged_files(tmp_path, capsys):
  folder = write_run(
      tmp_path / 't' / 'm' / '0', [1.0, np.nan, 3.0, None, np.inf, 10 ** 400])
  with (folder / 'metrics.jsonl').open('ab') as file:
    file.write(b'\xff\x00 "test/return" garbage\n["test/return"]\n')
    file.write(b'{"step": "x", "test/return": 4}\n')
    file.write(b'{"step": 50000, "test/return": 5}\n')
    file.write(b'{"step": 99999, "test/return": 9')
  (folder / 'config.json').write_text('{"task": "other", ')
  for name in ('empty', 'folder/metrics.jsonl', 'new'):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / 'new' / 'metrics.jsonl').write_text('{"step": 1, "fps": 2}\n')
  os.symlink(tmp_path, tmp_path / 'loop')
  curve, = reading.load([tmp_path, folder])
  assert curve.xs.tolist() == [1e4, 3e4, 5e4]
  assert curve.ys.tolist() == [1, 3, 5]
  assert (curve.task, curve.method) == ('t', 'm')
  warnings = capsys.readouterr().err.splitlines()
  assert [re.search(r'\d+', line).group() for line in warnings] == [
      '1', '2', '5']


def test_odd_directory_names_are_drawn_and_written(tmp_path):
  names = ['$x_{', '_hidden', 'ω 中', 'a|b\nc', '%s {}', '-9']
  for name in [os.fsencode(n) for n in names] + [b'\xff\xfe']:
    folder = os.path.join(os.fsencode(tmp_path / 'logs'), name, name, b'1')
    write_run(pathlib.Path(os.fsdecode(folder)), [1, 2, 3])
  plotting.main(['--indir', str(tmp_path / 'logs'), '--outdir', str(tmp_path)])
  table = (tmp_path / 'logs' / 'scores.md').read_text(encoding='utf-8')
  assert len(table.splitlines()) == 2 + 7 and 'a\\|b c' in table
  figure = make(tmp_path / 'logs')[0]['curves']
  legend = [text.get_text() for text in figure.legends[0].get_texts()]
  assert len(legend) == 7 and any('_hidden' in text for text in legend)


# Statistics


def test_bins_are_the_same_for_every_run():
  xs = np.array([0, 1, 9.5, 10, 10.5, 20, 45])
  means = scores.binned(xs, np.array([1, 2, 3, 6, 10, 20, 7.0]), 10)
  assert means.to_dict() == {5: 3, 15: 15, 45: 7}
  curve = lambda xs, ys: reading.Curve(
      't', 'm', '0', None, {}, np.array(xs, float), np.array(ys, float))
  centres, values = scores.aligned(
      [curve([3, 15], [1, 2]), curve([12, 14, 21], [4, 6, 9])], 10)
  assert centres.tolist() == [5, 15, 25]
  np.testing.assert_equal(values, [[1, 2, np.nan], [np.nan, 5, 9]])


def test_summaries():
  values = np.array([8, 1, 7, 2, 6, 3, 5, 4.0])
  assert scores.summary('mean', values) == pytest.approx(
      (4.5, 4.5 - 5.25 ** 0.5, 4.5 + 5.25 ** 0.5))
  assert scores.summary('median', values) == pytest.approx((4.5, 2.75, 6.25))
  centre, low, high = scores.summary('iqm', np.array([0, 3, 4, 1000.0]))
  assert centre == 3.5
  assert 0 <= low < centre < high <= 1000
  # A trimmed mean of all runs and tasks together, as Agarwal et al. define it.
  tasks = np.arange(8.0), np.arange(100, 108.0)
  assert scores.summary('iqm', *tasks)[0] == np.arange(
      108.0)[[4, 5, 6, 7, 100, 101, 102, 103]].mean()


@pytest.mark.parametrize('counts', [(3, 2), (5, 5, 5), (1, 4, 7, 3), (10, 9, 8)])
@pytest.mark.parametrize('shape', [(), (6,)])
def test_tasks_count_alike_as_if_their_runs_were_repeated(counts, shape):
  rng = np.random.default_rng(0)
  groups = [rng.normal(size=(count, *shape)) for count in counts]
  repeated = np.concatenate([
      np.repeat(group, np.lcm.reduce(counts) // len(group), 0)
      for group in groups])
  mean, low, high = scores.summary('mean', *groups)
  np.testing.assert_allclose(mean, repeated.mean(0))
  np.testing.assert_allclose(high - mean, repeated.std(0))
  np.testing.assert_allclose(
      scores.summary('median', *groups),
      [np.quantile(repeated, share, axis=0) for share in (0.5, 0.25, 0.75)])
  np.testing.assert_allclose(
      scores._iqm(*groups), scipy.stats.trim_mean(repeated, 0.25))


def test_unequal_numbers_of_runs_take_no_more_memory():
  """Repeated, these would be 58,140 runs a task in each of 2,000 draws."""
  rng = np.random.default_rng(0)
  groups = [rng.normal(size=(count, 30)) for count in (20, 19, 18, 17)]
  tracemalloc.start()
  try:
    scores.curve_summary('iqm', *groups)
    scores.profile([group[:, 0] for group in groups], np.linspace(-1, 1, 201))
    assert tracemalloc.get_traced_memory()[1] < 500e6
  finally:
    tracemalloc.stop()


def test_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  draws = rng.normal(size=(20, 400))
  low, high = scores.interval(scores._iqm, draws)
  assert 0.87 < np.mean((low < 0) & (0 < high)) < 0.98
  again = scores.interval(scores._iqm, draws)
  np.testing.assert_array_equal(low, again[0])


def test_bootstrap_is_stratified():
  # Redrawing within tasks keeps the task means, redrawing over all would not.
  ones, threes = np.ones(3), np.full(3, 3.0)
  assert scores.summary('iqm', ones, threes) == (2.0, 2.0, 2.0)
  pooled = scores.summary('iqm', np.concatenate([ones, threes]))
  assert pooled[1] < 2 < pooled[2]


def test_one_run_has_no_interval():
  for how in ('mean', 'iqm'):
    centre, low, high = scores.summary(how, np.array([3.0]))
    assert centre == 3 and np.isnan([low, high]).all()


def test_gaps_use_the_runs_there_are():
  nan = np.nan
  values = np.array([[1, 1, nan, 4], [3, nan, nan, 4], [5, 3, 6, nan]])
  centre, low, high = scores.curve_summary('mean', values)
  np.testing.assert_allclose(centre, [3, 2, 6, 4])
  np.testing.assert_allclose(high - centre, [(8 / 3) ** 0.5, 1, nan, 0])
  # Two tasks count alike: of the first column the means are 1 and 4.
  both = scores.curve_summary('mean', values[:1], values[1:])
  np.testing.assert_allclose(both[0], [2.5, 2, nan, 4])


def test_score_table(tmp_path, capsys):
  for seed in range(2):
    ys = np.where(STEPS > 9e5, 500.0, 100.0) + 100 * seed
    for task in ('dmc_cup_catch', 'dmc_walker_walk'):
      write_run(tmp_path / 'in' / task / 'dreamer' / str(seed), ys)
  plotting.main(['--indir', str(tmp_path / 'in'), '--outdir', str(tmp_path)])
  with (tmp_path / 'in' / 'scores.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['task'] for row in rows] == [
      'dmc_cup_catch', 'dmc_walker_walk', 'all, normalised']
  values = {key: float(rows[0][key]) for key in (
      'runs', 'steps', 'overall', 'overall_low', 'final', 'final_high')}
  assert values == dict(
      runs=2, steps=1e6, overall=190, overall_low=140, final=550,
      final_high=600)
  assert float(rows[2]['final']) == pytest.approx(0.55)
  assert rows[2]['runs'] == '4'
  text = (tmp_path / 'in' / 'scores.txt').read_text()
  assert '190.0 ± 50.0' in text and text.strip() in capsys.readouterr().out
  assert '| 550.0 ± 50.0 |' in (tmp_path / 'in' / 'scores.md').read_text()


def test_final_score_of_few_evaluations():
  for xs, ys, final in (([0], [7], 7), ([0, 5], [1, 3], 3)):
    curve = reading.Curve(
        't', 'm', '0', None, {}, np.array(xs, float), np.array(ys, float))
    assert scores.final_score(curve) == final


# Transfer


@pytest.fixture
def transfer_runs(tmp_path):
  """Scratch rises to 100 in 1e6 steps; transfer starts 20 higher.

  Seeds lie 2 apart, around those values.
  """
  for seed in range(3):
    ys = STEPS / 1e4 + 2 * (seed - 1)
    write_run(
        tmp_path / f's{seed}', ys, config=ftl('Hop', seed, transfer=False))
    for factor in (0.0, 0.2, 0.5):
      gain = 20 - 40 * abs(factor - 0.2)
      write_run(
          tmp_path / f'{factor}-{seed}', ys + gain, config=ftl(
              'Hop', seed, transfer=True, transfer_factor=factor))
  return tmp_path


def test_transfer_measures(transfer_runs):
  _, tables = make(transfer_runs, '--transfer-report', '--threshold', '75.5')
  rows = {row['method']: row for row in tables['transfer'][0]}
  assert list(rows) == ['FTL ω=0', 'FTL ω=0.2', 'FTL ω=0.5']
  row = rows['FTL ω=0.2']
  assert (row['runs'], row['scratch_runs'], row['steps']) == (3, 3, 1e6)
  assert row['jump_start'][0] == pytest.approx(20)
  assert row['final_difference'][0] == pytest.approx(20)
  assert row['area_ratio'][0] == pytest.approx(70.5 / 50.5)
  # Bins of 1e5 hold means of 5.5, 15.5, ... for the middle scratch run: the
  # seeds reach 75.5 at 9e5, 8e5 and 8e5, and two bins earlier with transfer.
  assert row['steps_to_threshold'][0] == pytest.approx(19e5 / 3)
  assert row['steps_saved'][0] == pytest.approx(2e5)
  assert (row['reached'], row['scratch_reached']) == (3, 3)
  for name in ('jump_start', 'area_ratio', 'final_difference'):
    centre, low, high = row[name]
    assert low < centre < high
  centre, low, high = row['final_difference']
  assert 16 <= low and high <= 24


def test_the_study_has_the_baseline_that_its_words_name():
  """Healthy scratch runs of results/runs, not those broken on purpose."""
  flags = '--transfer-report', '--merge', 'source|encoder|meta.'
  _, rows_of = make(ROOT / 'results' / 'runs', *flags)
  rows = {
      row['method']: row for row in rows_of['transfer'][0]
      if row['task'] == 'InvertedPendulumBulletEnv-v0'}
  modular, = (
      row for method, row in rows.items()
      if method.startswith('FTL ω=0 copy=.*'))
  assert f'{modular["area_ratio"][0]:.2f}' == '1.89'
  assert {row['scratch_runs'] for row in rows.values()} == {3}
  _, rows_of = make(
      ROOT / 'results' / 'runs', *flags, '--baseline', 'freeze=.dyn')
  modular, = (
      row for row in rows_of['transfer'][0]
      if row['method'].startswith('FTL ω=0 copy=.*')
      and row['task'].startswith('InvertedP'))
  assert modular['area_ratio'][0] > 5


def test_several_baselines_are_an_error_that_lists_them(
    transfer_runs, capsys):
  write_run(transfer_runs / 'd', STEPS / 1e4, config=dict(
      task='Hop', script='dreamer.py', seed=0))
  with pytest.raises(
      terminal.UserError, match="'dreamer' or 'scratch': .*--baseline"):
    make(transfer_runs, '--transfer-report')
  rows = make(
      transfer_runs, '--transfer-report', '--baseline', 'dreamer'
      )[1]['transfer'][0]
  assert {row['scratch_runs'] for row in rows} == {1}
  assert "compared with 'dreamer': FTL ω=0, FTL ω=0.2" in (
      capsys.readouterr().out)
  rows = make(
      transfer_runs, '--transfer-report', '--baseline', 'FTL ω=0'
      )[1]['transfer'][0]
  assert [row['method'] for row in rows] == ['FTL ω=0.2', 'FTL ω=0.5']
  for wrong, words in (('r', 'fits .* and '), ('none', 'there is dreamer')):
    with pytest.raises(terminal.UserError, match=words):
      make(transfer_runs, '--transfer-report', '--baseline', wrong)


def test_each_method_has_the_baseline_with_its_own_flags(tmp_path, capsys):
  for size, gain in ((8, 10), (50, 30)):
    for seed in range(2):
      write_run(
          tmp_path / f's{size}-{seed}', STEPS / 1e4, config=ftl(
              'Hop', seed, transfer=False, batch_size=size))
      write_run(
          tmp_path / f't{size}-{seed}', STEPS / 1e4 + gain, config=sourced(
              'Hop', seed, 'x', batch_size=size, freeze='^encoder'))
  write_run(tmp_path / 'other', STEPS, config=sourced(
      'Hop', 0, 'x', batch_size=3))
  rows = make(tmp_path, '--transfer-report')[1]['transfer'][0]
  assert [(row['method'], row['baseline']) for row in rows] == [
      (f'FTL ω=0.2 batch_size={size} freeze=^encoder',
       f'scratch batch_size={size}') for size in (8, 50)]
  assert [row['jump_start'][0] for row in rows] == pytest.approx([10, 30])
  assert re.search(
      'batch_size=3 .*is not in the transfer report.*in batch_size',
      capsys.readouterr().err)


def test_threshold_never_reached_counts_all_steps(transfer_runs):
  _, tables = make(transfer_runs, '--transfer-report', '--threshold', '107')
  row = {row['method']: row for row in tables['transfer'][0]}['FTL ω=0']
  assert (row['reached'], row['scratch_reached']) == (2, 0)
  assert row['steps_to_threshold'] == (1e6, 1e6, 1e6)
  assert row['steps_saved'] == (0, 0, 0)


def test_default_threshold_and_floor_of_negative_returns(tmp_path):
  for seed in range(2):
    write_run(tmp_path / f's{seed}', STEPS / 1e4 - 100.0, config=ftl(
        'Cheetah', seed, transfer=False))
    write_run(tmp_path / f't{seed}', STEPS / 1e4 - 50.0, config=ftl(
        'Cheetah', seed, transfer=True, transfer_factor=0.1))
  row, = make(tmp_path, '--transfer-report')[1]['transfer'][0]
  floor, final = -94.5, -4.5
  assert row['threshold'] == pytest.approx(floor + 0.9 * (final - floor))
  assert row['area_ratio'][0] == pytest.approx(
      (0.5 - floor) / (-49.5 - floor))


def test_runs_are_compared_over_the_steps_all_have(tmp_path, capsys):
  for seed in range(2):
    write_run(tmp_path / f's{seed}', STEPS / 1e4, config=ftl(
        'Hop', seed, transfer=False))
    write_run(tmp_path / f't{seed}', STEPS[:40] / 1e4, STEPS[:40], config=ftl(
        'Hop', seed, transfer=True, transfer_factor=0.1))
  write_run(tmp_path / 'alone', [1, 2], config=ftl(
      'Ant', 0, transfer=True, transfer_factor=0.1))
  row, = make(tmp_path, '--transfer-report')[1]['transfer'][0]
  assert row['steps'] == 4e5
  assert row['final_difference'] == (0, 0, 0)
  assert row['area_ratio'] == (1, 1, 1)
  error = capsys.readouterr().err
  assert '400K' in error and 'no scratch runs of Ant' in error


def test_until_takes_no_steps_from_runs_that_go_on(tmp_path, capsys):
  """Their evaluations lie where episodes end, so the last is a bit earlier."""
  for name, late, flags in (
      ('s', 0, dict(transfer=False)),
      ('a', 900, dict(transfer=True, transfer_factor=0.1)),
      ('b', 0, dict(transfer=True, transfer_factor=0.5))):
    for seed in range(2):
      xs = STEPS[:20] + late
      write_run(tmp_path / f'{name}{seed}', xs / 1e4, xs, config=ftl(
          'Hop', seed, **flags))
  until = STEPS[2]
  rows, _ = make(
      tmp_path, '--transfer-report', '--profiles', '--baseline', 'scratch',
      '--until', str(until))[1]['transfer']
  assert [row['steps'] for row in rows] == [until, until]
  assert 'are compared over' not in capsys.readouterr().err
  # Without it, all runs are whole: they end within a twentieth of each other.
  rows, _ = make(tmp_path, '--transfer-report')[1]['transfer']
  last = np.mean([18.09, 19.09, 20.09]) - np.mean([19, 20])
  assert rows[0]['final_difference'][0] == pytest.approx(last)


def test_intervals_without_an_end_are_arrows():
  figure = mpl_figure.Figure()
  axes = figure.subplots()
  axes.plot([0, 10], [0, 0])
  border = axes.get_xlim()
  drawing.draw_unbounded(
      axes, [1, 2, 3], [(3, 2, np.inf), (3, 2, 4), (np.nan,) * 3],
      ['r', 'g', 'b'])
  assert axes.get_xlim() == border
  _, line, head = axes.lines
  assert line.get_xdata() == pytest.approx([2, border[1]])
  assert (head.get_marker(), head.get_xdata()) == ('>', [border[1]])


@pytest.mark.parametrize('factor', [0.0, 0.2, 1.0, 5e-5, 1e6])
def test_omega_of_a_method(factor):
  config = dict(
      script='dreamer-FTL.py', transfer=True, transfer_factor=factor)
  name = f'{reading._kind(config)}, freeze=a'
  assert reading.omega(name) == factor
  assert reading.without_omega(name) == 'FTL, freeze=a'


def test_transfer_figure_and_omega_curve(transfer_runs):
  figures, _ = make(transfer_runs, '--transfer-report')
  panels = figures['transfer'].axes
  assert [axes.get_title() for axes in panels] == [
      'Jump-start', 'Area ratio', 'Final difference', 'Steps saved']
  marks = [line for line in panels[2].lines if line.get_marker() == 'o']
  assert [line.get_xdata()[0] for line in marks] == pytest.approx([12, 20, 8])
  assert [t.get_text() for t in panels[0].get_yticklabels()] == [
      'Hop', 'FTL ω=0', 'FTL ω=0.2', 'FTL ω=0.5']
  overall, axes = figures['omega'].axes
  assert (overall.get_title(), axes.get_title()) == (
      'Hop, overall', 'Hop, final')
  assert axes.get_xlabel() == 'Transfer factor ω'
  assert axes.get_xticks().tolist() == [0, 0.2, 0.5]
  final, = [line for line in axes.lines if line.get_marker() == 'o']
  np.testing.assert_allclose(
      final.get_xydata(), [[0, 107.5], [0.2, 115.5], [0.5, 103.5]])
  legend = [text.get_text() for text in figures['omega'].legends[0].get_texts()]
  assert sorted(legend) == ['FTL', 'scratch']


def test_omega_compares_the_same_steps_of_runs_of_unequal_length(
    tmp_path, capsys):
  for seed in range(2):
    for name, count, flags in (
        ('s', 100, dict(transfer=False)),
        ('a', 60, dict(transfer=True, transfer_factor=0.0)),
        ('b', 60, dict(transfer=True, transfer_factor=0.2))):
      write_run(
          tmp_path / f'{name}{seed}', STEPS[:count] / 1e4, STEPS[:count],
          config=ftl('Hop', seed, **flags))
  figures, _ = make(tmp_path, '--transfer-report')
  for axes, score in zip(figures['omega'].axes, (30.5, 57.5)):
    heights = {
        y for line in axes.lines for y in np.round(line.get_ydata(), 6)
        if len(line.get_ydata()) > 1}
    assert heights == {score}  # All curves are the same.
  error = capsys.readouterr().err
  assert 'end after 600K to 1M steps, and each score is over all' in error


# Over all tasks


def test_probability_of_improvement_is_the_share_of_pairs_won():
  # 1 beats 0; 2 beats 0 and ties with 2; 3 beats 0 and 2: 4.5 of 9.
  ours, theirs = np.array([1.0, 2, 3]), np.array([0.0, 2, 4])
  assert scores.improvement([ours], [theirs])[0] == pytest.approx(0.5)
  assert scores.improvement([theirs + 9], [ours]) == (1, 1, 1)
  # The mean over tasks, whatever their numbers of runs.
  both = scores.improvement(
      [ours, np.full(7, 5.0)], [theirs, np.full(2, 1.0)])
  assert both[0] == pytest.approx(0.75)
  assert 0.5 <= both[1] < both[0] < both[2] <= 1


def test_probability_of_improvement_is_that_of_mann_and_whitney():
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(size=17), rng.normal(1, 2, size=9)
  u = scipy.stats.mannwhitneyu(ours, theirs).statistic
  centre, low, high = scores.improvement([ours], [theirs])
  assert centre == pytest.approx(u / (17 * 9))
  assert 0 <= low < centre < high <= 1


def test_interval_of_improvement_covers_as_often_as_it_says():
  rng = np.random.default_rng(1)
  hits = 0
  for _ in range(60):
    low, high = scores.improvement(
        [rng.normal(size=15)], [rng.normal(size=15)])[1:]
    hits += low <= 0.5 <= high
  assert hits >= 52


def test_performance_profile_is_the_share_of_runs_above():
  groups = [np.array([0.1, 0.5, 0.9]), np.array([0.5, 0.5])]
  share, low, high = scores.profile(groups, np.array([0, 0.3, 0.5, 0.9]))
  np.testing.assert_allclose(share, [1, 5 / 6, 1 / 6, 0])
  # Only runs of the first task differ, and they are redrawn within it.
  np.testing.assert_allclose(low, [1, 1 / 2, 0, 0])
  np.testing.assert_allclose(high, [1, 1, 1 / 2, 0])


def test_tasks_count_alike_however_many_runs_they_have():
  # The same on both tasks, with five runs of one and one of the other.
  best, worst = np.ones(5), np.zeros(5)
  for how in ('mean', 'median', 'iqm'):
    first, second = (
        scores.summary(how, *groups)[0]
        for groups in ((best, worst[:1]), (best[:1], worst)))
    assert first == second == pytest.approx(0.5), how
  first, second = (
      scores.profile(groups, np.array([0.5]))[0]
      for groups in ((best, worst[:1]), (best[:1], worst)))
  assert first == second == pytest.approx(0.5)


def drawn(*levels, steps=20):
  """Curves that rise from 0 to a level each."""
  xs = np.linspace(0, 1e6, steps)
  return [
      reading.Curve('t', 'm', str(seed), None, {}, xs, level * xs / 1e6)
      for seed, level in enumerate(levels)]


@pytest.mark.parametrize('zeros', range(3))
def test_area_ratio_has_an_interval_where_some_of_scratch_have_no_area(
    zeros, recwarn):
  scratch = drawn(*[0] * zeros, *[100, 110, 105, 102, 108][zeros:])
  centre, low, high = scores.compare(
      drawn(210, 200, 205, 208, 206), scratch, 1e5)['area_ratio']
  # Five draws are all without area in at most 1 of 98 resamples.
  assert 1 < low < centre < high < np.inf
  assert not recwarn.list


def test_area_ratio_may_be_unbounded(recwarn):
  found = scores.compare(
      drawn(200, 210, 205), drawn(0, 0, 100), 1e5)['area_ratio']
  assert 1 < found[1] < found[0] and found[2] == np.inf
  assert tables._cell('area_ratio', found, 'iqm').endswith(', inf]')
  nothing = scores.compare(drawn(1, 2), drawn(0, 0), 1e5)['area_ratio']
  assert np.isnan(nothing).all() and not recwarn.list


def test_unequal_runs_are_compared_over_common_steps(capsys):
  """The same curves, of which one side ends after half of the steps."""
  long = drawn(100, 110, 120, 130, 140)
  short = [reading.cut(curve, 5e5) for curve in long]
  row, = scores.improvement_rows(
      {'t': {'short': short, 'long': long}}, 'short', tested=True)
  assert row['overall'][0] == row['final'][0] == 0.5 and row['p'] == 1
  assert 'long and short on t are compared over' in capsys.readouterr().err
  # What only ends where its last episode does stays whole.
  later = [reading.Curve(**{
      **vars(curve), 'xs': curve.xs + 8}) for curve in long]
  same = scores.equally_long({'long': long, 'later': later}, 't')
  assert len(same['later'][0].xs) == len(later[0].xs)
  assert not capsys.readouterr().err


def test_profiles_need_a_method_on_all_tasks(tmp_path):
  write_run(tmp_path / 'a' / 'dreamer' / '0', STEPS)
  write_run(tmp_path / 'b' / 'planet' / '0', STEPS)
  with pytest.raises(terminal.UserError, match='There is none on all tasks'):
    make(tmp_path, '--profiles')


def test_single_points_are_all_in_the_panel(tmp_path):
  """Whichever method is drawn last."""
  for method, step in (('a', 9e4), ('b', 1e4), ('c', 3e4)):
    write_run(tmp_path / 't' / method / '0', [5.0], [step])
  axes = make(tmp_path, '--bins', '1e4')[0]['curves'].axes[0]
  low, high = axes.get_xlim()
  points = [x for line in axes.lines for x in line.get_xdata()]
  assert sorted(points) == [5e3, 25e3, 85e3]
  assert low <= min(points) and max(points) < high


def test_tasks_of_one_name_keep_their_rows_in_the_transfer_figure(tmp_path):
  for task in ('HopperBulletEnv-v0', 'Hopper'):
    for method, gain in (('dreamer', 0), ('other', 9)):
      for seed in range(2):
        write_run(tmp_path / task / method / str(seed), STEPS / 1e4 + gain)
  figures, found = make(
      tmp_path, '--transfer-report', '--baseline', 'dreamer')
  assert len(found['transfer'][0]) == 2
  names = [
      text.get_text() for axes in figures['transfer'].axes
      for text in axes.get_yticklabels()]
  assert names.count('other') == 2


def test_score_table_says_that_runs_are_unequal(capsys):
  long = drawn(100, 110)
  tasks = {'t': {'short': [reading.cut(long[0], 3e5)], 'long': long}}
  scores.score_rows(tasks, {'t': (0, 1)}, 'mean')
  assert '--until 300000 compares the same steps' in capsys.readouterr().err


def test_p_value_is_that_of_all_permutations():
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(1, size=5), rng.normal(size=6)
  pooled, found = np.concatenate([ours, theirs]), ours.mean() - theirs.mean()
  differences = [
      pooled[list(own)].mean() - np.delete(pooled, own).mean()
      for own in itertools.combinations(range(11), 5)]
  assert scores.p_value([ours], [theirs]) == pytest.approx(
      np.mean(np.abs(differences) >= abs(found) - 1e-9))
  exact = scipy.stats.permutation_test(
      (ours, theirs[:5]), lambda x, y, axis: x.mean(axis) - y.mean(axis),
      vectorized=True)
  for pair in (ours, theirs[:5]), (theirs[:5], ours):
    assert scores.p_value(*([x] for x in pair)) == pytest.approx(
        exact.pvalue, rel=1e-9)


@pytest.mark.parametrize('scale', [1, 1e5, 1e9])
def test_least_p_values(scale):
  low, high = np.arange(1.0, 6) * scale, np.arange(6.0, 11) * scale
  more = np.arange(21.0, 26) * scale
  for statistic, middle in ((None, 0), (scores._improvement, 0.5)):
    for ours, theirs in ((low, high), (high, low)):
      assert scores.p_value(
          [ours], [theirs], statistic, middle) == pytest.approx(2 / 252)
  assert scores.p_value([more], [np.append(low, high)]) == pytest.approx(
      1 / 3003)
  assert scores.p_value(
      [more], [np.append(low, high)], scores._improvement, 0.5
      ) == pytest.approx(2 / 3003)
  page = (ROOT / 'docs/plotting.md').read_text()
  assert f'none below {1 / 3003:.4f} for areas and {2 / 3003:.4f} for' in (
      ' '.join(page.split()))
  assert scores.p_value([low[:1]], [high[:1]]) == 1
  assert np.isnan(scores.p_value([np.array([np.nan, 1])], [low]))


def test_p_value_of_tasks_together():
  # Five of six better on each of three tasks, whose levels differ.
  rng = np.random.default_rng(0)
  ours = [level + rng.normal(1, 0.5, 6) for level in (0, 50, 100)]
  theirs = [level + rng.normal(0, 0.5, 6) for level in (0, 50, 100)]
  assert scores.p_value(ours, theirs) < 0.001
  assert scores.p_value(ours, theirs, scores._improvement, 0.5) < 0.001
  assert scores.p_value(ours[:1] + theirs[1:2], theirs[:1] + ours[1:2]) > 0.2


def test_p_values_of_no_difference_are_small_as_often_as_they_say():
  rng = np.random.default_rng(2)
  values = [
      scores.p_value([rng.normal(size=5)], [rng.normal(size=10)], count=400)
      for _ in range(300)]
  assert 0.02 <= np.mean(np.array(values) <= 0.05) <= 0.09
  assert 0.4 <= np.mean(np.array(values) <= 0.5) <= 0.6


def test_holm_corrects_for_the_number_of_rows():
  rows = [dict(p=p) for p in (0.04, 0.01, 0.03, 0.9)]
  scores.correct(rows)
  assert [row['p_holm'] for row in rows] == pytest.approx(
      [0.09, 0.04, 0.09, 0.9])
  # What cannot be compared is not counted.
  rows.append(dict(p=np.nan))
  scores.correct(rows)
  assert [row['p_holm'] for row in rows] == pytest.approx(
      [0.09, 0.04, 0.09, 0.9, np.nan], nan_ok=True)


def test_p_values_tell_on_which_side_of_the_level_they_are():
  assert [tables._cell('p_holm', p, 'iqm') for p in (0.0496, 0.0504, 0.00813)
          ] == ['0.0496', '0.0504', '0.0081']


def test_p_values_of_transfer_stand_in_the_table_if_asked_for(transfer_runs):
  rows, _ = make(transfer_runs, '--transfer-report')[1]['transfer']
  assert not {'p', 'p_holm'} & set(rows[0])
  rows, _ = make(transfer_runs, '--transfer-report', '--tests')[1]['transfer']
  assert list(rows[0])[-2:] == ['p', 'p_holm']
  for row in rows:
    assert row['p'] <= row['p_holm'] <= min(1, len(rows) * row['p'] + 1e-9)


@pytest.mark.parametrize('flags', [
    ['--tests'], ['--baseline', 'planet'], ['--threshold', '5']])
def test_flags_of_reports_alone_are_an_error(two_tasks, flags):
  with pytest.raises(terminal.UserError, match=f'{flags[0]} is for --transfer'):
    make(two_tasks, *flags)


def test_length_tells_methods_apart_where_learning_rates_fall(tmp_path):
  for lr_end, expected in ((1.0, 1), (0.1, 2)):
    folder = tmp_path / str(lr_end)
    for seed, steps in enumerate((20000, 40000)):
      write_run(folder / str(seed), STEPS, config=dict(
          task='t', script='dreamer.py', seed=seed, steps=steps,
          lr_end=lr_end))
    found = {curve.method for curve in reading.load([folder])}
    assert len(found) == expected, found


def test_lengthened_run_with_falling_rates_is_another_method(tmp_path):
  flags = dict(task='t', script='dreamer.py', steps=40000, lr_end=0.1)
  for seed, more in enumerate(({}, dict(former_steps='20000'))):
    write_run(tmp_path / str(seed), STEPS, config=dict(
        **flags, seed=seed, **more))
  found = {curve.method for curve in reading.load([tmp_path])}
  assert len(found) == 2
  assert any('former_steps=20000' in name for name in found)


def test_a_lengthened_run_is_no_baseline(tmp_path, capsys):
  flags = dict(task='t', steps=40000, lr_end=0.1)
  for method, script, more in (
      ('scratch', 'dreamer.py', dict(former_steps='20000')),
      ('ftl', 'dreamer-FTL.py', dict(transfer=True, source='x.pkl'))):
    for seed in range(2):
      write_run(tmp_path / 't' / method / str(seed), STEPS, config=dict(
          **flags, script=script, seed=seed, **more))
  with pytest.raises(terminal.UserError, match='needs runs with transfer'):
    make(tmp_path, '--transfer-report')
  assert "more than the transfer, 'dreamer' in former_steps" in (
      capsys.readouterr().err)


def test_p_values_over_all_tasks_stand_in_the_table_if_asked_for(two_tasks):
  row, = make(two_tasks, '--profiles', '--tests')[1]['improvement'][0]
  # Three runs a side win on both tasks: 2 of 20 times 20.
  assert row['p'] == row['p_holm'] == pytest.approx(2 / 400)


def test_profiles_and_improvement_are_drawn(two_tasks, capsys):
  figures, rows_of = make(two_tasks, '--profiles')
  row, = rows_of['improvement'][0]
  assert (row['method'], row['baseline']) == ('planet', 'dreamer')
  assert (row['tasks'], row['runs']) == (2, 6)
  assert row['overall'] == row['final'] == (1, 1, 1)
  mark, = [
      line for line in figures['improvement'].axes[0].lines
      if line.get_marker() == 'o']
  assert mark.get_xdata() == [1]
  overall, final = figures['profiles'].axes
  dreamer, planet = drawn_lines(final)
  # Of 1,000: 10, 20, 60, 110, 120, 160 and 300 more.
  for line, gain in ((dreamer, 0), (planet, 300)):
    values = (np.array([10, 20, 60, 110, 120, 160]) + gain) / 1000
    xs, ys = line.get_data()
    np.testing.assert_allclose(
        ys, (values[:, None] > xs).mean(0))
  assert overall.get_title() == 'Overall score'
  with pytest.raises(terminal.UserError, match='--baseline. There is dreamer'):
    for seed in range(2):
      for task in ('dmc_walker_walk', 'dmc_cup_catch'):
        write_run(two_tasks / task / 'scratch' / str(seed), STEPS)
    make(two_tasks, '--profiles')


# Figures


def test_curves_have_a_panel_per_task_and_a_line_per_method(two_tasks):
  figure = make(two_tasks)[0]['curves']
  assert [axes.get_title() for axes in figure.axes] == [
      'Cup Catch', 'Walker Walk']
  assert [axes.get_ylabel() for axes in figure.axes] == ['Test return', '']
  assert all(a.get_xlabel() == 'Environment steps' for a in figure.axes)
  walker = figure.axes[1]
  assert [line.get_ydata().tolist() for line in drawn_lines(walker)] == [
      [30.0] * 10, [330.0] * 10]
  assert drawn_lines(walker)[0].get_xdata().tolist() == [
      5e4 + 1e5 * index for index in range(10)]
  spread = np.std([10, 20, 60])
  assert [(b[:, 1].min(), b[:, 1].max()) for b in bands(walker)] == [
      pytest.approx((30 - spread, 30 + spread)),
      pytest.approx((330 - spread, 330 + spread))]
  assert len(figure.legends) == 1
  assert [text.get_text() for text in figure.legends[0].get_texts()] == [
      'dreamer', 'planet']
  colors = [[line.get_color() for line in drawn_lines(axes)]
            for axes in figure.axes]
  assert colors[0] == colors[1] == list(style.PALETTES['contrast'][:2])


@pytest.mark.parametrize('palette', sorted(style.PALETTES))
def test_lines_are_seen_on_the_bands_of_all_methods(tmp_path, palette):
  methods = len(style.PALETTES[palette])
  for method in range(methods):
    for seed in (1, 2):
      write_run(
          tmp_path / f'dmc_walker_walk/m{method}/{seed}',
          np.full(100, 100.0 * seed))
  axes, = make(tmp_path, '--palette', palette)[0]['curves'].axes
  mixed = np.ones(3)
  for band in axes.collections:
    *color, alpha = band.get_facecolor()[0]
    mixed += alpha * (color - mixed)
  seen = {
      line.get_color(): np.abs(mpl_colors.to_rgb(line.get_color()) - mixed).max()
      for line in drawn_lines(axes)}
  assert len(axes.collections) == len(seen) == methods
  assert min(seen.values()) > 0.2, seen


@pytest.mark.parametrize('how, value, band', [
    ('median', 20, (15, 40)), ('iqm', 30, (10, 60)), ('True', 30, None)])
def test_aggregates_are_drawn(two_tasks, how, value, band):
  walker = make(two_tasks, '--aggregate', how)[0]['curves'].axes[1]
  assert drawn_lines(walker)[0].get_ydata().tolist() == [value] * 10
  if band:
    ys = bands(walker)[0][:, 1]
    assert (ys.min(), ys.max()) == band


def test_single_curves(two_tasks):
  figures, _ = make(two_tasks, '--aggregate', 'none')
  walker = figures['curves'].axes[1]
  assert sorted(line.get_ydata()[0] for line in drawn_lines(walker)) == [
      10, 20, 60, 310, 320, 360]
  assert not walker.collections
  assert len(figures['curves'].legends[0].get_texts()) == 2


def test_all_tasks_are_normalised(two_tasks):
  axes, = make(two_tasks, '--aggregate', 'iqm')[0]['all-tasks'].axes
  assert axes.get_title() == '2 tasks'
  # Sorted values 10, 20, 60, 110, 120, 160: one is cut off at either end.
  np.testing.assert_allclose(
      drawn_lines(axes)[0].get_ydata(), [310 / 4 / 1000] * 10)


def test_options(two_tasks):
  figure = make(
      two_tasks, *(
          '--tasks walker cup --methods planet --size 3 2 --cols 1 '
          '--xlim 0 2e6 --ylim -1e3 500 --xlabel Steps --ylabel Score '
          '--xticks 3 --labels planet PlaNet dmc_walker_walk Walk '
          '--colors planet red').split())[0]['curves']
  walker, cup = figure.axes
  assert (walker.get_title(), cup.get_title()) == ('Walk', 'Cup Catch')
  assert (walker.get_xlim(), walker.get_ylim()) == ((0, 2e6), (-1000, 500))
  assert (walker.get_xlabel(), cup.get_xlabel()) == ('', 'Steps')
  assert walker.get_ylabel() == cup.get_ylabel() == 'Score'
  assert [t.get_text() for t in figure.legends[0].get_texts()] == ['PlaNet']
  assert mpl_colors.same_color(walker.lines[0].get_color(), 'red')
  assert figure.get_figwidth() == 3 and figure.get_figheight() > 4
  figure.draw_without_rendering()
  assert [t.get_text() for t in cup.get_xticklabels()] == ['0', '1M', '2M']


def test_palettes(two_tasks):
  colors = lambda *flags: [
      line.get_color() for line in drawn_lines(
          make(two_tasks, *flags)[0]['curves'].axes[0])]
  assert colors('--palette', 'muted') == list(style.PALETTES['muted'][:2])
  assert colors('--palette', '#111111', 'green') == ['#111111', 'green']
  assert len(set(colors('--palette', 'viridis'))) == 2
  assert colors('--palette', 'tab10') == ['#1f77b4', '#ff7f0e']


def test_more_methods_than_colors_differ_in_dashes(tmp_path):
  for index in range(20):
    write_run(tmp_path / 'task' / f'm{index}' / '0', [1, 2, 3])
  lines = make(tmp_path)[0]['curves'].axes[0].lines
  assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_methods_are_sorted_by_number_after_scratch():
  names = ['MMTL N=2', 'FTL ω=0.5', 'FTL ω=0.25', 'scratch', 'm10', 'm9', '4']
  assert sorted(names, key=reading.method_order) == [
      'scratch', '4', 'FTL ω=0.25', 'FTL ω=0.5', 'MMTL N=2', 'm9', 'm10']


def test_one_evaluation_of_one_run_is_seen(tmp_path):
  write_run(tmp_path / 'run', [5.0], [1e4])
  line, = make(tmp_path)[0]['curves'].axes[0].lines
  assert line.get_xydata().tolist() == [[5e4, 5.0]]
  assert line.get_marker() == 'o'


def test_a_dot_is_announced(tmp_path, capsys):
  for seed in range(2):
    write_run(
        tmp_path / 't' / 'short' / str(seed), [1.0 + seed, 2], [1e4, 2e4])
    write_run(tmp_path / 't' / 'long' / str(seed), STEPS)
  axes, = make(tmp_path)[0]['curves'].axes
  dot, = [line for line in axes.lines if len(line.get_xdata()) == 1]
  assert dot.get_marker() == 'o' and dot.get_markersize() >= 5
  # Its interval stands on it as a line: a band would have no width.
  assert [1.5, 2.0] in [
      segment[:, 1].tolist() for band in axes.collections
      if hasattr(band, 'get_segments') for segment in band.get_segments()]
  dot, unequal = capsys.readouterr().err.splitlines()
  assert 'bins of 100K steps leave of short on t' in dot
  assert '--until 20000' in unequal


def test_step_texts():
  assert [tables.si(x) for x in (0, 500, 1e3, 25e4, 1e6, 1.5e6, 2e9, 0.2)] == [
      '0', '500', '1K', '250K', '1M', '1.5M', '2B', '0.2']
  assert (tables.si(999999), tables.si(-2e5)) == ('1M', '-200K')


# Published scores


def test_published_data_are_copies():
  shared = ROOT.parent / 'shared' / 'scores'
  for name in ('baselines.json', 'dreamer.json'):
    ours = (ROOT / 'analysis' / 'baselines' / name).read_bytes()
    if shared.exists():
      assert ours == (shared / name).read_bytes()
  source = (ROOT / 'analysis' / 'baselines' / 'README.md').read_text()
  assert 'danijar/dreamer' in source and 'MIT' in source


def test_baseline_lines(two_tasks):
  figure = make(two_tasks, '--baselines')[0]['curves']
  cup, walker = figure.axes
  published = json.loads(
      (ROOT / 'analysis' / 'baselines' / 'baselines.json').read_text())
  levels = [
      line.get_ydata()[0] for line in walker.lines
      if len(line.get_xdata()) == 2]
  known = list(published['dmc_walker_walk'].values())
  assert len(levels) == 6 and set(known) < set(levels)
  runs = [run for run in json.loads(
      (ROOT / 'analysis' / 'baselines' / 'dreamer.json').read_text())
      if run['task'] == 'dmc_walker_walk']
  # Bins are named for their ends: that of 1,005,000 begins at 905,000.
  early = [dict(zip(run['xs'], run['ys']))[1005000.0] for run in runs]
  late = [np.mean(run['ys'][46:]) for run in runs if len(run['ys']) == 50]
  assert 0 < len(late) < 5
  assert sorted(set(levels) - set(known)) == pytest.approx(
      sorted([np.mean(early), np.mean(late)]))
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts[2:] == [
      'Dreamer, published (1M)', 'Dreamer, published (5M)', 'PlaNet (1M)',
      'SLAC (3M)', 'D4PG (100M)', 'A3C (100M, proprio)']


def test_chosen_baselines(two_tasks, tmp_path, capsys):
  figure = make(two_tasks, '--baselines', 'd4pg', 'planet')[0]['curves']
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts == ['dreamer', 'planet', 'PlaNet (1M)', 'D4PG (100M)']
  write_run(tmp_path / 'bullet' / 'HopperBulletEnv-v0' / 'm' / '0', [1, 2])
  make(tmp_path / 'bullet', '--baselines')
  assert 'no published score for HopperBulletEnv-v0' in (
      capsys.readouterr().err)


def published_runs(task):
  return [run for run in json.loads(
      (ROOT / 'analysis' / 'baselines' / 'dreamer.json').read_text())
          if run['task'] == task]


@pytest.mark.parametrize('steps, end', [
    (5000, 5000), (5001, 105000), (1e5, 105000), (105000, 105000),
    (105001, 205000), (4905000, 4905000), (4905001, None)])
def test_the_published_bin_of_a_number_of_steps(steps, end):
  found = scores.published_at('dmc_cartpole_balance', steps)
  if end is None:
    assert np.isnan(found).all()
    return
  values = [
      dict(zip(run['xs'], run['ys']))[end]
      for run in published_runs('dmc_cartpole_balance')
      if end in run['xs']]
  assert values
  assert found == pytest.approx((np.mean(values), min(values), max(values)))


def test_published_bins_are_named_for_their_ends():
  """No agent that was trained is in the first: it pushes the cart one way."""
  _, low, high = scores.published_at('dmc_cartpole_balance', 5000)
  assert 134 < low < high < 137
  assert np.isnan(scores.published_at('HopperBulletEnv-v0', 5000)).all()


def test_published_curve(tmp_path, capsys):
  """Steps behind the runs, no further than they go, and a text for them."""
  for task, end in (('dmc_cup_catch', 180000), ('HopperBulletEnv-v0', 9e4)):
    write_run(
        tmp_path / task / 'dreamer' / '0', [1, 2, 3], [1e4, end / 2, end])
  figure = make(
      tmp_path, '--baselines', 'curve', 'planet', '--bins', '1e4')[0]['curves']
  hopper, cup = figure.axes
  line, = (x for x in cup.lines if x.get_drawstyle() == 'steps-post')
  first, second, third = (
      np.mean([dict(zip(run['xs'], run['ys']))[end]
               for run in published_runs('dmc_cup_catch')])
      for end in (5000.0, 105000.0, 205000.0))
  assert line.get_xdata().tolist() == [0, 5000, 105000, 180000]
  assert line.get_ydata() == pytest.approx([first, second, third, third])
  ys = cup.collections[0].get_paths()[0].vertices[:, 1]
  low, high = (
      reduce(dict(zip(run['xs'], run['ys']))[205000.0]
             for run in published_runs('dmc_cup_catch'))
      for reduce in (min, max))
  assert low in ys and high in ys
  assert not [x for x in hopper.lines if x.get_drawstyle() == 'steps-post']
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts == ['dreamer', 'Dreamer, published', 'PlaNet (1M)']
  assert 'no published score for HopperBulletEnv-v0' in (
      capsys.readouterr().err)
  with pytest.raises(terminal.UserError, match='--xaxis episodes'):
    make(tmp_path, '--baselines', 'curve', '--xaxis', 'episodes')


# Size


def test_two_hundred_long_runs_in_twenty_seconds(tmp_path):
  rows = [json.dumps({
      'step': step, 'test/return': step / 1e3, 'test/length': 1000.0,
      'episodes': step}) for step in range(1000, 2001000, 1000)]
  text = '\n'.join(rows) + '\n'
  for index in range(200):
    folder = tmp_path / f'task{index % 8}' / f'm{index // 8 % 5}' / f'{index}'
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text(text)
  start = time.process_time()
  plotting.main([
      '--indir', str(tmp_path), '--outdir', str(tmp_path / 'out'),
      '--bins', '3e4', '--aggregate', 'iqm'])
  assert time.process_time() - start < 20


def test_drawing_again_changes_no_file(tmp_path, monkeypatch):
  write_run(tmp_path / 'logs' / 'run', [1, 2], [1, 2])
  figure = make(tmp_path / 'logs')[0]['curves']
  for name, date in ('now', '100000'), ('later', '200000'):
    # The date that matplotlib takes for today's.
    monkeypatch.setenv('SOURCE_DATE_EPOCH', date)
    style.save(figure, tmp_path / name)
  for ending in '.png', '.pdf':
    now, later = (
        (tmp_path / f'{name}{ending}').read_bytes() for name in ('now', 'later'))
    assert now == later


def test_a_long_legend_is_cut(tmp_path):
  for index in range(100):
    write_run(tmp_path / 'logs' / f'run{index}', [1, 2])
  figure = make(tmp_path / 'logs')[0]['curves']
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert len(texts) == 61
  assert (texts[10], texts[-1]) == ('run10', 'and 40 more')


def plain_seconds(number, folder):
  """What matplotlib takes for so many axes by itself, of a processor's time."""
  start = time.process_time()
  figure = mpl_figure.Figure((8.5, 0.6 * number))
  for axes in figure.subplots(number // 3, 3).flat:
    axes.plot(STEPS, STEPS)
    axes.set_title('task')
  for ending in ('png', 'pdf'):
    figure.savefig(folder / f'plain.{ending}', dpi=style.DPI)
  return time.process_time() - start


def test_three_hundred_tasks_in_thirty_seconds(tmp_path):
  """On a slow machine in twice what matplotlib takes for as many axes."""
  for index in range(300):
    write_run(tmp_path / f'task{index}' / 'm' / '0', STEPS[::5], STEPS[::5])
  start = time.process_time()
  plotting.main(['--indir', str(tmp_path), '--outdir', str(tmp_path / 'out')])
  seconds = time.process_time() - start
  assert seconds < 30 or seconds < 2 * 10 * plain_seconds(30, tmp_path)


def texts_of(figure):
  figure.canvas.draw()
  texts = []
  for axes in figure.axes:
    texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
    for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
      low, high = sorted(axis.get_view_interval())
      # Ticks outside of the limits are not drawn.
      texts += [
          text for text in axis.get_ticklabels()
          if low <= text.get_position()[place] <= high]
  for legend in figure.legends:
    texts += legend.get_texts()
  return [text for text in texts if text.get_text()]


def long_names(folder):
  task = 'InvertedDoublePendulumBulletEnv-v0'
  for seed in range(2):
    for name, flags in (
        ('a', {}), ('b', dict(freeze='^(encoder|decoder)/(h1|h2|h3|h4)/')),
        ('c', dict(freeze='x' * 90, cnn_act='elu', horizon=30))):
      write_run(folder / f'{name}{seed}', STEPS, config=ftl(
          task, seed, transfer=False, **flags))
    write_run(folder / f't{seed}', 2 * STEPS, config=sourced(task, seed, 'x'))


@pytest.mark.parametrize('many', [False, True])
def test_texts_stand_inside_the_figure_and_apart(tmp_path, many):
  long_names(tmp_path / 'in')
  if many:
    for task in ('A + B + C + D + E + F + G + H + I + J + K + L', 'z', 'y'):
      write_run(tmp_path / 'in' / task / 'm' / '0', -1e6 * STEPS)
  figures, _ = make(tmp_path / 'in', '--transfer-report')
  for figure in figures.values():
    FigureCanvasAgg(figure)
    boxes = [text.get_window_extent() for text in texts_of(figure)]
    for box in boxes:
      assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1
      assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 + 1
    for index, box in enumerate(boxes):
      for other in boxes[:index]:
        assert not box.padded(-1).overlaps(other.padded(-1))


def test_ticks_of_factors_stand_apart(tmp_path):
  for seed in range(2):
    write_run(tmp_path / f's{seed}', STEPS, config=ftl(
        'Hop', seed, transfer=False))
    for factor in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0):
      write_run(tmp_path / f'{factor}{seed}', STEPS, config=ftl(
          'Hop', seed, transfer=True, transfer_factor=factor))
    for copy in ('^encoder', '^decoder'):
      write_run(tmp_path / f'{copy[1:]}{seed}', STEPS, config=ftl(
          'Hop', seed, transfer=True, transfer_factor=0.0, copy=copy))
  figure = make(tmp_path, '--transfer-report')[0]['omega']
  FigureCanvasAgg(figure)
  for axes in figure.axes:
    ticks = *axes.get_xticks(), *axes.get_xticks(minor=True)
    assert sorted(ticks) == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 1]
    marks = [line for line in axes.lines if line.get_marker() == 'o']
    assert len({line.get_color() for line in marks}) == 3
    assert sorted(len(line.get_xdata()) for line in marks) == [1, 1, 7]
  boxes = [
      text.get_window_extent() for text in texts_of(figure)
      if text in figure.axes[0].get_xticklabels()]
  for left, right in zip(boxes, boxes[1:]):
    assert left.x1 + 2 < right.x0


@pytest.mark.slow
def test_thirty_tasks_and_two_thousand_runs(tmp_path):
  for index in range(2000):
    write_run(
        tmp_path / f'task{index % 30}' / f'm{index % 2}' / f'{index}',
        STEPS[::5] / 1e4 + index % 7, STEPS[::5])
  figure = make(tmp_path, '--aggregate', 'iqm')[0]['curves']
  assert len(figure.axes) == 30
  style.save(figure, tmp_path / 'curves')
  assert (tmp_path / 'curves.png').stat().st_size > 1e5
