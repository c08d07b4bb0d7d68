"""`diffdistill verify`: the production losses against closed forms, on problems small enough to solve exactly.

The teacher is a Gaussian mixture, the student x0 = m + s z. Both have exact denoisers and densities at every noise
level, so every expectation is a quadrature and every gradient in (m, s) has a closed form. Checks call the functions
that training calls (`checks_losses`) and the step that training runs, with each method's settings (`checks_step`);
what they are compared with (closed forms, printed numbers, `analytic.Grid`) shares no code with them. What follows
from these, where methods converge to, trainings, guidance and every process, is in the tests.
"""
