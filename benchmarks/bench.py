"""Measures how fast the program is: `make bench`.

python3 -m benchmarks.bench [--out bench.json] [--only step,acting]
    [--plot growth.png]

Machines differ, and so does one machine from minute to minute. Things to
compare therefore run alternately, and a figure is the median of the ratios.
Nothing else should run meanwhile.
"""

import pathlib

from common import flags


def define_config():
  config = flags.Config()
  define = config.define
  define('out', pathlib.Path('bench.json'), 'File for all figures.')
  define('plot', None, 'Picture of how cost grows, for example growth.png.',
         type=pathlib.Path, metavar='FILE')
  define('pictures', None, 'Picture of the difference that --render fast '
         'makes, for example rendering.png.', type=pathlib.Path,
         metavar='FILE')
  define('only', '', 'Figures to measure, with commas between them, for '
         'example step,acting; an unknown one lists all.')
  define('quick', False, 'Use tiny sizes, to show that everything works; the '
         'figures mean nothing then.')
  return config


if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(define_config, __doc__)

import concurrent.futures
import contextlib
import datetime
from functools import partial
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import tempfile
import time

import numpy as np

from benchmarks import measuring
from benchmarks.measuring import alternately, make_agent, random_batch
from common import files, machine, precision, terminal
from data import replay
from data.logdir import Logdir
import dreamer
from runs import workers
import wrappers

# The figures. Every function returns rows of the table, and series that
# show growth: {name: (label of the axis, numbers there, label, measured)}.


def step(quick):
  """Seconds of an update against its arithmetic and against sheeprl.

  In the machine's format of 16 bits too, if it has one.
  """
  rows = []
  bits = list(dict.fromkeys(['32', precision.resolve('auto')]))
  for preset in ['debug'] if quick else ['paper', 'small', 'cpu']:
    batch = random_batch(preset)
    agents = {bit: make_agent(preset, precision=bit) for bit in bits}
    functions = {}
    for bit, agent in agents.items():
      product, size = measuring.matrix_product(quick, bit)
      functions['update', bit] = partial(measuring.update, agent, batch)
      functions['product', bit] = product
    with contextlib.ExitStack() as stack:
      for bit in measuring.SHEEPRL_FORMATS if preset == 'paper' else []:
        if bit not in bits:
          continue
        try:
          functions['sheeprl', bit] = stack.enter_context(
              measuring.sheeprl(bit))
        except OSError as error:
          rows.append(failed(f'sheeprl, {bit}', error))
      seconds = dict(zip(functions, alternately(
          functions.values(), rounds=2 if quick else 7).T))
    work = sum(measuring.operations(agents['32'].config).values())
    rows.append(row(f'update, {preset}: operations', work / 1e9, 'GFLOP'))
    for bit in bits:
      rows += step_rows(
          f'update, {preset}' + f', {bit}' * (bit != '32'), preset, bit,
          seconds, work, size)
  return rows, {}


def step_rows(name, preset, bit, seconds, work, size):
  """Rows of an update of `work` operations, beside a product of `size`."""
  update, product = seconds['update', bit], seconds['product', bit]
  paper = preset == 'paper'
  rows = [
      row(name, np.median(update), 's'),
      row(f'{name}: rate of matrix products',
          size / np.median(product) / 1e9, 'GFLOP/s'),
      # Per round, how long the update would take at the product's rate.
      row(f'{name}: floor / time', np.median(product * work / size / update),
          at_least=0.75 if paper and bit == '32' else None)]
  if bit != '32':
    rows.append(row(
        f'{name}: time / float32', np.median(update / seconds['update', '32'])))
  if ('sheeprl', bit) in seconds:
    other = seconds['sheeprl', bit]
    rows += [
        row(f'{name}: sheeprl', np.median(other), 's'),
        row(f'{name}: time / sheeprl', np.median(update / other),
            at_most=0.25 if bit == '32' else 0.6)]
  return rows


def formats(quick):
  """Losses of 200 updates in bfloat16 over those in float32.

  Same weights, batches and noise, of random play; means of the last 50.
  """
  updates, last = (4, 2) if quick else (200, 50)
  preset = 'debug' if quick else 'cpu'
  with tempfile.TemporaryDirectory(prefix='bench-') as folder:
    measuring.record_episodes(folder, 1 if quick else 10)
    losses = {
        bits: measuring.losses(folder, preset, bits, updates)[-last:].mean(0)
        for bits in ('32', 'bfloat16')}
  rows = []
  for name, exact, rough in zip(
      measuring.LOSSES, losses['32'], losses['bfloat16']):
    rows += [
        row(f'{name} after {updates} updates, float32', exact),
        row(f'{name} after {updates} updates, bfloat16 / float32',
            rough / exact)]
  return rows, {}


