"""The memory that this process may still use."""

import contextlib
import os
import pathlib
import re


def available():
  """Bytes that this process can still use, control groups considered."""
  try:
    text = pathlib.Path('/proc/meminfo').read_text()
    free = int(re.search(r'MemAvailable:\s+(\d+)', text)[1]) * 1024
  except (OSError, TypeError):
    free = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return max(0, min([free, *group_limits()]))


def group_limits(root='/sys/fs/cgroup', membership='/proc/self/cgroup'):
  """Bytes left in each control group around this process that has a limit."""
  try:
    lines = pathlib.Path(membership).read_text().splitlines()
  except OSError:
    return
  for line in lines:
    _, controllers, group = line.split(':', 2)
    if controllers not in ('', 'memory'):
      continue
    top = pathlib.Path(root, controllers)
    names = ('memory.limit_in_bytes', 'memory.usage_in_bytes')
    names = names if controllers else ('memory.max', 'memory.current')
    inner = top / group.lstrip('/')
    for path in (inner, *inner.parents):
      if path.is_relative_to(top):
        # Groups without a limit have no such file, or say 'max' in it.
        with contextlib.suppress(OSError, ValueError):
          limit, used = (int((path / name).read_text()) for name in names)
          yield limit - used + _file_cache(path)


def _file_cache(group):
  """Bytes of a control group that are given back when needed."""
  text = (group / 'memory.stat').read_text()
  match = re.search(r'^(?:total_)?inactive_file (\d+)$', text, re.MULTILINE)
  return int(match[1]) if match else 0
