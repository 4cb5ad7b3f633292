"""Measurements for bench.py: updates, starts, policies, collection, batches."""

import collections
import concurrent.futures
import contextlib
from functools import partial
import math
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
from PIL import Image

from common import convolutions, files, layers, precision, terminal
from common.backend import tf
from data import replay
import dreamer
from runs import collector, devices, driver, loop, workers
import wrappers

TASK = 'HalfCheetahBulletEnv-v0'
# Losses, and what of them remains where a prediction is perfect: that of unit
# Normals, of which an image has 64 x 64 x 3.
PERFECT = 0.5 * math.log(2 * math.pi)
LOSSES = {
    'image_loss': 64 * 64 * 3 * PERFECT, 'reward_loss': PERFECT, 'div': 0,
    'value_loss': 0}
WHOLE = TASK, 'dmc_cartpole_balance'
ACTIONS = 6
SHEEPRL = files.ROOT / '.venv-sheeprl'
PACKAGES = ('torch==2.13.0', 'sheeprl==0.8.4')
# What sheeprl is measured in, on a CPU: its name of each `--precision`.
SHEEPRL_FORMATS = {'32': '32-true', 'bfloat16': 'bf16-mixed'}


def alternately(functions, rounds):
  """Seconds `[rounds, functions]` of calling one after the other.

  Each is called once before, which is not counted.
  """
  functions = list(functions)
  seconds = np.zeros([rounds + 1, len(functions)])
  for times in seconds:
    for index, function in enumerate(functions):
      began = time.perf_counter()
      function()
      times[index] = time.perf_counter() - began
  return seconds[1:]


def settings(preset, **values):
  config = dreamer.define_config()
  config.preset_name(preset)
  config.update({'precision': '32', **values})
  return config


def make_agent(preset, **values):
  config = settings(preset, **values)
  devices.configure(config)
  return dreamer.Dreamer(config, ACTIONS)


def random_batch(preset, **values):
  """A batch as replay gives it, but of noise."""
  config = settings(preset, **values)
  rng = np.random.default_rng(0)
  shape = config.batch_size, config.batch_length
  return {
      'image': rng.integers(0, 256, (*shape, 64, 64, 3), np.uint8),
      'action': rng.uniform(-1, 1, (*shape, ACTIONS)).astype(np.float32),
      'reward': rng.normal(size=shape).astype(np.float32),
      'discount': np.ones(shape, np.float32), 'first': np.zeros(shape, bool)}


def update(agent, batch):
  return float(agent.train(batch)['model_loss'])