def profile(quick):
  """Time of the parts of an update, before and after faster convolutions."""
  preset = 'debug' if quick else 'paper'
  agent, batch = make_agent(preset), random_batch(preset)
  parts = measuring.pieces(agent, batch)
  with measuring.plain_convolutions():
    plain = {
        f'{name}, plain convolutions': part
        for name, part in measuring.pieces(agent, batch).items()
        if name in ('encoder', 'decoder')}
    for part in plain.values():
      part()  # Traced while the convolutions are plain.
  functions = {
      'update': partial(measuring.update, agent, batch), **parts, **plain}
  seconds = alternately(functions.values(), rounds=2 if quick else 5)
  share = np.median(seconds / seconds[:, :1], 0)
  rows = [row('update', np.median(seconds[:, 0]), 's')]
  for name, value in list(zip(functions, share))[1:]:
    rows.append(row(f'{name} / update', value))
  return rows, {}


def operations(quick):
  """Operations of an update with the preset for a CPU, on one thread."""
  preset = 'debug' if quick else 'cpu'
  count, shares = measuring.executed(
      make_agent(preset, threads=1, precision='auto'), random_batch(preset))
  return [
      row(f'operations in an update, {preset}', count),
      *(row(f'operations, {preset}: {kind}', share, 'of the time')
        for kind, share in shares.items())], {}


def presets(quick):
  """An update with the preset for a CPU against what it was before.

  That is the preset small in float32.
  """
  names = ('debug', 'debug') if quick else ('small', 'cpu')
  functions = [
      partial(measuring.update, make_agent(name, precision=bits),
              random_batch(name))
      for name, bits in zip(names, ('32', 'auto'))]
  seconds = alternately(functions, rounds=2 if quick else 15)
  before, now = np.median(seconds, 0)
  return [
      row('presets, small in float32', before, 's'),
      row('presets, cpu', now, 's'),
      row('presets, cpu / small in float32',
          np.median(seconds[:, 1] / seconds[:, 0]))], {}


def onednn(quick):
  """An update in float32 as it is, and where TensorFlow leaves oneDNN off."""
  rows = []
  for preset in ['debug'] if quick else ['cpu', 'small', 'paper']:
    with contextlib.ExitStack() as stack:
      functions = [
          stack.enter_context(
              measuring.updating(preset, TF_ENABLE_ONEDNN_OPTS=value))
          for value in '01']
      seconds = alternately(functions, rounds=2 if quick else 7)
    rows += [
        row(f'oneDNN, {preset}', np.median(seconds[:, 1]), 's'),
        row(f'oneDNN, {preset}: time / without',
            np.median(seconds[:, 1] / seconds[:, 0]))]
  return rows, {}


def start(quick):
  """Seconds from the command to the end of its first update; retracing."""
  presets = {'debug': None} if quick else {'paper': 15, 'cpu': 10}
  rows = []
  with tempfile.TemporaryDirectory(prefix='bench-') as folder:
    recorded = measuring.record_episodes(folder, 1)
    for preset, target in presets.items():
      times = []
      for index in range(1 if quick else 3):
        logdir = pathlib.Path(folder, f'{preset}{index}')
        measuring.multiply(recorded, Logdir(logdir).episodes, 10)
        times.append(measuring.first_update([
            '--logdir', str(logdir), '--preset', preset, '--prefill', '5000']))
      rows.append(row(
          f'command to first update, {preset}', np.median(times), 's',
          at_most=target))
    again = measuring.retraced(pathlib.Path(folder, 'traces'))
  return rows + [
      row('evaluations and summaries traced again', again, at_most=0)], {}


def whole(quick):
  """Seconds of a run for 1,000 environment steps, and its parts.

  After the first update, with the evaluations and logs of the defaults.
  """
  rows = []
  for task in measuring.WHOLE:
    flags = ['--preset', 'debug'] if quick else [
        '--preset', 'cpu', '--steps', '15000']
    with tempfile.TemporaryDirectory(prefix='bench-') as folder:
      seconds, parts = measuring.whole_run(
          ['--logdir', folder, '--task', task, '--render', 'fast', *flags])
    rows.append(row(f'run, {task}', seconds, 's/1,000 steps'))
    for name, share in parts.items():
      target = 0.25 if name == 'all but updates' and 'Bullet' in task else None
      rows.append(row(
          f'run, {task}: {name}', share, 'of the time', at_most=target))
  return rows, {}


