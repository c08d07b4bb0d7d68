"""Diff-Instruct++ (2410.18881): a reward, and reverse KL at every level to the guided teacher.

    d/dx0 = w (D_F(x_t) - D_guided(x_t))  -  a C H W dR(x0, c)/dx0,        D_guided = D_null + k (D_c - D_null), w = 1

At level 0 the optimum is p(x | c) exp(a R). Guidance is itself a reward, log p(c | x_t), with weight k - 1; the paper
trains with both. `guidance: outside` writes it so, which changes nothing here.

Departures: the reward is also seen by the student's intermediate images where it has several steps; the level law is
the configured one; no code or rates are published.
"""

from typing import ClassVar, Literal

from diffdistill.matching.settings import Form
from diffdistill.methods.base import GapWeight, Rewarded


class DiffInstructPP(Rewarded):
    """2410.18881: a reward and reverse KL to the teacher."""

    form: ClassVar[Form] = "score_gap"
    plain_method: ClassVar[str] = "diff_instruct"
    name: Literal["diff_instruct_pp"] = "diff_instruct_pp"
    level_weight: GapWeight = "none"


METHOD = DiffInstructPP
