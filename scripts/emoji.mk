# The trained rows of docs/emoji.md and their figures, each run on one thread, two at a time:
#
#   make -f scripts/emoji.mk -j2            everything: some three hours of two cores
#   make -f scripts/emoji.mk -j2 students   only these; or: rewards, pairs
#
# Figures are in $(R)/*.json. A run that is there is not made again, one that was interrupted goes on.
PYTHON ?= .venv/bin/python
R ?= runs/emoji
SEEDS ?= 0 2
export OMP_NUM_THREADS = 1
RUN = $(PYTHON) -m diffdistill
ON = --quiet num_threads=1 resume_from_checkpoint=latest output_dir=$(@D)
EVALUATE = $(PYTHON) scripts/evaluate_emoji.py --guidance 2 --steps 12 --sampler dpm_solver --out $@

.PHONY: all students rewards pairs
.SECONDARY:
all: students rewards pairs
students: $(R)/students.json
rewards: $(R)/rewards.json
pairs: $(R)/mapo.json

# Of the first stage with seed N the second has N + 1: other batches and noise.
$(R)/one_step_first_%/report.html:
	$(RUN) distill emoji/one_step seed=$* $(ON)
$(R)/one_step_%/report.html: $(R)/one_step_first_%/report.html
	$(RUN) distill emoji/one_step_stage2 seed=$$(($* + 1)) initialize_from=$(<D) $(ON)
$(R)/four_step_first_%/report.html:
	$(RUN) distill emoji/four_step seed=$* $(ON)
$(R)/four_step_%/report.html: $(R)/four_step_first_%/report.html
	$(RUN) distill emoji/four_step_stage2 seed=$$(($* + 1)) initialize_from=$(<D) $(ON)
STUDENTS = $(SEEDS:%=$(R)/one_step_%/student) $(R)/four_step_0/student
$(R)/students.json: $(STUDENTS:student=report.html)
	$(EVALUATE) builtin:emoji_teacher $(STUDENTS) --train 2700 --repeat 10

START = $(R)/one_step_0
$(R)/diff_instruct_star_%/report.html: $(START)/report.html
	$(RUN) distill emoji/diff_instruct_star seed=$* initialize_from=$(<D) $(ON)
$(R)/diff_instruct_pp_%/report.html: $(START)/report.html
	$(RUN) distill emoji/diff_instruct_star method.name=diff_instruct_pp seed=$* initialize_from=$(<D) $(ON)
REWARDED = $(START)/student $(addprefix $(R)/diff_instruct_,pp_0/student pp_1/student star_0/student star_1/student star_2/student)
$(R)/rewards.json: $(REWARDED:student=report.html)
	$(EVALUATE) $(REWARDED) --train 2700 --repeat 10

$(R)/mapo_lean_%/report.html:
	$(RUN) align emoji/mapo_lean seed=$* $(ON)
$(R)/mapo_%/report.html:
	$(RUN) align emoji/mapo seed=$* $(ON)
ALIGNED = $(foreach seed,0 1 2,$(R)/mapo_$(seed)/model $(R)/mapo_lean_$(seed)/model)
$(R)/mapo.json: $(ALIGNED:model=report.html)
	$(EVALUATE) builtin:emoji_teacher $(ALIGNED) --train 0 --repeat 3
