"""Measures of how a source fits a target task, before anything is trained.

Multi-source transfer (Sasso et al. 2023) copies or freezes parts of agents
that have seen other tasks. Each measure says of one such part how far it holds
on episodes of the target that were played with random actions.
"""

import dataclasses
import pathlib
import tempfile

import numpy as np

from analysis.measures import DECISIONS, FIT_STEPS, MEASURES, SEQUENCES
from common import layers, options, terminal
from common.backend import keras, tf, tfd
from data import checkpoints, episodes, logdir, replay, saving
import dreamer
import models
from runs import driver, workers
import tools

# Images from which a state is inferred before dynamics are asked to predict.
CONTEXT = 5
# Decisions ahead at which they are compared with the truth.
AHEAD = (1, 5, 15)
LENGTH = CONTEXT + max(AHEAD)
# Share of the variance of the target's images below which an autoencoder
# does not draw them.
COVERED = 0.5


# Modules of a source that are measured.
MODULES = ('encoder', 'decoder', 'dynamics', 'reward')
# Flags that the meaning of each depends on, and no array tells.
FLAGS = {
    'encoder': ['cnn_act'], 'decoder': ['cnn_act'], 'dynamics': [],
    'reward': ['dense_act', 'clip_rewards']}


### Sources ###


@dataclasses.dataclass
class Source:
  """Modules of one source, those it has, of the target's action width.

  `encode` and `decode` are needed; `dynamics` and `reward` may be None.
  """

  name: str
  encode: models.Encoder
  decode: models.Decoder
  dynamics: models.RSSM = None
  reward: models.DenseHead = None
  clip_rewards: str = 'none'


def read(path, autoencoder=None):
  """Arrays and activations of a source.

  Args:
    path: log directory, directory of module files, checkpoint or module file,
      in today's format or that of the public scripts.
    autoencoder: the same, for the encoder and the decoder of a module file
      that has neither.

  Returns:
    `{'arrays': {module: {variable: array}}, 'config': {flag: value}}`, with
    activations and clipped rewards.

  Raises:
    UserError: Nothing is there, it is damaged, it lacks an encoder or a
      decoder, the two have different activations, or numbers are not finite.
  """
  path = pathlib.Path(path)
  found = _read(path)
  if autoencoder and not {'encoder', 'decoder'} <= found['arrays'].keys():
    found = _joined(found, _read(pathlib.Path(autoencoder)), path, autoencoder)
  lacking = [
      name for name in ('encoder', 'decoder') if name not in found['arrays']]
  if lacking:
    raise terminal.UserError(
        f'{path} has no {" and no ".join(lacking)}: give a whole checkpoint, a '
        'directory with encoder.pkl and decoder.pkl, or name a checkpoint that '
        'has them with --autoencoder.')
  for arrays in found['arrays'].values():
    saving.check_finite(arrays, path)
  return found


def _joined(found, other, path, autoencoder):
  """What is found, and of the other the encoder and decoder that it lacks.

  Activations of convolutions are those of the file that gives the encoder.
  """
  taken = {
      name: other['arrays'][name] for name in ('encoder', 'decoder')
      if name in other['arrays'] and name not in found['arrays']}
  ours, theirs = (
      source['config'].get('cnn_act', 'relu') for source in (found, other))
  if len(taken) == 1 and ours != theirs:
    raise terminal.UserError(
        f'{path} was trained with --cnn_act {ours}, {autoencoder} with '
        f'{theirs}: an encoder and its decoder have the same.')
  return {
      'arrays': {**taken, **found['arrays']},
      'config': {**found['config'], 'cnn_act': theirs if taken else ours}}


