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
  samples = np.array(samples)
  # The last two thirds.
  seconds, run_memory, worker_memory, files = samples[len(samples) // 3:].T
  print(
      f'{lines[-1]["step"]:,} steps and {len(lines):,} lines in {minutes:g} '
      f'minutes, status {status}')
  flat = True
  for name, memory in (('run', run_memory), ('workers', worker_memory)):
    slope = np.polyfit(seconds / 3600, memory, 1)[0]
    grown = slope * (seconds[-1] - seconds[0]) / 3600
    flat &= grown < 0.02 * memory.mean()
    print(f'{name}: {memory.mean():.0f} MB, {slope:+.1f} MB an hour')
  print(f'{files.min():.0f} to {files.max():.0f} open files')
  print(f'{len(workers)} workers, {len(left)} left at the end')
  return not (
      flat and status == 143 and len(workers) == 3 and not left and
      files.max() - files.min() < 10)


def watch(run, seconds, interval=2.0):
  """Samples of (seconds, MB of the run, MB of its workers, open files)."""
  samples = []
  began = time.monotonic()
  while time.monotonic() - began < seconds:
    time.sleep(interval)
    assert run.popen.poll() is None, 'the run ended by itself'
    main, workers = run.popen.pid, run.workers()
    samples.append((
        time.monotonic() - began, megabytes(main),
        sum(map(megabytes, workers)),
        sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in [main, *workers])))
  return samples


def megabytes(pid):
  """Memory that a process has taken; pages of files come and go."""
  text = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
  return sum(
      int(line.split()[1]) for line in text.splitlines()
      if line.startswith(('Anonymous:', 'Swap:'))) / 1024


if __name__ == '__main__':
  sys.exit(main(*map(float, sys.argv[1:])))
