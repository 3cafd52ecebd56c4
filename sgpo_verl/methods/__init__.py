"""One file per method: its rules, with its paper beside them. ``base.py`` says what a method is; ``sgpo.method`` names them.

paper.py draws up the phases that curriculum.py walks through, and so do prune and AERO, whose single phase is everyone.
"""
