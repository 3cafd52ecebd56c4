"""`sgpo bench SPEC.yaml`: every method with every seed on the same task, one after another, and the report over all of it.

spec.py reads the file, commands.py makes each run's command and checks it, execute.py runs what is not finished,
tune.py chooses the baseline's settings first, and command.py puts them in order.
"""