def _read(path):
  if path.is_dir() and not any(
      file.exists() for file in (
          logdir.Logdir(path).checkpoint,
          checkpoints.previous(logdir.Logdir(path).checkpoint))):
    return _read_modules({
        name: path / f'{name}.pkl' for name in MODULES
        if (path / f'{name}.pkl').exists()}, path)
  if path.is_dir():
    data, _ = checkpoints.newest(logdir.Logdir(path).checkpoint)
  else:
    data = checkpoints.contents(path)
    if not isinstance(data, dict):
      data = _read_old(path)
  # An old module file has no config, and no name of its module.
  found = {
      name: layers.of_module(name, data['variables']) for name in MODULES}
  if any(name.startswith('reward/source') for name in data['variables']):
    found['reward'] = {}  # Rests on others, which rest on other features.
  facts = data.get('config', {})
  return {
      'arrays': {name: arrays for name, arrays in found.items() if arrays},
      'config': {
          'clip_rewards': facts.get('clip_rewards', 'none'),
          'cnn_act': facts.get('cnn_act', 'relu'),
          'dense_act': facts.get('dense_act', 'elu'),
          'rssm_act': checkpoints.rssm_act(data)}}


def _read_modules(files, path):
  if not files:
    raise terminal.UserError(
        f'{path} holds neither a checkpoint (variables.pkl) nor module files '
        '(encoder.pkl, decoder.pkl).')
  found = {'arrays': {}, 'config': {}}
  for name, file in files.items():
    found['arrays'][name] = checkpoints.module(file, name)
    data = checkpoints.contents(file)
    data = data if isinstance(data, dict) else {}  # Old ones do not say.
    facts = data.get('config', {})
    if name == 'dynamics':
      found['config']['rssm_act'] = checkpoints.rssm_act(data)
    for flag in FLAGS[name]:
      known = found['config'].setdefault(flag, facts.get(flag))
      if facts.get(flag) not in (known, None) and known is not None:
        raise terminal.UserError(
            f'{file} was trained with --{flag} {facts[flag]}, other modules in '
            f'{path} with {known}: put together modules of one agent.')
  found['config'] = {
      key: value for key, value in found['config'].items() if value is not None}
  return found


def _read_old(path):
  """A file of the public scripts: a whole agent, or the module that it fits."""
  try:
    return checkpoints.load(path)
  except checkpoints.Damaged as error:
    for name in MODULES:
      try:
        return {'variables': checkpoints.module(path, name)}
      except checkpoints.Damaged:
        continue
    raise error


def build(found, actions, seed=0, name='source'):
  """The `Source` of what `read` returns, for a target of some action width.

  The dynamics' weights of actions are fresh, as in fractional transfer.
  """
  arrays, config = found['arrays'], found['config']
  cnn_act = config.get('cnn_act', 'relu')
  depth = arrays['encoder']['encoder/h1/kernel'].shape[-1]
  features = len(arrays['decoder']['decoder/h1/kernel'])
  made = {
      'encoder': models.Encoder(depth, cnn_act, seed=seed),
      'decoder': models.Decoder(
          features, arrays['decoder']['decoder/h5/kernel'].shape[-1], cnn_act,
          seed=seed)}
  if 'dynamics' in arrays:
    own = arrays['dynamics']
    stoch = len(own['dynamics/img3/bias']) // 2
    made['dynamics'] = models.RSSM(
        made['encoder'].size, actions, stoch,
        len(own['dynamics/gru/recurrent_kernel']),
        config.get('rssm_act', 'elu'), seed=seed)
    kernel = 'dynamics/img1/kernel'
    fresh = made['dynamics'].variables[kernel].numpy()
    arrays = dict(arrays, dynamics={
        **own, kernel: np.concatenate([own[kernel][:stoch], fresh[stoch:]])})
  if 'reward' in arrays:
    made['reward'] = models.DenseHead(
        'reward', features, layers.hidden(arrays['reward']),
        act=config.get('dense_act', 'elu'), seed=seed)
  for module, built in made.items():
    saving.check_shapes(built.variables, arrays[module], name)
    for key, variable in built.variables.items():
      variable.assign(arrays[module][key])
  return Source(
      name, made['encoder'], made['decoder'], made.get('dynamics'),
      made.get('reward'), config.get('clip_rewards', 'none'))


