"""A pole of PyBullet whose cart is pushed half as hard, to tune on."""

import gymnasium as gym

from envs import bullet


class WeakPole(gym.Env):

  def __init__(self):
    self._env = bullet.Bullet('InvertedPendulumBulletEnv-v0', termination=True)
    self.observation_space = self._env.observation_space
    self.action_space = self._env.action_space

  def reset(self, *, seed=None, options=None):
    return self._env.reset(seed=seed)

  def step(self, action):
    return self._env.step(0.5 * action)

  def render(self):
    return self._env.picture(64, 64)

  def close(self):
    self._env.close()
