"""`diffdistill verify`: the production losses against closed forms, on problems small enough to solve exactly.

The teacher is a Gaussian mixture, the student x0 = m + s z. Both have exact denoisers and densities at every noise
level, so every expectation is a quadrature and every gradient in (m, s) has a closed form. Checks call the functions
that training calls, and (`checks_step.py`) the step that training runs, with each method's settings; what they are
compared with (`reference.py`, closed forms, printed numbers) shares no code with them.
"""