### Episodes of the target ###


def played(config):
  """Episodes of random actions, as replay has them.

  `config` names the `task`, the `decisions` that are to be taken at least, the
  `seed`, and settings of the environment.
  """
  names = [name for name in options.ENVIRONMENT if name in config]
  env = workers.make(
      'none', config.task, **{name: getattr(config, name) for name in names})
  done = []
  try:
    space = env.action_space
    space.seed(config.seed)
    steps = driver.Driver(
        [env], [config.seed, 4], lambda _, episode: done.append(episode))
    while sum(len(e['reward']) - 1 for e in done) < config.decisions:
      steps.step(lambda obs, reset, state: (space.sample()[None], None))
  finally:
    env.close()
  return done


def recorded(directory, decisions):
  """The newest episodes of a directory that hold so many decisions.

  All of them, if there are fewer.

  Raises:
    UserError: There is none, or one is damaged.
  """
  files = episodes.paths(directory)
  if not files:
    raise terminal.UserError(
        f'there are no episodes in {directory}: name a directory of them, such '
        'as LOGDIR/episodes, or a --task to play.')
  found, total = [], 0
  for file in reversed(files):
    found.append(episodes.load(file))
    total += len(found[-1]['reward']) - 1
    if total >= decisions:
      break
  return found


def sequences(found, count, seed):
  """A batch of sequences of `LENGTH` time steps, as replay samples them.

  Those to fit to, the first ones, and those to measure on share no time step.
  """
  counts = to_fit(count), count - to_fit(count)
  batches = [
      _sampled(part, own, seed) for part, own in zip(parted(found), counts)]
  return {key: np.concatenate([x[key] for x in batches]) for key in batches[0]}


