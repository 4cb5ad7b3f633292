"""The floating-point format of the networks, `--precision`."""

import pathlib

from common.backend import tf

# Keras policy of each value of the flag but auto.
POLICIES = {
    '16': 'mixed_float16', 'bfloat16': 'mixed_bfloat16', '32': 'float32'}
# Processors with either of these compute in bfloat16 faster than in float32.
FAST = {'avx512_bf16', 'amx_bf16'}


def resolve(flag):
  """The precision of a new agent: auto is the fast one of this machine."""
  if flag != 'auto':
    return flag
  if tf.config.list_physical_devices('GPU'):
    return '16'
  return 'bfloat16' if fast() else '32'


def saved(bits, flag):
  """The precision to go on with, of an agent that comes from a checkpoint.

  Args:
    bits: precision that it was trained in; older checkpoints do not have it
      (None). Then auto was float32 on every processor.
    flag: `--precision` that it was trained with.
  """
  if flag != 'auto':
    return bits or flag
  if bits in (None, '16'):  # A processor would only emulate float16.
    return '16' if tf.config.list_physical_devices('GPU') else '32'
  return bits


def fast():
  """Whether the processor computes in bfloat16 faster than in float32."""
  return bool(FAST & processor())


def processor(file='/proc/cpuinfo'):
  """Instruction sets that Linux names; none on other systems."""
  try:
    text = pathlib.Path(file).read_text()
  except OSError:
    return set()
  return set(text.partition('\nflags')[2].partition('\n')[0].split())
