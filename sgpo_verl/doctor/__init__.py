"""``sgpo doctor``: is everything in place, will this run work, and if not, what to do."""