def acting(quick):
  """Milliseconds of a policy call for one environment and for eight."""
  agent, calls = make_agent('debug' if quick else 'paper'), 200
  functions = [
      partial(measuring.act, agent, count, calls) for count in (1, 8)]
  seconds = alternately(functions, rounds=2 if quick else 9)
  one, eight = 1e3 / calls * np.median(seconds, 0)
  return [
      row('policy, 1 environment', one, 'ms', at_most=1.5),
      row('policy, 8 environments in one call', eight, 'ms'),
      row('policy, 8 / 1', np.median(seconds[:, 1] / seconds[:, 0]))], {}


def collection(quick):
  """Decisions a second with an agent against workers that run freely."""
  agent = make_agent('debug' if quick else 'paper')
  rows, rates, cores = [], [], len(os.sched_getaffinity(0))
  counts = [2] if quick else [1, 2, 4, 8]
  for count in counts:
    decisions = 20 if quick else 1000 // count
    with contextlib.ExitStack() as stack:
      envs = [workers.make('process', measuring.TASK) for _ in range(count)]
      for env in envs:
        stack.callback(env.close)
      seconds = alternately([
          partial(measuring.collect, agent, envs, decisions),
          partial(measuring.run_freely, envs, decisions)],
          rounds=2 if quick else 5)
      began = time.process_time()
      measuring.collect(agent, envs, decisions)
      cpu = (time.process_time() - began) / decisions / count
    rate = count * decisions / np.median(seconds, 0)
    rates.append(rate[0])
    if count == 2:
      rows += [
          row('collection, 2 process workers', rate[0], 'decisions/s'),
          row('the workers running freely', rate[1], 'decisions/s'),
          row('CPU time of agent and driver', 1e3 * cpu, 'ms/decision'),
          row('collection / free', np.median(seconds[:, 1] / seconds[:, 0]),
              at_least=0.85),
          # Workers that run freely fill as many cores; what the agent computes
          # on them is lost to the environments.
          row('collection / free, at most by CPU time',
              1 / (1 + cpu * rate[1] / min(count, cores)))]
  return rows, {'environments': (
      'environments', counts, 'decisions / s', rates)}


def replaying(quick):
  """Batches a second, memory and start with few and with many episodes."""
  counts = [2, 6] if quick else [10, 100, 500, 2000]
  bound = 2 ** 30
  rows, rates = [], []
  with tempfile.TemporaryDirectory(prefix='bench-') as folder:
    if shutil.disk_usage(folder).free < (1 if quick else 32) * 2 ** 30:
      raise terminal.UserError(
          f'replay needs 32 GiB in {folder}: name another place in TMPDIR.')
    recorded = measuring.record_episodes(folder, 2 if quick else 24)
    for count in counts:
      directory = Logdir(pathlib.Path(folder, f'run{count}')).episodes
      measuring.multiply(recorded, directory, count)
      before = measuring.memory()
      episodes = replay.Replay(
          directory, batch_size=50, batch_length=50, memory=bound)
      with contextlib.closing(episodes):
        first = measuring.batch_rate(episodes, 0, 2 if quick else 10)
        # Until all but a few in a thousand have been drawn.
        warm = math.ceil(6 * count / 50)
        measuring.batch_rate(episodes, 10, 10 + warm)
        rates.append(measuring.batch_rate(
            episodes, 10 + warm, 10 + warm + (2 if quick else 100)))
        excess = measuring.memory() - before - bound
    starts = alternately([
        partial(measuring.start_with, folder, count)
        for count in (counts[0], counts[-1])], rounds=1 if quick else 3)
  cached = rates[counts.index(100)] if 100 in counts else rates[0]
  many = f'{counts[-1]:,} episodes'
  rows = [
      row('batches, cached, one core', cached, '1/s', at_least=20),
      row(f'batches, {many}, memory of 1 GiB', rates[-1], '1/s', at_least=8),
      row(f'batches, {many}, the first 10', first, '1/s'),
      row(f'memory beyond the bound, {many}', excess / 2 ** 20, 'MiB',
          at_most=256),
      row(f'start with {many}, more than with {counts[0]}',
          np.median(starts[:, 1] - starts[:, 0]), 's', at_most=5)]
  return rows, {'episodes': ('episodes', counts, 'batches / s', rates)}


def rendering(quick):
  """Pictures of DeepMind Control: the fast way against the default."""
  envs = [
      wrappers.make_env('dmc_walker_walk', render=way)
      for way in ('default', 'fast')]
  with contextlib.ExitStack() as stack:
    for env in envs:
      stack.callback(env.close)
    images = [measuring.play(env, 5 if quick else 50) for env in envs]
    seconds = alternately([
        *(partial(measuring.draw, env, 10) for env in envs),
        partial(measuring.draw_with_new_cameras, envs[1], 10)],
        rounds=2 if quick else 15)
  default, fast, anew = 1e3 / 10 * np.median(seconds, 0)
  difference = np.abs(np.subtract(*np.array(images, np.float32)))
  return [
      row('picture, default', default, 'ms'),
      row('picture, --render fast', fast, 'ms'),
      row('default / fast', np.median(seconds[:, 0] / seconds[:, 1]),
          at_least=4),
      row('picture, --render fast, a new camera for it', anew, 'ms'),
      row('difference of pixels, mean', difference.mean(), 'of 255'),
      row('difference of pixels, largest', difference.max(), 'of 255')], {}


