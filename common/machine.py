"""What the machine has, asked without TensorFlow."""

import os
import platform
import re
import shutil
import subprocess


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


def cpu():
  """Name of the processor, where Linux tells it, or else its kind."""
  try:
    with open('/proc/cpuinfo') as file:
      return re.search(r'model name\s*: (.*)', file.read())[1]
  except (OSError, TypeError):
    return platform.machine()


def describe():
  """One line: processor, cores, GPUs and the version of Python."""
  return ', '.join([
      cpu(), f'{os.cpu_count()} cores', *nvidia_gpus(),
      f'Python {platform.python_version()}'])
