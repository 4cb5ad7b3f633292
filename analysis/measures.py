"""The measures of a forecast and how much they rest on, without TensorFlow."""

# Decisions of the target to measure on, the sequences that are drawn of them,
# and the updates of a fit.
DECISIONS = 1000
SEQUENCES = 48
FIT_STEPS = 200

MEASURES = {
    # Name: (whether more is better, what it says).
    'image_r2': (True, 'share of the variance of the images that is drawn'),
    'image_error': (False, 'image loss above its floor, in nats'),
    'divergence': (False, 'KL of posterior from prior, nats a time step'),
    'ahead_1': (False, 'error 1 decision ahead / that of the last image'),
    'ahead_5': (False, 'the same, 5 decisions ahead'),
    'ahead_15': (False, 'the same, 15 decisions ahead'),
    'divergence_fit': (False, 'divergence after the fit of action weights'),
    'ahead_1_fit': (False, 'error 1 decision ahead after that fit'),
    'ahead_5_fit': (False, 'the same, 5 decisions ahead'),
    'ahead_15_fit': (False, 'the same, 15 decisions ahead'),
    'reward_r2': (True, 'share of the variance of the rewards'),
    'reward_log_prob': (True, 'mean log-likelihood of the rewards')}
