"""Predictions of a world model beside the truth."""

import numpy as np

from common.backend import tf

LEVELS = ('low', 'middle', 'high')
# Time steps of an episode that are looked at together, so that memory does not
# grow with its length: 1,000 take a quarter of a GiB at the default sizes.
PART = 500


def video(agent, batch, context=5, rows=6):
  """Video of predictions beside the truth, for TensorBoard.

  Args:
    agent: from `dreamer.load_agent`, or in training.
    batch: `image` [B, T, 64, 64, 3] uint8, `action` [B, T, A], `reward` [B, T],
      and `first` bool [B, T], optional, where an episode begins.
    context: images that the model sees of each episode.
    rows: sequences to show, at most.

  Returns:
    uint8 [T, 3 · 64, rows · 64, 3]: truth, model, error (grey is none).
  """
  data = agent.preprocess({
      key: value[:rows] for key, value in batch.items()
      if key in ('image', 'action', 'reward', 'first')})
  truth = data['image'] + 0.5
  model = agent._decode(agent._dynamics.get_feat(
      open_loop(agent, data, context))).mode() + 0.5
  frames = tf.concat([truth, model, (model - truth + 1) / 2], 2)
  frames = tf.concat(tf.unstack(frames), 2)
  return tf.cast(tf.clip_by_value(frames, 0, 1) * 255 + 0.5, tf.uint8)


def open_loop(agent, data, context):
  """States [B, T, ...] of a model that sees the first images of each episode.

  It infers its state from `context` images and imagines the states after them
  from the actions alone. No action says how an episode begins, so where the
  next one does, it sees as many images again.

  Args:
    agent: from `dreamer.load_agent`, or in training.
    data: `image` [B, T, 64, 64, 3] in -0.5 to 0.5, `action` [B, T, A], each the
      one that led to the image, and `first` bool [B, T], optional.
    context: number of images.
  """
  model, action = agent._dynamics, data['action']
  steps = tf.range(tf.shape(action)[1])[:, None]  # Time before sequences.
  first = data.get('first')
  first = tf.zeros(tf.shape(action)[:2], bool) if first is None else first
  first = tf.transpose(first)
  # The step at which the episode of each step began.
  start = tf.scan(
      tf.maximum, tf.where(first, steps, tf.zeros_like(steps)))
  seen = (steps - start < context)[..., None]
  keep = 1 - tf.cast(first, tf.float32)[..., None]

  def step(prev, inputs):
    embed, action, keep, seen = inputs
    prev = {name: keep * x for name, x in prev.items()}
    post, prior = model.obs_step(prev, keep * action, embed)
    return {name: tf.where(seen, post[name], prior[name]) for name in post}

  embed = agent._encode({'image': data['image']})
  states = tf.scan(
      step, (*(tf.transpose(x, [1, 0, 2]) for x in (embed, action)), keep,
             seen), model.initial(tf.shape(action)[0]))
  return {name: tf.transpose(x, [1, 0, 2]) for name, x in states.items()}


class RewardErrors:
  """Errors of an agent's reward model over whole episodes.

  Args:
    agent: from `dreamer.load_agent`, or in training.
  """

  def __init__(self, agent):
    self._agent = agent
    self._predict = tf.function(self._rewards, autograph=False, input_signature=[
        tf.TensorSpec([1, None, 64, 64, 3], tf.uint8),
        tf.TensorSpec([1, None, agent.action_dim]),
        tf.TensorSpec([1, None]),
        {name: tf.TensorSpec(x.shape)
         for name, x in agent._dynamics.initial(1).items()}])

  def __call__(self, episodes):
    """Mean absolute errors where the reward is low, middle and high.

    These are the thirds of the range of the rewards; one without a reward is
    left out. States are inferred from all images, without samples.

    Args:
      episodes: dicts of `image` [T, 64, 64, 3] uint8, `action` [T, A] and
        `reward` [T].

    Returns:
      `{'reward_error_low': number, ...}`.
    """
    pairs = [pair for episode in episodes for pair in self._pairs(episode)]
    predicted, true = (np.concatenate(x) for x in zip(*pairs))
    low, high = true.min(), true.max()
    share = (true - low) / (high - low) if high > low else np.zeros(len(true))
    level = np.minimum(share * len(LEVELS), len(LEVELS) - 1).astype(int)
    return {
        f'reward_error_{name}': float(
            np.abs(predicted - true)[level == index].mean())
        for index, name in enumerate(LEVELS) if (level == index).any()}

  def _pairs(self, episode):
    """Predicted and true rewards [T] of the parts of an episode, in order."""
    state = self._agent._dynamics.initial(1)
    for begin in range(0, len(episode['reward']), PART):
      predicted, true, state = self._predict(*(
          tf.convert_to_tensor(episode[key][None, begin:begin + PART])
          for key in ('image', 'action', 'reward')), state)
      yield predicted[0], true[0]

  def _rewards(self, image, action, reward, state):
    agent = self._agent
    data = agent.preprocess(
        {'image': image, 'action': action, 'reward': reward})
    noise = tf.zeros(tf.concat(
        [[2], tf.shape(reward), [agent.config.stoch_size]], 0))
    post, _ = agent._dynamics.observe(
        agent._encode(data), action, state, noise=noise)
    feat = agent._dynamics.get_feat(post)
    last = {name: x[:, -1] for name, x in post.items()}
    return agent._reward(feat).mode(), data['reward'], last
