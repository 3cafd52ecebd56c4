"""`sgpo demo`: a tiny model learns to double numbers, first with stock GRPO, then with sGPO, on two CPU cores.

task.py says what is learned and pool.py from which prompts, base.py trains the model that both runs start from,
reward.py is the rule that scores an answer, and run.py drives the stages: each one is a command that you could type.
`sgpo bench` prepares its own tasks with the same parts: sorting.py, and tasks.py lists them all.
"""
