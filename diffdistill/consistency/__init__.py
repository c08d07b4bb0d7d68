"""Consistency models: a network whose x0 is the same all along a trajectory (2303.01469), trained without a critic.

The trajectory of the probability flow ends at x0, so f(x_t, sigma) = D(x_t, sigma) is to be constant on it, and f(x,
sigma_min) = x. `discrete` compares neighbouring levels, `continuous` takes the derivative. The trajectory is that of a
teacher, or without one the line x0 + sigma eps through an image, which is it on average.
"""