def growth(quick):
  """Seconds of an update against the length and the size of a batch."""
  preset = 'debug' if quick else 'paper'
  sizes = [4, 8] if quick else [12, 25, 50, 100]
  series = {}
  for name in ('batch_length', 'batch_size'):
    seconds = []
    for size in sizes:
      agent = make_agent(preset)
      batch = random_batch(preset, **{name: size})
      seconds.append(np.median(alternately(
          [partial(measuring.update, agent, batch)],
          rounds=2 if quick else 3)))
    series[name] = name, sizes, 's / update', seconds
  return [], series


FIGURES = {
    'step': step, 'profile': profile, 'operations': operations,
    'presets': presets, 'onednn': onednn, 'whole': whole, 'start': start,
    'formats': formats, 'acting': acting, 'collection': collection,
    'replay': replaying, 'rendering': rendering, 'growth': growth}


# The table and the file.


def row(name, value, unit='', at_least=None, at_most=None):
  """One line of the table."""
  result = dict(name=name, value=float(value), unit=unit, target='', met=None)
  if at_least is not None:
    result.update(target=f'≥ {at_least:g}', met=bool(value >= at_least))
  if at_most is not None:
    result.update(target=f'≤ {at_most:g}', met=bool(value <= at_most))
  return result


def failed(name, reason):
  return dict(row(f'{name}: not measured ({reason})', np.nan), value=None)


def main(argv):
  config = define_config().command(argv, __doc__)
  names = config.only.split(',') if config.only else list(FIGURES)
  for name in names:
    if name not in FIGURES:
      raise terminal.UserError(
          f"--only takes figures of {', '.join(FIGURES)}; not {name}.")
  if os.getloadavg()[0] > 0.5:
    terminal.warn('other programs are running: the figures will be wrong.')
  result = {**describe(), 'quick': config.quick, 'rows': [], 'series': {}}
  for name in names:
    rows, series = isolated(name, config.quick)
    result['rows'] += [dict(line, figure=name) for line in rows]
    result['series'].update(series)
    for line in rows:
      terminal.say(line_of(line))
    config.out.write_text(json.dumps(result, indent=2) + '\n')
  missed = [line['name'] for line in result['rows'] if line['met'] is False]
  print(f'Targets missed: {", ".join(missed) or "none"}.')
  if config.plot and result['series']:
    plot(result['series'], config.plot)
  if config.pictures:
    measuring.rendered().save(config.pictures)


def isolated(name, quick):
  """Measures a figure in a process of its own, with memory of its own."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    try:
      return pool.submit(measure, name, quick).result()
    except (
        terminal.UserError, OSError, subprocess.SubprocessError,
        concurrent.futures.BrokenExecutor) as error:
      return [failed(name, error)], {}


def measure(name, quick):
  return FIGURES[name](quick)


def line_of(line):
  """A row of the table as text."""
  value = '' if line['value'] is None else f"{line['value']:.4g}"
  met = {None: '', True: 'met', False: 'MISSED'}[line['met']]
  return (
      f"{line['name']:<46} {value:>9} {line['unit']:<12} "
      f"{line['target']:<7} {met}").rstrip()


def describe():
  """The machine and the versions that the figures depend on."""
  packages = ('tensorflow', 'numpy', 'pybullet', 'mujoco', 'dm_control')
  return {
      'date': datetime.datetime.now().isoformat(timespec='seconds'),
      'commit': machine.commit(),
      'cpu': machine.cpu(),
      'cores': len(os.sched_getaffinity(0)),
      'memory': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
      'versions': {
          'python': platform.python_version(),
          **{name: version(name) for name in packages},
          **dict(package.split('==') for package in measuring.PACKAGES)}}


def version(package):
  """The version of a package; PyBullet is not there on newer Pythons."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'absent'


def plot(series, path):
  """Draws how cost grows, a panel for each series."""
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  figure, panels = plt.subplots(
      1, len(series), figsize=(3 * len(series), 2.6), squeeze=False)
  for panel, (xlabel, xs, ylabel, ys) in zip(panels[0], series.values()):
    panel.plot(xs, ys, 'o-')
    panel.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    if max(xs) > 20 * min(xs):
      panel.set_xscale('log')
  figure.tight_layout()
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  terminal.run(main)