def to_fit(count):
  """Number of so many sequences, or time steps, that are fitted to."""
  return max(1, 2 * count // 3)


def parted(found):
  """Two lists of parts of episodes, two thirds to fit to and the rest.

  Parts have the length of a sequence, or a bit more at the end of an episode;
  every third one is measured on. So both see all of an episode, and no image
  is in both.
  """
  parts = []
  for episode in found:
    size = len(episode['reward'])
    count = max(1, size // LENGTH)
    if len(found) == count == 1:
      borders = [0, to_fit(size), size]
    else:
      borders = [*range(0, count * LENGTH, LENGTH), size]
    parts += [
        {key: value[begin:end] for key, value in episode.items()
         if key != 'task'} for begin, end in zip(borders, borders[1:])]
  if len(parts) < 3:
    return parts[:-1], parts[-1:]
  fitted = [part for index, part in enumerate(parts) if index % 3 < 2]
  return fitted, parts[2::3]


def _sampled(found, count, seed):
  with tempfile.TemporaryDirectory() as folder:
    memory = replay.Replay(
        folder, batch_size=count, batch_length=LENGTH, seed=seed)
    for episode in found:
      memory.add(episode)
    batch = memory.sample(0)
    memory.close()
  return batch


### Measures ###


def measure(source, batch, fit_steps=FIT_STEPS, seed=0):
  """Measures of a source on sequences of the target.

  Args:
    source: a `Source`.
    batch: `image` uint8 [B, T, 64, 64, 3], `action` [B, T, A], `reward` and
      `first` [B, T]; T is at least `LENGTH`.
    fit_steps: updates of what is fitted; the first two thirds of the sequences
      are fitted to, and everything is measured on the others.
    seed: fixes samples and fits.

  Returns:
    `{measure: number}`, NaN where the source lacks a module:

    - image_error: squared error of the drawn images, half its sum over pixels
      (nats above the constant of the image loss), mean over images.
    - image_r2: share of the variance of the images, around their mean image,
      that is drawn. 1 is perfect, 0 is as good as the mean image.
    - divergence: KL of posterior from prior per time step, in nats.
    - ahead_1, ahead_5, ahead_15: error of the images predicted so many
      decisions ahead, over that of the last image seen, which stays.
    - divergence_fit, ahead_1_fit, …: the same after the weights of actions in
      the dynamics, fresh at first, were fitted to the target.
    - reward_log_prob, reward_r2: mean log-likelihood of the target's rewards,
      clipped as the source's were, under the source's reward model, and share
      of their variance.

    and the arrays `truth` and `drawn` [B, T, 64, 64, 3] of the images measured
    on, in 0 to 1.
  """
  split = to_fit(len(batch['reward']))
  fitted, held = (
      {key: tf.convert_to_tensor(value[part]) for key, value in batch.items()}
      for part in (slice(split), slice(split, None)))
  result = {}
  if source.dynamics is None:
    bridge = fit_bridge(source, fitted, fit_steps, seed)
    feat = bridge(source.encode({'image': scaled(held)}))
  else:
    tf.random.set_seed(seed)
    feat, found = dynamics_measures(source, held)
    result.update(found)
    fit_actions(source, fitted, fit_steps)
    _, found = dynamics_measures(source, held)
    result.update({f'{key}_fit': value for key, value in found.items()})
  image, drawn = scaled(held), source.decode(feat).mode()
  error = squared(drawn, image)
  spread = squared(image, tf.reduce_mean(image, [0, 1], keepdims=True))
  result.update(
      image_r2=1 - float(tf.reduce_sum(error) / tf.reduce_sum(spread)),
      image_error=float(tf.reduce_mean(error)) / 2)
  if source.reward is not None:
    result.update(reward_measures(
        source.reward(feat),
        dreamer.clip_reward(held['reward'], source.clip_rewards)))
  return result, {
      'truth': image.numpy() + 0.5,
      'drawn': np.clip(drawn.numpy() + 0.5, 0, 1)}


def measure_autoencoder(variables, cnn_act, directory):
  """`image_error` and `image_r2` of an encoder and a decoder.

  They are those that rank.py has of the module files and these episodes. No
  random numbers of TensorFlow are drawn.

  Args:
    variables: `{name: variable or array}`, of all modules or of these two.
    cnn_act: activation of their convolutions.
    directory: directory of episodes of the target.

  Raises:
    UserError: There are no episodes, or one is damaged.
  """
  batch = sequences(recorded(directory, DECISIONS), SEQUENCES, seed=0)
  arrays = {
      module: layers.of_module(module, variables)
      for module in ('encoder', 'decoder')}
  source = build(
      {'arrays': arrays, 'config': {'cnn_act': cnn_act}},
      batch['action'].shape[-1])
  return measure(source, batch)[0]


def dynamics_measures(source, batch):
  """Posterior features [B, T, F], and the measures of the dynamics."""
  image, dynamics = scaled(batch), source.dynamics
  post, prior = dynamics.observe(
      source.encode({'image': image}), batch['action'],
      first=batch['first'])
  divergence = tfd.kl_divergence(
      dynamics.get_dist(post), dynamics.get_dist(prior))
  start = {key: value[:, CONTEXT - 1] for key, value in post.items()}
  ahead = dynamics.imagine(batch['action'][:, CONTEXT:LENGTH], start)
  predicted = source.decode(dynamics.get_feat(ahead)).mode()
  result = {'divergence': float(tf.reduce_mean(divergence))}
  for steps in AHEAD:
    # Rows in which no episode begins under way.
    whole = ~tf.reduce_any(batch['first'][:, 1:CONTEXT + steps], 1)
    place = CONTEXT + steps - 1
    error, still = (
        tf.reduce_sum(tf.boolean_mask(
            squared(guess, image[:, place]), whole))
        for guess in (predicted[:, steps - 1], image[:, CONTEXT - 1]))
    result[f'ahead_{steps}'] = float(error / still) if still > 0 else np.nan
  return dynamics.get_feat(post), result


def fit_actions(source, batch, steps, rate=1e-2):
  """Fits the rows of actions in `img1`, and nothing else, to the target.

  They are all of the dynamics that fractional transfer leaves fresh. The loss
  is the divergence of the posterior, as it is, from the prior.
  """
  dynamics = source.dynamics
  kernel = dynamics.variables['dynamics/img1/kernel']
  actions = batch['action'].shape[-1]
  mask = np.zeros(kernel.shape, np.float32)
  mask[-actions:] = 1
  embed = source.encode({'image': scaled(batch)})
  adam = tools.adam(rate)

  @tf.function(autograph=False)
  def update():
    with tf.GradientTape() as tape:
      post, prior = dynamics.observe(
          embed, batch['action'], first=batch['first'])
      loss = tf.reduce_mean(tfd.kl_divergence(
          dynamics.get_dist(post), dynamics.get_dist(prior)))
    grad = tape.gradient(loss, kernel)
    adam.apply_gradients([(grad * mask, kernel)])

  adam.build([kernel])
  for _ in range(steps):
    update()


def fit_bridge(source, batch, steps, seed, rate=3e-3, size=32):
  """A linear layer from embeddings to features that the decoder draws from.

  Stands in for dynamics where there are none: a frozen autoencoder whose
  dynamics are learned anew can be as good as that. An update sees `size`
  images from anywhere: those of a sequence look alike.
  """
  bridge = keras.layers.Dense(
      source.decode.variables['decoder/h1/kernel'].shape[0],
      kernel_initializer=keras.initializers.GlorotUniform(seed))
  image = tf.reshape(scaled(batch), [-1, 64, 64, 3])
  embed = source.encode({'image': image})
  bridge.build(embed.shape)
  adam = tools.adam(rate)
  adam.build(bridge.weights)

  @tf.function(autograph=False)
  def update(embed, image):
    with tf.GradientTape() as tape:
      drawn = source.decode(bridge(embed)).mode()
      loss = tf.reduce_mean(squared(drawn, image))
    adam.apply_gradients(zip(
        tape.gradient(loss, bridge.weights), bridge.weights))

  rows = np.random.default_rng(seed).integers(len(embed), size=[steps, size])
  for row in rows:
    update(tf.gather(embed, row), tf.gather(image, row))
  return bridge


def reward_measures(dist, reward):
  """Log-likelihood and R² of rewards [B, T] under a reward model."""
  error = tf.reduce_sum(tf.square(dist.mode() - reward))
  spread = tf.reduce_sum(tf.square(reward - tf.reduce_mean(reward)))
  return {
      'reward_log_prob': float(tf.reduce_mean(dist.log_prob(reward))),
      'reward_r2': 1 - float(error / spread) if spread > 0 else np.nan}


def squared(left, right):
  """Squared difference of images, summed over pixels: [...]."""
  return tf.reduce_sum(tf.math.squared_difference(left, right), [-3, -2, -1])


def scaled(batch):
  """Images of a batch as the networks see them."""
  return dreamer.scale_image(batch['image'])


def line(measures):
  """Measures and their meanings, as in the table of rank.py, in one line."""
  return '; '.join(
      f'{name} {value:.3g}, {MEASURES[name][1]}'
      for name, value in measures.items())


def coverage(measures, name, frozen=True):
  """Lines that say whether an autoencoder draws the target.

  `name` is what they call it; `frozen` says that its decoder, too, is not
  trained.
  """
  share = measures['image_r2']
  if share >= COVERED:
    return []
  hides = (
      'frozen, it hides' if frozen else
      'its decoder is trained, but its frozen encoder may hide')
  return [
      f'{name} draws {max(share, 0):.0%} of the variance of the target\'s '
      f'images: {hides} the rest from the agent.']
