"""The devices and machines that learn together, and how they keep in step."""

import concurrent.futures
import contextlib
import json
import os

from common import machine, precision, terminal
from common.backend import tf

_HOW_TO_INSTALL = (
    "Install its CUDA libraries: pip install 'tensorflow[and-cuda]=="
    f"{tf.__version__}'")


class Team:
  """The workers of a run, one process on each machine that TF_CONFIG lists.

  Every worker has its own environments, episodes and random numbers. All make
  the same updates, from their shares of the batches; the chief, worker 0,
  evaluates, logs and writes the checkpoint. Without TF_CONFIG a run is a team
  of one.
  """

  # Decisions between agreements, each of which costs a message or two.
  stride = 10

  def __init__(self, batch_size):
    workers, self.index = _read_environment()
    self.size = len(workers)
    if batch_size % self.size:
      raise terminal.UserError(
          f'--batch_size {batch_size} cannot be shared by {self.size} workers: '
          f'give a multiple of that, such as '
          f'{-(-batch_size // self.size) * self.size}.')
    gpus = _gpus()
    count = replicas(batch_size // self.size, len(gpus))
    if count < len(gpus) and self.chief:
      terminal.say(
          f'a batch of {batch_size} sequences is shared by {count} of '
          f'{len(gpus)} GPUs, the most that divide it: with --batch_size '
          f'{-(-batch_size // len(gpus)) * len(gpus)} all would learn.')
    if self.size > 1:
      if count < len(gpus):
        tf.config.set_visible_devices(gpus[:count], 'GPU')
      self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif count > 1:
      self.strategy = tf.distribute.MirroredStrategy(
          [gpu.name.split(':', 1)[1] for gpu in gpus[:count]])
    else:
      self.strategy = tf.distribute.get_strategy()
    if self.size == 1:
      self.stride = 1

  def check_jit(self, jit):
    """Refuses `--jit True` where several devices learn together."""
    if jit == 'True' and self.strategy.num_replicas_in_sync > 1:
      raise terminal.UserError(
          '--jit True compiles for one device, and '
          f'{self.strategy.num_replicas_in_sync} learn together here: leave it '
          'out, or choose one GPU with CUDA_VISIBLE_DEVICES=0.')

  @property
  def chief(self):
    return self.index == 0

  def sum(self, *values):
    """Sums of numbers over all workers; each waits here for the others."""
    if self.size == 1:
      return values
    return self._sum(tf.constant(values, tf.float64)).numpy().tolist()

  def chief_says(self, answer):
    """The chief's answer to a question of yes or no."""
    return bool(self.sum(self.chief and answer)[0])

  def wait(self):
    """Returns when all workers have come here."""
    self.sum(0)

  @contextlib.contextmanager
  def together(self):
    """In this context one worker's end is everyone's, with a clear message."""
    lost = (
        tf.errors.UnavailableError, tf.errors.AbortedError,
        tf.errors.CancelledError, tf.errors.DeadlineExceededError,
        tf.errors.InternalError)
    try:
      with self.strategy.scope():
        yield
    except lost as error:
      if self.size == 1:
        raise
      reason = str(error).strip().splitlines()[-1]
      raise terminal.UserError(
          f'worker {self.index} of {self.size} ends because another one has '
          f'ended or cannot be reached; its own output says why ({reason}). '
          'The same command on every machine continues from the last '
          'checkpoint.') from None

  def _sum(self, values):
    @tf.function(autograph=False)
    def total(values):
      # All replicas of one machine say the same. Whole numbers stay exact.
      every = self.strategy.reduce(
          'SUM', self.strategy.run(tf.identity, (values,)), axis=None)
      return every * self.size / self.strategy.num_replicas_in_sync

    self._sum = total
    return total(values)


def distribute(strategy, batch):
  """Gives each replica of this machine its share of a batch of sequences.

  Args:
    batch: dict of arrays [B, ...].

  Returns:
    The same as tensors, by replica where there are several.
  """
  def tensors(batch):
    return {name: tf.convert_to_tensor(x) for name, x in batch.items()}

  if strategy.num_replicas_in_sync == 1:
    return tensors(batch)
  local = len(strategy.extended.worker_devices)
  share = len(batch['reward']) // local

  def part(context):
    begin = context.replica_id_in_sync_group % local * share
    return tensors({k: v[begin:begin + share] for k, v in batch.items()})

  return strategy.experimental_distribute_values_from_function(part)


def on_replicas(strategy, function, *args):
  """Calls `function(*args) -> grads, metrics` on every replica.

  Returns:
    The gradients, by replica where there are several, and the means of the
    metrics, a dict of scalars.
  """
  names = []

  def stacked(*args):
    grads, metrics = function(*args)
    names[:] = metrics
    return grads, tf.stack(list(metrics.values()))

  grads, metrics = strategy.run(stacked, args)
  metrics = strategy.reduce('MEAN', metrics, axis=None)
  return grads, dict(zip(names, tf.unstack(metrics)))


def alone(function, *args):
  """Calls a function as if this were the only device and the only worker.

  Strategies hold for a thread: in one of its own, variables are neither copied
  to other devices nor waited for by other workers.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(function, *args).result()


def replicas(share, gpus):
  """The most GPUs among which a machine's share of a batch can be divided."""
  return max(x for x in range(1, max(gpus, 1) + 1) if share % x == 0)


def configure(config):
  """Threads, memory and seed, before the first tensor is made."""
  def attempt(flag, setting, *values):
    # A process can set these only once; later runs in it take what there is.
    try:
      setting(*values)
    except (RuntimeError, ValueError) as error:
      terminal.warn(
          f'--{flag} {getattr(config, flag)} has no effect: {error}')

  for device in tf.config.list_physical_devices('GPU'):
    grows = tf.config.experimental.get_memory_growth(device)
    if grows != config.gpu_growth:
      attempt(
          'gpu_growth', tf.config.experimental.set_memory_growth, device,
          config.gpu_growth)
  threading = tf.config.threading
  if config.threads and config.threads != (
      threading.get_intra_op_parallelism_threads()):
    attempt('threads', _set_threads, config.threads)
  tf.random.set_seed(config.seed)


def _set_threads(count):
  tf.config.threading.set_intra_op_parallelism_threads(count)
  tf.config.threading.set_inter_op_parallelism_threads(count)


def compiles(jit, replicas=1):
  """Whether XLA compiles the update, which `--jit` decides.

  A GPU waits for the start of each of an update's thousands of small operations,
  of which XLA makes few (results/gpu). On a CPU it gains nothing (docs/speed.md).
  XLA compiles for one device; several have to meet within an update.
  """
  if jit != 'auto':
    return jit == 'True'
  if replicas > 1 or not tf.config.list_physical_devices('GPU'):
    return False
  try:
    _small_program()
  except tf.errors.OpError as error:
    reason = str(error).strip().splitlines()[0]
    terminal.warn(
        f'XLA cannot compile for this GPU ({reason}): updates take several times '
        f'as long. {_HOW_TO_INSTALL}; --jit False hides this')
    return False
  return True


def _small_program():
  """Has what XLA needs of CUDA: an assembler and a library of functions."""
  tf.function(tf.tanh, jit_compile=True, autograph=False)(tf.ones([2]))


def describe(agent, strategy=None):
  """One line: the devices that an agent computes on, precision and size."""
  gpus = _gpus()
  if gpus:
    count = strategy.num_replicas_in_sync if strategy else 1
    details = tf.config.experimental.get_device_details(gpus[0])
    name = details.get('device_name', 'GPU')
    place = f'{count} GPUs ({name})' if count > 1 else f'GPU ({name})'
  else:
    cores = len(os.sched_getaffinity(0))
    place = f'CPU ({cores} core{"s" * (cores > 1)})'
  kind = precision.POLICIES[agent.precision].replace('_', ' ')
  return f'device {place} · precision {kind} · {agent.parameters:,} parameters'


def check_gpu():
  """Warns if the machine has a GPU that TensorFlow does not see."""
  hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
  if _gpus() or hidden in ('', '-1') or not machine.nvidia_gpus():
    return
  terminal.warn(
      'nvidia-smi shows a GPU, but TensorFlow does not see it and computes on '
      f'the CPU. {_HOW_TO_INSTALL}')


def _gpus():
  return tf.config.list_physical_devices('GPU')


def _read_environment():
  """Addresses of all workers, the chief's first, and the index of this one."""
  text = os.environ.get('TF_CONFIG')
  if not text:
    return ['localhost'], 0
  try:
    parts = json.loads(text)
    cluster, task = parts.get('cluster', {}), parts.get('task', {})
    chiefs, others = cluster.get('chief', []), cluster.get('worker', [])
    workers = [] + chiefs + others  # Refuses all but lists.
    kind, index = task.get('type'), int(task.get('index', 0))
    own = max(len(workers), 1)
    if own > 1:
      own = len(cluster[kind])
    if (set(cluster) - {'chief', 'worker'} or len(chiefs) > 1
        or not all(isinstance(address, str) for address in workers)
        or not 0 <= index < own):
      raise ValueError
    if kind == 'worker' and len(workers) > 1:
      index += len(chiefs)
  except (ValueError, AttributeError, TypeError, KeyError):
    raise terminal.UserError(
        f"TF_CONFIG is '{text}': it must be like {{\"cluster\": {{\"worker\": "
        '["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": '
        '0}}, with the index of this machine.') from None
  return workers or ['localhost'], index
