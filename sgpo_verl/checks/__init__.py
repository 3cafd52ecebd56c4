"""What a run is held against before anything starts: by ``sgpo doctor`` and by the training process itself, in the same words.

A setting or a file that cannot work is refused. What only this machine lacks is a warning: it may not be the one that trains.
"""
