"""What the machine has and runs, asked without TensorFlow."""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import subprocess

from common import files


def nvidia_gpus():
  """Names of the NVIDIA GPUs that nvidia-smi lists; none where it fails."""
  program = shutil.which('nvidia-smi')
  if not program:
    return []
  try:
    listed = subprocess.run(
        [program, '-L'], capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.SubprocessError):
    return []
  if listed.returncode:
    return []
  return re.findall(r'^GPU \d+: (.*?)(?: \(UUID.*)?$', listed.stdout, re.M)


def is_x86():
  return platform.machine() in ('x86_64', 'AMD64')


def cpu(file='/proc/cpuinfo'):
  """Name, family and model of the processor, or its kind if Linux has no name.

  Virtual machines give processors of several generations the same name.
  """
  try:
    text = pathlib.Path(file).read_text()
  except OSError:
    return platform.machine()
  name, *numbers = (
      re.search(rf'^{key}\s*: (.*)', text, re.M)
      for key in ('model name', 'cpu family', 'model'))
  if not name:
    return platform.machine()
  if not all(numbers):
    return name[1]
  family, model = (number[1] for number in numbers)
  return f'{name[1]} (family {family}, model {model})'


def describe():
  """One line: processor, cores, GPUs and the version of Python."""
  return ', '.join([
      cpu(), f'{os.cpu_count()} cores', *nvidia_gpus(),
      f'Python {platform.python_version()}'])


def commit():
  """The commit of the code, marked if a file of it was changed since."""
  def git(*words):
    return subprocess.run(
        ['git', *words], cwd=files.ROOT, capture_output=True, text=True)

  with contextlib.suppress(OSError):
    name = git('rev-parse', '--short', 'HEAD').stdout.strip()
    changed = git('diff', '--quiet', 'HEAD', '--', '*.py').returncode
    return name and name + '-dirty' * bool(changed) or 'unknown'
  return 'unknown'