def operations(config, actions=ACTIONS):
  """Floating-point operations that one update needs, by part.

  Counted are the multiplications and additions of matrix products and
  convolutions: forward, and back to the inputs and kernels that each of the
  three losses has to reach. It need not reach images, given actions, the
  states that a sequence or imagination starts from, in behaviour the world
  model's kernels, nor the reward of the last imagined state. Elementwise
  operations, optimizers and metrics are not counted, though they take time.
  """
  c = config
  features = c.stoch_size + c.deter_size
  # Kernels are used at the pixels of the smaller image, whose sides these are.
  encoder = [
      layers.operations(kernel, side ** 2) for kernel, side in zip(
          layers.encoder(c.cnn_depth).values(), (31, 14, 6, 2))]
  decoder = [
      layers.operations(kernel, side ** 2) for kernel, side in zip(
          layers.decoder(features, c.cnn_depth).values(), (1, 1, 5, 13, 30))]
  rssm = {
      name: layers.operations(kernel) for name, kernel in layers.dynamics(
          c.stoch_size, c.deter_size, actions,
          layers.embed_size(c.cnn_depth)).items()}
  recurrent_kernel = layers.operations((c.deter_size, 3 * c.deter_size))
  img1, gru = rssm['img1'], rssm['gru'] + recurrent_kernel
  prior = rssm['img2'] + rssm['img3']
  posterior = rssm['obs1'] + rssm['obs2']
  outputs = 2 * actions if c.action_dist == 'tanh_normal' else actions
  actor, reward, value = (
      [layers.operations(kernel) for kernel in layers.head(
          features, [c.num_units] * layers.HIDDEN[name], count).values()]
      for name, count in (('actor', outputs), ('reward', 1), ('value', 1)))

  posts = c.batch_size * c.batch_length
  decoded = c.batch_size * (c.batch_length // c.decode_stride)
  # With pcont, nothing is imagined from the last state of a sequence.
  starts = c.batch_size * ((c.batch_length - c.pcont) // c.imag_stride)
  states, returns = c.horizon * starts, (c.horizon - 1) * starts
  action_rows = layers.operations((actions, c.deter_size))
  recurrent = img1 - action_rows + recurrent_kernel
  return {
      'encoder': posts * (3 * sum(encoder) - encoder[0]),
      'observe': posts * (
          3 * (img1 + gru + prior + posterior) - action_rows) - (
              c.batch_size * recurrent),
      'decoder': decoded * 3 * sum(decoder),
      'reward and pcont': posts * 3 * (sum(reward) + c.pcont * sum(value)),
      'imagined actions': states * (3 * sum(actor) - actor[0]),
      'imagined states': states * 2 * (img1 + gru + prior) - (
          starts * recurrent),
      'imagined rewards and pconts': returns * 2 * (
          sum(reward) + c.pcont * sum(value)),
      'imagined values': (states + returns) * sum(value),
      'value loss': returns * (2 * sum(value) - value[0])}


@contextlib.contextmanager
def updating(preset, **environment):
  """A function that makes an update in a process with this environment."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    with mock.patch.dict(os.environ, environment):
      pool.submit(_update_of, preset).result()
    yield lambda: pool.submit(_update_of, preset).result()


def _update_of(preset):
  """An update of the agent of this process, which the first call makes."""
  if preset not in _updates:
    _updates[preset] = partial(
        update, make_agent(preset), random_batch(preset))
  return _updates[preset]()


_updates = {}


def matrix_product(quick, bits):
  """A function that multiplies large matrices, and its operations.

  `bits` is their format, as `--precision` has it.
  """
  size, count = (64, 1) if quick else (2048, 20)
  # Scaled so that the products neither grow nor vanish.
  matrix = tf.random.normal([size, size]) / math.sqrt(size)
  matrix = tf.cast(matrix, precision.POLICIES[bits].removeprefix('mixed_'))

  @tf.function
  def multiply(x):
    for _ in range(count):
      x = tf.matmul(matrix, x)
    return x[0, 0]

  return lambda: float(multiply(matrix)), 2 * count * size ** 3


@contextlib.contextmanager
def sheeprl(bits):
  """A function that makes sheeprl's Dreamer V1 do an update.

  In bfloat16 with PyTorch's autocast, which is `bf16-mixed` of sheeprl.

  It has an environment of its own, made at the first use.

  Raises:
    OSError: It cannot be installed or does not start.
  """
  python = SHEEPRL / 'bin' / 'python'
  if not python.exists():
    execute(sys.executable, '-m', 'venv', SHEEPRL)
  for package in PACKAGES:  # In this order: else there is another torch.
    execute(python, '-m', 'pip', 'install', '--quiet', package)
  script = files.ROOT / 'tests' / 'sheeprl_step.py'
  with subprocess.Popen(
      [python, script, SHEEPRL_FORMATS[bits]], text=True, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:

    def expect(answer):
      if process.stdout.readline() != f'{answer}\n':
        raise OSError('sheeprl ended')

    def step():
      print(file=process.stdin, flush=True)
      expect('done')

    try:
      expect('ready')
      yield step
    finally:
      process.kill()


def execute(*command):
  """Runs a program; an `OSError` has the last line that it said."""
  result = subprocess.run(command, capture_output=True, text=True)
  if result.returncode:
    raise OSError((result.stderr.strip() or 'no reason given').splitlines()[-1])


def pieces(agent, batch):
  """Parts of an update, forward and backward: `{name: function}`."""
  data = dreamer.tensors(batch)
  shape = batch['reward'].shape
  feat = tf.random.normal([*shape, agent._dynamics.feature_size])
  embed = tf.random.normal([*shape, agent._encode.size])
  post, _ = agent._dynamics.observe(embed, data['action'])
  seed = tf.constant([0, 1])

  def imagine(post):
    return dreamer.imagine(
        post, seed, agent._dynamics, agent._actor, agent.config)[0]

  imagined = imagine(post)

  def part(module, loss, *inputs):
    variables = list(module.variables.values())

    @dreamer.function
    def run(data, *inputs):
      with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = loss(agent.preprocess(data), *inputs)
      gradients = tape.gradient(
          total, [*variables, *inputs], unconnected_gradients='zero')
      return tf.add_n([tf.reduce_sum(x) for x in gradients])

    return lambda: float(run(data, *inputs))

  def encode(data):
    return tf.reduce_mean(tf.square(agent._encode(data)))

  def observe(data, embed):
    states = agent._dynamics.observe(embed, data['action'])
    return tf.add_n([tf.reduce_mean(x['stoch'] + x['std']) for x in states])

  def decode(data, feat):
    return tf.reduce_mean(agent._decode(feat).log_prob(data['image']))

  def reward(data, feat):
    return tf.reduce_mean(agent._reward(feat).log_prob(data['reward']))

  def act(data):
    feat = imagine(post)
    return tf.reduce_mean(
        agent._reward(feat).mode() + agent._value(feat).mode())

  def value(data):
    return tf.reduce_mean(agent._value(imagined).log_prob(0.0))

  return {
      'encoder': part(agent._encode, encode),
      'observe': part(agent._dynamics, observe, embed),
      'decoder': part(agent._decode, decode, feat),
      'reward': part(agent._reward, reward, feat),
      'imagination and actor': part(agent._actor, act),
      'value': part(agent._value, value)}


# Kinds of operations, by what the names of their kernels contain.
KINDS = {
    'convolutions': 'Conv2D', 'matrix products': 'MatMul',
    'gradients of zero': 'ZerosLike',
    'sums of gradients': 'AddN'}


def executed(agent, batch, count=10):
  """Number of operations in an update, and the share of time of each kind.

  From TensorFlow's profiler, with one thread. The rest is 'others': more than a
  hundred kinds of small operations, and what lies between operations.
  """
  from tensorflow.tsl.profiler.protobuf import xplane_pb2
  for _ in range(3):
    update(agent, batch)
  with tempfile.TemporaryDirectory(prefix='bench-') as folder:
    tf.profiler.experimental.start(folder)
    for _ in range(count):
      update(agent, batch)
    tf.profiler.experimental.stop()
    path, = pathlib.Path(folder).rglob('*.xplane.pb')
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
  spent, runs, whole = collections.Counter(), 0, 0
  for plane in space.planes:
    names = {key: data.name for key, data in plane.event_metadata.items()}
    for event in (event for line in plane.lines for event in line.events):
      name = names[event.metadata_id]
      whole += event.duration_ps * (name == '_update')
      kernel = re.search(r'[^:]:(\w+)$', name)
      runs += bool(kernel)
      for kind, word in KINDS.items():
        if kernel and word in kernel[1]:
          spent[kind] += event.duration_ps
  shares = {kind: spent[kind] / whole for kind in KINDS}
  return runs / count, {**shares, 'others': 1 - sum(shares.values())}


@contextlib.contextmanager
def plain_convolutions():
  """Makes the networks use TensorFlow's own strided convolutions."""
  saved = convolutions.conv, convolutions.deconv
  convolutions.conv = lambda x, kernel, bias: tf.nn.bias_add(
      tf.nn.conv2d(x, kernel, 2, 'VALID'), bias)
  convolutions.deconv = lambda x, kernel, bias: tf.nn.bias_add(
      convolutions._deconv_plain(x, kernel), bias)
  try:
    yield
  finally:
    convolutions.conv, convolutions.deconv = saved


def record_episodes(folder, count):
  """Paths of random episodes of 500 records."""
  episodes = replay.Replay(
      pathlib.Path(folder, 'recorded'), batch_size=1, batch_length=1)
  paths = []

  def keep(_, episode):
    paths.append(episodes.add({k: v[:500] for k, v in episode.items()}))

  with contextlib.closing(workers.make('none', TASK)) as env:
    collect = driver.Driver([env], [0], keep)
    rng = np.random.default_rng(0)
    while len(paths) < count:
      collect.step(lambda *_: (rng.uniform(-1, 1, (1, ACTIONS)), None))
  return paths


def losses(folder, preset, bits, updates):
  """Losses [updates, LOSSES] of a new agent on recorded episodes.

  They are those above what a perfect prediction has.
  """
  agent = make_agent(preset, precision=bits)
  config = agent.config
  episodes = replay.Replay(
      pathlib.Path(folder, 'recorded'), batch_size=config.batch_size,
      batch_length=config.batch_length)
  found = []
  with contextlib.closing(episodes):
    for index in range(updates):
      metrics = agent.train(episodes.sample(index))
      found.append([float(metrics[name]) for name in LOSSES])
  return np.array(found) - list(LOSSES.values())


def multiply(paths, directory, count):
  """Gives files `count` names in a directory, as if so many were there."""
  directory.mkdir(parents=True)
  for index in range(count):
    os.link(
        paths[index % len(paths)],
        directory / f'20200101T{index:06}-{index:032x}-500.npz')


def first_update(arguments):
  """Seconds from starting dreamer.py to the end of its first update."""
  began = time.perf_counter()
  subprocess.run(
      [sys.executable, '-c',
       'from benchmarks import measuring; measuring.run_to_first_update()',
       '--task', TASK, *arguments],
      cwd=files.ROOT, check=True, stdout=subprocess.DEVNULL)
  return time.perf_counter() - began


def run_to_first_update():
  """Does what dreamer.py does, until one update is done."""
  train = dreamer.Dreamer.train

  def train_once(agent, batch):
    float(train(agent, batch)['model_loss'])
    os._exit(0)

  dreamer.Dreamer.train = train_once
  dreamer.main(sys.argv[1:])


def whole_run(arguments):
  """Measures a run from its first update on, whose graph is built by then.

  Returns:
    Seconds for 1,000 environment steps, and the shares of the time that are
    not updates: collection, evaluation, all.
  """
  spent, began, begin = collections.Counter(), {}, loop.Run._begin

  def timed(name, function):
    def call(self, *args):
      start = time.perf_counter()
      result = function(self, *args)
      if name == 'update':
        float(result['model_loss'])  # It is computed by then.
      end = time.perf_counter()
      if began:
        spent[name] += end - start
      elif name == 'update':
        began.update(time=end, step=self.step)
      return result
    return call

  runs = []
  with contextlib.ExitStack() as stack:
    stack.enter_context(terminal.silence())
    for name, owner, method in (
        ('update', dreamer.Dreamer, 'train'),
        ('collection', collector.Collector, 'decide'),
        ('evaluation', loop.Run, '_evaluate')):
      stack.enter_context(mock.patch.object(
          owner, method, timed(name, getattr(owner, method))))
    stack.enter_context(mock.patch.object(
        loop.Run, '_begin', lambda run: runs.append(run) or begin(run)))
    dreamer.main(arguments)
  total = time.perf_counter() - began['time']
  steps = runs[0].step - began['step']
  return 1e3 * total / steps, {
      'all but updates': 1 - spent['update'] / total,
      'collection': spent['collection'] / total,
      'evaluation': spent['evaluation'] / total}


def start_with(folder, count):
  """A start with so many episodes; networks do not matter, and are tiny."""
  logdir = pathlib.Path(folder, f'run{count}')
  first_update([
      '--logdir', str(logdir), '--preset', 'debug', '--batch_size', '50',
      '--batch_length', '50', '--replay_memory', '1', '--prefill', '500'])
  # The next one is to start the same way.
  for path in logdir.iterdir():
    if path.is_file():
      path.unlink()


def retraced(logdir):
  """How often functions of an agent were traced again in a whole run."""
  agents = []

  class Watched(dreamer.Dreamer):

    def begin(self, logdir):
      agents.append(self)

  with terminal.silence():
    loop.main([
        '--logdir', str(logdir), '--task', TASK, '--preset', 'debug'],
        '', dreamer.define_config, Watched)
  agent, = agents
  # Each is traced once; the policy for collecting and for evaluation.
  traced = len(agent._graphs) - 2
  for function in (agent._train, agent._open_loop):
    traced += function.experimental_get_tracing_count() - 1
  return traced


def act(agent, count, calls):
  """Policy calls for `count` environments as in collection."""
  obs = {'image': np.zeros([count, 64, 64, 3], np.uint8)}
  reset, state = np.zeros(count, bool), None
  for _ in range(calls):
    action, state = agent(obs, reset, state)
    np.asarray(action)


def collect(agent, envs, decisions):
  """Steps environments with the agent's policy, as in training."""
  collect = driver.Driver(envs, [0], lambda index, episode: None)
  for _ in range(decisions):
    collect.step(agent)


def run_freely(envs, decisions):
  """Lets all workers step as fast as they can, none waiting for another."""
  action = np.random.default_rng(0).uniform(-1, 1, ACTIONS)
  promises = collections.deque()
  for index in range(decisions):
    for env in envs:
      promises.append(env.step(action) if index % 500 else env.reset(0))
    while len(promises) > 4 * len(envs):
      promises.popleft()()
  for promise in promises:
    promise()


def batch_rate(episodes, begin, end):
  """Batches a second, sampled in this thread."""
  began = time.perf_counter()
  for index in range(begin, end):
    episodes.sample(index)
  return (end - begin) / (time.perf_counter() - began)


def memory():
  """Bytes that this process has taken; pages of files come and go."""
  text = pathlib.Path('/proc/self/smaps_rollup').read_text()
  return 1024 * sum(
      int(line.split()[1]) for line in text.splitlines()
      if line.startswith(('Anonymous:', 'Swap:')))


def play(env, steps):
  """Images of the beginning of an episode."""
  rng = np.random.default_rng(0)
  images = [env.reset(seed=0)[0]['image']]
  for _ in range(steps):
    action = rng.uniform(-1, 1, env.action_space.shape)
    images.append(env.step(action)[0]['image'])
  return images


def rendered(task='dmc_walker_walk', size=128):
  """The picture of a task by default, by `--render fast`, and the difference.

  Beside each other, in the size given; agents see 64 x 64.
  """
  pictures = []
  for way in ('default', 'fast'):
    with contextlib.closing(wrappers.make_env(task, render=way)) as env:
      env.reset(seed=0)
      pictures.append(env.render_frame(size, size))
  default, fast = np.int16(pictures)
  return Image.fromarray(np.concatenate(
      [default, fast, np.abs(default - fast)], 1).astype(np.uint8))


def draw(env, count):
  for _ in range(count):
    env.render_frame(64, 64)


def draw_with_new_cameras(env, count):
  """What `draw` did before DeepMind Control's cameras were kept."""
  for _ in range(count):
    env.unwrapped._camera = None
    env.render_frame(64, 64)
