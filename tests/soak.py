"""Trains for an hour and measures whether anything grows.

python tests/soak.py [MINUTES]

Memory (of the run and its workers, after a third of the time for warming up)
must stay flat, and so must open files; no process may be left at the end.
"""

import os
import pathlib
import signal
import sys
import tempfile
import time

import numpy as np

import running


def main(minutes=60.0):
  with tempfile.TemporaryDirectory(prefix='soak-') as logdir:
    # More memory for replay would be used in time, as it should.
    run = running.Process(
        logdir, steps=10 ** 9, parallel='process', envs=2, log_images=True,
        replay_memory=0.01, save_every=10)
    try:
      samples = watch(run, 60 * minutes)
      workers = run.workers()
      status = run.end(signal.SIGTERM)
    finally:
      run.popen.kill()
    left = set(workers) & set(running.processes())
    lines = running.lines(logdir)
  seconds, memory, files = np.array(samples).T
  warm = seconds > 20 * minutes
  slope = np.polyfit(seconds[warm] / 3600, memory[warm], 1)[0]
  grown = slope * (seconds[warm][-1] - seconds[warm][0]) / 3600
  print(
      f'{lines[-1]["step"]:,} steps and {len(lines):,} lines in {minutes:g} '
      f'minutes, status {status}')
  print(
      f'memory {memory[warm].mean():.0f} MB, slope {slope:+.1f} MB/h '
      f'({grown:+.1f} MB since warm)')
  print(f'open files {files[warm].min():.0f} to {files[warm].max():.0f}')
  print(f'{len(workers)} workers, {len(left)} left at the end')
  return not (
      status == 143 and len(workers) == 3 and not left and
      grown < 0.03 * memory[warm].mean() and
      files[warm].max() - files[warm].min() < 10)


def watch(run, seconds, interval=2.0):
  """Samples of (seconds, MB, open files) of a run and its workers."""
  samples = []
  began = time.monotonic()
  while time.monotonic() - began < seconds:
    time.sleep(interval)
    assert run.popen.poll() is None, 'the run ended by itself'
    pids = [run.popen.pid, *run.workers()]
    samples.append((
        time.monotonic() - began, sum(map(megabytes, pids)),
        sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in pids)))
  return samples


def megabytes(pid):
  """Memory that a process has taken; pages of files come and go."""
  text = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
  return sum(
      int(line.split()[1]) for line in text.splitlines()
      if line.startswith(('Anonymous:', 'Swap:'))) / 1024


if __name__ == '__main__':
  sys.exit(main(*map(float, sys.argv[1:])))
